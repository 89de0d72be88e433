import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.parquet_files import HUGGING_FACE, encoded, pictures, write
from lanterne.data import load
from lanterne.errors import DataError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digts", r"no data set 'digts'.*Did you mean 'digits'\?.*Accepted are 'digits'"),
        ("synthetik:1,1", r"no data set 'synthetik:1,1'.*Did you mean 'synthetic'"),
        ("synthetic", "needs two numbers from 0 on: alpha.*Write for instance 'synthetic:1,1', or 'synthetic:iid'"),
        ("synthetic:1", "'synthetic:1' needs two numbers"),
        ("synthetic:1,-1", "needs two numbers from 0 on"),
        ("synthetic:1,inf", "needs two numbers from 0 on"),
        ("synthetic:1,2,3", "needs two numbers from 0 on"),
        ("digits:3", "digits has no argument. Write 'digits'"),
        ("mine/data.parquet", "neither bundled nor a path that exists. Accepted are .*'owner/name' of a data set"),
        ("no/such/folder.parquet", "neither bundled nor a path"),
        ("~/no such folder", "neither bundled nor a path"),
    ],
)
def test_no_such_data_set(spec, message, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(DataError, match=message):
        load(spec)


def test_a_misspelt_path(folder):
    with pytest.raises(DataError, match=f"Did you mean '{folder / 'train.parquet'}'"):
        load(str(folder / "tran.parquet"))


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"data\.csv' is a file, but not of a kind"):
        load(str(tmp_path / "data.csv"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_files(folder, split):
    (folder / f"{split}.parquet").rename(folder / "other.parquet")
    with pytest.raises(DataError, match=rf"neither {split}\.parquet nor {split}\*\.parquet \(it holds other\.parquet"):
        load(str(folder))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"is empty, so that it holds no \.parquet file"):
        load(str(tmp_path))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"<html>404</html>"])
def test_damaged_files(folder, damage):
    path = folder / "test.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"test\.parquet cannot be read as a Parquet file \(.*download it again"):
        load(str(folder))


def test_damaged_pages(folder):
    path = folder / "test.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.parquet"):
        load(str(folder))


def test_no_rows(folder):
    pq.write_table(pq.read_table(folder / "test.parquet").slice(0, 0), folder / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet has no rows"):
        load(str(folder))


def test_too_few_rows_to_split(tmp_path):
    path = write(tmp_path / "few.parquet", image=pictures(3, 2, 2), label=[0, 1, 2])
    with pytest.raises(DataError, match="has 3 rows, fewer than three of any class"):
        load(str(path))


def change(path: Path, name: str, row: int, value) -> None:
    """Replace one cell."""
    table = pq.read_table(path)
    cells = table.column(name).to_pylist()
    cells[row] = value
    place = table.schema.get_field_index(name)
    column = pa.array(cells) if isinstance(value, float | str) else pa.array(cells, table.schema.field(name).type)
    pq.write_table(table.set_column(place, name, column), path)


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("label", 7, -1, "column 'label', row 7: the label -1 is negative, which usually means"),
        ("label", 5, None, "column 'label', row 5: there is no label"),
        ("label", 5, 0.5, "no column of integers; its columns are: image .*label \\(double\\)"),
        ("image", 3, {"bytes": None, "path": "3.png"}, "column 'image', row 3: there is no image in the file, at most"),
        ("image", 3, None, "column 'image', row 3: there is no image in the file"),
        ("image", 9, {"bytes": b"nonsense"}, "column 'image', row 9: the image cannot be decoded .*damaged"),
        ("image", 9, {"bytes": b""}, "column 'image', row 9: the image cannot be decoded"),
        (
            "image",
            9,
            {"bytes": encoded(pictures(1, 5, 4)[0])[:50]},
            "column 'image', row 9: the image cannot be decoded",
        ),
        ("image", 9, {"bytes": encoded(pictures(1, 4, 5)[0])}, "row 9: the image is 5x4 pixels, that of row 0 4x5"),
        ("image", 9, {"bytes": encoded(Image.new("I;16", (4, 5)))}, "row 9: .*mode I;16 has more than 8 bits"),
    ],
)
def test_bad_rows(folder, name, row, value, message):
    change(folder / "train.parquet", name, row, value)
    with pytest.raises(DataError, match=rf"train\.parquet.*{message}"):
        load(str(folder))


def test_labels_beyond_the_names(tmp_path):
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", HUGGING_FACE, image=pictures(5, 2, 2), label=[0, 1, 4, 5, 0])
    with pytest.raises(DataError, match=r"row 2: the label 4 is not one of the 4 classes that the file names, 0\.\.3"):
        load(str(tmp_path))


