import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data.parquet_files import HUGGING_FACE, encoded, pictures, write
from lanterne import rng
from lanterne.data import images, load
from lanterne.errors import DataError


def expected(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The equation, on arrays with channels first."""
    axes = (0, *range(2, train.ndim))
    mean, std = train.mean(axes, keepdims=True), train.std(axes, keepdims=True)
    return (train - mean) / std, (test - mean) / std


def same(data, train: np.ndarray, test: np.ndarray) -> None:
    assert data.x.dtype == data.test_x.dtype == torch.float32
    assert data.x.is_contiguous()
    x, test_x = expected(train.astype(np.float64), test.astype(np.float64))
    assert np.allclose(data.x.numpy(), x, atol=1e-5)
    assert np.allclose(data.test_x.numpy(), test_x, atol=1e-5)


def test_digits():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (data.name, data.sample_shape, data.classes, len(data), len(data.test_x)) == (
        "digits",
        (1, 8, 8),
        10,
        1438,
        359,
    )
    assert abs(data.x.double().mean()) < 1e-6
    assert abs(data.x.double().std() - 1) < 1e-3
    assert torch.equal(load("digits", seed=5).x, data.x)
    share = torch.bincount(data.test_y) / (torch.bincount(data.y) + torch.bincount(data.test_y))
    assert ((share - 0.2).abs() < 0.01).all()
    # Both parts together are the original, each row once.
    values, labels = load_digits(return_X_y=True)
    scale = (data.x.max() - data.x.min()) / 16
    rows = torch.cat([data.x, data.test_x]).flatten(1)
    rows = torch.cat([((rows - data.x.min()) / scale).round(), torch.cat([data.y, data.test_y])[:, None]], 1)
    assert sorted(rows.tolist()) == sorted(np.c_[values, labels].tolist())


def test_digits_has_no_columns():
    with pytest.raises(DataError, match="has no columns to choose from"):
        load("digits", label="label")


def test_grey_images_without_metadata(folder):
    data = load(str(folder))
    assert (data.name, data.sample_shape, data.classes) == (folder.name, (1, 5, 4), 3)
    assert data.y.tolist() == [0, 1, 2] * 4
    same(data, pictures(12, 5, 4)[:, None], pictures(4, 5, 4, seed=1)[:, None])


def test_colour_images_with_metadata(tmp_path):
    # Two integer columns and two of bytes: only the features tell which is which.
    extra = {"id": np.arange(6), "thumb": [b"x"] * 6}
    for split, seed in ("train", 0), ("test", 1):
        write(
            tmp_path / f"{split}.parquet",
            HUGGING_FACE,
            image=pictures(6, 4, 3, 3, seed=seed),
            label=np.arange(6) % 2,
            **extra,
        )
    data = load(str(tmp_path))
    assert data.classes == 4  # by the names
    same(data, pictures(6, 4, 3, 3).transpose(0, 3, 1, 2), pictures(6, 4, 3, 3, seed=1).transpose(0, 3, 1, 2))


def test_what_the_datasets_library_writes(tmp_path):
    shape = (6, 7)
    features = datasets.Features(
        {
            "pic": datasets.Array2D(shape=shape, dtype="float32"),
            "kind": datasets.ClassLabel(names=["x", "y"]),
            "row": datasets.Value("int64"),
        }
    )
    values = np.random.default_rng(0).normal(3, 2, (10, *shape)).astype(np.float32)
    table = datasets.Dataset.from_dict({"pic": values, "kind": [0, 1] * 5, "row": range(10)}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    table.to_parquet(tmp_path / "test.parquet")
    data = load(str(tmp_path))
    assert data.sample_shape == (1, 6, 7)
    same(data, values[:, None], values[:, None])


def test_images_that_the_datasets_library_writes(tmp_path):
    shown = [Image.fromarray(each) for each in pictures(6, 4, 4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    table = datasets.Dataset.from_dict({"image": shown, "label": [0, 1] * 3}, features=features)
    for split in "train", "test":
        table.to_parquet(tmp_path / f"{split}.parquet")
    same(load(str(tmp_path)), pictures(6, 4, 4)[:, None], pictures(6, 4, 4)[:, None])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_bytes(tmp_path, kind):
    cells = [encoded(each) for each in pictures(5, 3, 3)]
    for split in "train", "test":
        try:
            write(tmp_path / f"{split}.parquet", data=pa.array(cells, kind), y=np.arange(5, dtype=np.uint8))
        except pa.ArrowNotImplementedError:
            pytest.skip("this pyarrow does not write the type")
    same(load(str(tmp_path)), pictures(5, 3, 3)[:, None], pictures(5, 3, 3)[:, None])


@pytest.mark.parametrize(
    ("shape", "first"),
    [((7,), (7,)), ((4, 5), (1, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((4, 5, 3), (3, 4, 5)), ((2, 4, 5), (2, 4, 5))],
)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_lists_of_numbers(tmp_path, shape, first, dtype):
    values = pictures(6, *shape).astype(dtype)
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", image=values.tolist(), label=[0, 1] * 3)
    data = load(str(tmp_path))
    assert data.sample_shape == first
    if shape == (4, 5, 3):
        values = values.transpose(0, 3, 1, 2)
    if shape == (7,):
        values = values[:, None]
        data = type(data)("own", data.x[:, None], data.y, data.test_x[:, None], data.test_y, 2)
    same(data, values.reshape(6, -1, *data.sample_shape[1:]), values.reshape(6, -1, *data.sample_shape[1:]))


def test_fixed_size_lists_and_row_groups(tmp_path):
    values = np.random.default_rng(0).random(48).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(values), 4), 2)
    for split in "train", "test":
        pq.write_table(
            pa.table({"image": column, "label": [0, 1] * 3}), tmp_path / f"{split}.parquet", row_group_size=2
        )
    same(load(str(tmp_path)), values.reshape(6, 1, 2, 4), values.reshape(6, 1, 2, 4))


def test_a_constant_channel_is_only_shifted(tmp_path):
    values = np.full((5, 4, 3), 0.1)
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", image=values.tolist(), label=[0, 1, 0, 1, 0])
    assert load(str(tmp_path)).x.abs().max() < 1e-6


def test_large_offsets_lose_nothing(tmp_path):
    values = 1e4 + np.random.default_rng(0).random((300, 2, 2))
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", image=values.tolist(), label=[0, 1, 2] * 100)
    x = load(str(tmp_path)).x.double()
    assert abs(x.mean()) < 1e-2
    assert abs(x.std() - 1) < 1e-2


def test_modes_of_pictures(tmp_path):
    colour = Image.fromarray(pictures(1, 4, 4, 3)[0])
    flat = Image.new("L", (4, 4), 200)
    shown = [colour, colour.convert("RGBA"), flat.convert("P"), flat.convert("LA"), flat.convert("1"), flat]
    cells = [{"bytes": encoded(each), "path": None} for each in shown]
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", image=cells, label=np.arange(6) % 2)
    data = load(str(tmp_path))
    assert data.sample_shape == (3, 4, 4)
    assert torch.equal(data.x[0], data.x[1])
    assert torch.equal(data.x[2], data.x[5])  # grey in three channels
    assert torch.equal(data.x[3], data.x[5])


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_threads_decode_the_same(folder, monkeypatch, small):
    monkeypatch.setattr(images, "_SMALL", small)
    monkeypatch.setattr(images, "_TASK", 2)
    same(load(str(folder)), pictures(12, 5, 4)[:, None], pictures(4, 5, 4, seed=1)[:, None])


def test_several_files_of_a_split_come_in_order(tmp_path):
    for part in range(3):
        name = f"train-0000{part}-of-00003.parquet"
        write(tmp_path / name, image=pictures(4, 3, 3, seed=part), label=np.full(4, part))
    write(tmp_path / "test-00000-of-00001.parquet", image=pictures(4, 3, 3, seed=9), label=np.arange(4) % 3)
    data = load(str(tmp_path))
    assert data.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    same(
        data, np.concatenate([pictures(4, 3, 3, seed=p) for p in range(3)])[:, None], pictures(4, 3, 3, seed=9)[:, None]
    )


def test_one_file_is_split(tmp_path):
    path = write(tmp_path / "all.parquet", image=pictures(50, 3, 3), label=np.repeat([0, 1], [40, 10]))
    data = load(str(path))
    assert (data.name, len(data), len(data.test_x)) == ("all", 40, 10)
    assert data.test_y.tolist() == [0] * 8 + [1] * 2
    assert torch.equal(load(str(path)).x, data.x)
    assert not torch.equal(load(str(path), seed=1).x, data.x)
    order = rng.generator(0, "test split").permutation(50)
    test = np.sort(np.concatenate([order[order < 40][:8], order[order >= 40][:2]]))
    rows = pictures(50, 3, 3)[:, None]
    same(data, np.delete(rows, test, axis=0), rows[test])


def test_columns_by_name(tmp_path):
    fine, coarse = np.arange(6), np.arange(6) // 3
    columns = {"left": [{"bytes": encoded(each)} for each in pictures(6, 2, 2)], "fine": fine, "coarse": coarse}
    columns["right"] = columns["left"][::-1]
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", **columns)
    data = load(str(tmp_path), image="right", label="coarse")
    assert data.classes == 2
    same(data, pictures(6, 2, 2)[::-1, None], pictures(6, 2, 2)[::-1, None])
    with pytest.raises(
        DataError, match=r"several columns that could be the images \(left, right\).*data\.image='left'"
    ):
        load(str(tmp_path), label="fine")
    with pytest.raises(
        DataError, match=r"could be the labels \(fine, coarse\); its columns are.*Name one.*data\.label='fine'"
    ):
        load(str(tmp_path), image="left")
    with pytest.raises(DataError, match=r"has no column 'coarze'\. Did you mean 'coarse'\?"):
        load(str(tmp_path), image="left", label="coarze")
    with pytest.raises(DataError, match=r"the column 'left' is struct.*data\.label needs integers"):
        load(str(tmp_path), image="left", label="left")
    with pytest.raises(DataError, match=r"the column 'fine' is int64, but data\.image needs encoded images"):
        load(str(tmp_path), image="fine", label="coarse")


@pytest.mark.parametrize("metadata", [b"not json", b'"text"', b'{"info": []}', b'{"info": {"features": [1]}}'])
def test_broken_metadata_is_no_metadata(folder, metadata):
    table = pq.read_table(folder / "train.parquet").replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, folder / "train.parquet")
    assert len(load(str(folder))) == 12
