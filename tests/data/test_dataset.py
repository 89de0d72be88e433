import subprocess
import sys

import numpy as np
import pytest
import torch

import lanterne.data
from lanterne.data import Dataset
from lanterne.errors import DataError


def tensors(n: int = 6, m: int = 3, classes: int = 3) -> dict[str, torch.Tensor]:
    return {
        "x": torch.arange(2.0 * n).reshape(n, 2),
        "y": torch.arange(n) % classes,
        "test_x": torch.ones(m, 2),
        "test_y": torch.arange(m) % classes,
    }


def test_public_names():
    assert lanterne.data.__all__ == sorted(lanterne.data.__all__, key=lambda name: (name.islower(), name))
    assert set(lanterne.data.__all__) == {
        "Augmentation",
        "Dataset",
        "Shared",
        "Streams",
        "augmentation",
        "check_partition",
        "client_means",
        "data_files",
        "different",
        "held_out",
        "label_shares",
        "load",
        "partition",
    }
    assert all(callable(getattr(lanterne.data, name)) for name in lanterne.data.__all__)


def test_import_is_light():
    heavy = ["datasets", "flwr_datasets", "sklearn", "PIL", "pyarrow", "pandas", "matplotlib"]
    code = f"import sys, lanterne.data; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_iid_needs_no_heavy_library():
    code = (
        "import sys, lanterne.data as d; d.partition('iid', [0, 1, 2], 2, 0); d.partition('shards:1', [0, 1, 2], 2, 0);"
        "print('datasets' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_of_reads_arrays_and_any_integer_type():
    data = Dataset.of(np.eye(3), np.array([0, 2, 1], dtype=np.uint8), np.eye(3), [0, 0, 3])
    assert (data.name, data.classes, len(data), data.sample_shape) == ("own", 4, 3, (3,))
    assert data.y.dtype == data.test_y.dtype == torch.int64


def test_to_changes_samples_only():
    data = Dataset.of(**tensors())
    moved = data.to(torch.float64, "cpu")
    assert moved.x.dtype == moved.test_x.dtype == torch.float64
    assert moved.y.dtype == torch.int64
    assert moved.classes == data.classes
    assert torch.equal(moved.x, data.x.double())
    assert data.x.dtype == torch.float32


def test_to_a_type_that_cannot_hold_the_values():
    data = Dataset.of(**{**tensors(), "x": torch.full((6, 2), 1e6)})
    with pytest.raises(DataError, match=r"x\[0\] holds a value that is infinite"):
        data.to(torch.float16)
    with pytest.raises(DataError, match="floating point"):
        data.to(torch.int32)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", torch.zeros(6, 2, dtype=torch.int64), r"x is int64.*x\.float\(\)"),
        ("x", torch.zeros(5, 2), r"x has shape \(5, 2\) and y \(6,\), which is not one label"),
        ("x", torch.zeros(6), "one label for each sample"),
        ("y", torch.zeros(6, 1, dtype=torch.int64), "one label for each sample"),
        ("x", torch.tensor([[0.0, 0.0]] * 4 + [[0.0, float("nan")]] * 2), r"x\[4\] holds a value"),
        ("x", torch.tensor([[0.0, 0.0]] * 5 + [[float("-inf"), 0.0]]), r"x\[5\] holds a value"),
        ("test_x", torch.tensor([[float("inf"), 0.0]] * 3), r"test_x\[0\] holds a value"),
        ("test_x", torch.zeros(3, 4), r"a sample of x has shape \(2,\), one of test_x \(4,\)"),
        ("test_x", torch.zeros(3, 2).double(), r"test_x is float64.*test_x\.to\(torch\.float32\)"),
        ("y", torch.tensor([0, 1, 2, 0, -1, 2]), r"y\[4\] is -1, but with 3 classes a label lies in 0\.\.2"),
        ("y", torch.zeros(6), r"y is float32.*y\.long\(\)"),
        ("y", torch.tensor([True] * 6), "y is bool"),
        (
            "y",
            torch.tensor([0, 1, 2, 3, 5, 6]),
            r"row 4: the label is 5, but no row has the label 4: .* show 6 classes, and run up to 6\..*without gaps",
        ),
        (
            "y",
            torch.tensor([1, 2, 1, 2, 10**12, 1]),
            r"row 4: the label is 10{12}, but no row has the label 3: .* show 4 classes",
        ),
    ],
)
def test_bad_tensors(field: str, value: torch.Tensor, message: str):
    with pytest.raises(DataError, match=message):
        Dataset.of(**{**tensors(), field: value})


def test_labels_that_begin_with_one():
    labels = {"y": torch.tensor([1, 2, 3, 1, 2, 3]), "test_y": torch.tensor([1, 2, 3])}
    with pytest.raises(
        DataError,
        match=r"row 0: the label is 1, but no row has the label 0: .*without gaps, or say .* classes= of Dataset",
    ):
        Dataset.of(**{**tensors(), **labels})
    assert Dataset("four", **{**tensors(), **labels}, classes=4).classes == 4


def test_owners():
    data = Dataset.of(**tensors(), owner=["bo", "al", "bo", "cy", "al", "bo"], test_owner=["al", "zoe", "cy"])
    assert (data.owner.tolist(), data.test_owner.tolist()) == ([1, 0, 1, 2, 0, 1], [0, -1, 2])
    assert torch.equal(data.to(torch.float64).owner, data.owner)
    assert Dataset.of(**tensors(), owner=np.array([7, 7, 3, 3, 7, 5])).owner.tolist() == [2, 2, 0, 0, 2, 1]
    assert data.of(**tensors()).owner is None


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ({"owner": torch.zeros(5, dtype=torch.int64)}, r"owner is int64 of shape \(5,\).*each of the 6 rows"),
        ({"owner": torch.zeros(6)}, "owner is float32"),
        ({"owner": torch.tensor([0, 0, -1, 0, 0, 0])}, r"owner\[2\] is -1. Number the owners from 0"),
        ({"test_owner": torch.tensor([0, -2, 0])}, r"test_owner\[1\] is -2"),
    ],
)
def test_bad_owners(owners: dict[str, torch.Tensor], message: str):
    with pytest.raises(DataError, match=message):
        Dataset("own", **tensors(), classes=3, **owners)


def test_labels_beyond_the_classes():
    with pytest.raises(DataError, match=r"'named': test_y\[2\] is 2, but with 2 classes a label lies in 0\.\.1"):
        Dataset("named", **{**tensors(), "y": torch.zeros(6, dtype=torch.int64)}, classes=2)
    with pytest.raises(DataError, match=r"y is int32, not int64"):
        Dataset("named", **{**tensors(), "y": torch.zeros(6, dtype=torch.int32)}, classes=3)


@pytest.mark.parametrize("split", ["", "test_"])
def test_empty_splits(split: str):
    empty = {f"{split}x": torch.zeros(0, 2), f"{split}y": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(DataError, match=f"{split}x of shape .* is empty"):
        Dataset.of(**{**tensors(), **empty})


def test_tensors_on_different_devices():
    with pytest.raises(DataError, match="different devices"):
        Dataset("own", **{**tensors(), "y": torch.zeros(6, dtype=torch.int64, device="meta")}, classes=3)