def test_labels_with_gaps(folder):
    change(folder / "train.parquet", "label", 4, 6)
    with pytest.raises(
        DataError,
        match=r"training row 4: the label is 6, but no row has the label 3: the labels show 4 classes, and run "
        r"up to 6\. Number the classes from 0 without gaps, or say how many there are, with the names of a ClassLabel",
    ) as error:
        load(str(folder))
    assert "Dataset" not in str(error.value)
    change(folder / "train.parquet", "label", 4, 0)
    change(folder / "test.parquet", "label", 3, 6)
    with pytest.raises(DataError, match=r"test row 3: the label is 6, but no row has the label 3"):
        load(str(folder))


def test_labels_with_gaps_in_a_file_that_is_divided(tmp_path):
    """The row is that of the file, not of the part into which it would have come."""
    path = write(tmp_path / "all.parquet", image=pictures(40, 2, 2), label=[0, 1, 2, 0] * 9 + [0, 9, 1, 2])
    with pytest.raises(DataError, match=r"'all', row 37: the label is 9, but no row has the label 3"):
        load(str(path))


@pytest.mark.parametrize("label", [2**63 + 5, 2**63, 2**64 - 1])
def test_labels_beyond_any_number_of_a_class(tmp_path, label):
    labels = pa.array([0, 1, label, 2], pa.uint64())
    for split in "train", "test":
        pq.write_table(pa.table({"image": [[1.0, 2.0]] * 4, "label": labels}), tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=rf"column 'label', row 2: the label {label} is too large for the number of a"):
        load(str(tmp_path))


def test_labels_in_words_are_to_be_numbered(tmp_path):
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", image=pictures(2, 2, 2), label=["a", "b"])
    with pytest.raises(DataError, match=r"label \(string\)\. Number the classes from 0 .*ClassLabel"):
        load(str(tmp_path))
    with pytest.raises(
        DataError, match=r"'label' is string, but data\.label needs integers\. Number the classes from 0"
    ):
        load(str(tmp_path), label="label")


def test_no_images(tmp_path):
    for split in "train", "test":
        write(tmp_path / f"{split}.parquet", sentence=["a", "b"], words=[["a"], ["b"]], label=[0, 1])
    with pytest.raises(
        DataError, match=r"no column of encoded images .*sentence \(string\), words .*Add a column of images"
    ):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (4, [[1.0, 2.0], [3.0]], "row 4: the list is missing, empty or of another length"),
        (4, [[1.0, 2.0]], "row 4: the list is missing, empty or of another length"),
        (4, None, "row 4: the list is missing"),
        (0, None, "row 0: the list is missing"),
        (4, [[1.0, 2.0], None], "row 4: the list is missing"),
        (4, [[1.0, 2.0], [3.0, None]], "row 4: a number is missing or not finite"),
        (4, [[1.0, 2.0], [3.0, float("inf")]], "row 4: a number is missing or not finite"),
        (4, [[1.0, 2.0], [3.0, 1e300]], "row 4: a number is missing or not finite"),
    ],
)
def test_bad_lists(tmp_path, row, value, message):
    rows = [[[1.0, 2.0], [3.0, 4.0]] for _ in range(6)]
    write(tmp_path / "test.parquet", image=rows, label=[0, 1] * 3)
    rows[row] = value
    write(tmp_path / "train.parquet", image=rows, label=[0, 1] * 3)
    with pytest.raises(DataError, match=rf"train\.parquet, column 'image'.*{message}"):
        load(str(tmp_path))


def test_lists_that_differ_between_row_groups(tmp_path):
    write(tmp_path / "test.parquet", image=[[1.0, 2.0]], label=[0])
    table = pa.table({"image": [[1.0, 2.0]] * 2 + [[1.0, 2.0, 3.0]] * 2, "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    with pytest.raises(DataError, match=r"train\.parquet.*(another length|different shapes)"):
        load(str(tmp_path))


def test_splits_and_files_of_different_shapes(folder):
    write(folder / "test.parquet", image=pictures(4, 6, 4), label=[0, 1, 2, 0])
    with pytest.raises(
        DataError, match=r"training image has shape \(1, 5, 4\) \(channels first\), a test image \(1, 6, 4\)"
    ):
        load(str(folder))
    (folder / "train.parquet").rename(folder / "train-0.parquet")
    write(folder / "train-1.parquet", image=pictures(4, 6, 4), label=[0, 1, 2, 0])
    with pytest.raises(
        DataError, match=r"train-1\.parquet: its samples have shape \(1, 6, 4\).*train-0\.parquet \(1, 5"
    ):
        load(str(folder))
