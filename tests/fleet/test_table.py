"""Fleets from files: what is written is what is read, and every bad cell is named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lanterne.errors import FleetError
from lanterne.fleet import Device, Fleet, Server, read_table

ROWS: list[dict[str, Any]] = [
    {
        "flops": 1e9, "memory": math.inf, "down": 1e6, "up": 5e5, "latency": 0.02, "overhead": 0.001,
        "dropout": 0.1, "failure": 0.0, "period": 60.0, "tier": "phone", "available": "0:10 20:30.5",
    },
    {
        "flops": 2.5e8, "memory": 1e9, "down": math.inf, "up": math.inf, "latency": 0.0, "overhead": 0.0,
        "dropout": 0.0, "failure": 1.0, "period": math.inf, "tier": "straggler", "available": None,
    },
]  # fmt: skip
DEVICES = [
    Device(1e9, math.inf, 1e6, 5e5, 0.02, 0.001, 0.1, 0.0, ((0.0, 10.0), (20.0, 30.5)), 60.0, "phone"),
    Device(2.5e8, 1e9, failure=1.0, tier="straggler"),
]


def write(folder: Path, kind: str, columns: dict[str, list[Any]]) -> Path:
    """A table of either kind; None is an empty cell."""
    path = folder / f"fleet.{kind}"
    if kind == "csv":
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_is_written_is_what_is_read(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, {name: [row[name] for row in ROWS] for name in ROWS[0]})
    fleet = read_table(path, None, 3, Server(flops=5.0), detection=0.5, rejoin=2.0)
    assert list(fleet.devices) == DEVICES
    assert (fleet.server, fleet.detection, fleet.rejoin) == (Server(flops=5.0), 0.5, 2.0)
    assert not fleet.always_available
    assert fleet.seed == read_table(str(path), 2, 3).seed != read_table(path, 2, 4).seed
    assert list(read_table(path, 1, 3).devices) == DEVICES[:1]


def test_rows_that_say_the_same_share_a_device(tmp_path: Path) -> None:
    devices = read_table(write(tmp_path, "csv", {"flops": [1, 2] * 50, "tier": ["a", "b"] * 50}), None, 0).devices
    assert [d.flops for d in devices] == [1.0, 2.0] * 50
    assert len({id(d) for d in devices}) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_may_be_left_out_and_in_any_order(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, {"tier": ["a", None, ""], "flops": [1, 2, 3]})
    assert list(read_table(path, None, 0).devices) == [
        Device(1.0, tier="a"), Device(2.0, tier="device"), Device(3.0, tier="device"),
    ]  # fmt: skip


def test_windows_that_look_like_times_of_day_are_windows(tmp_path: Path) -> None:
    """A reader that guesses kinds would take 10:20 for twenty past ten, and 7 for a number that is no name."""
    path = write(tmp_path, "csv", {"flops": [1, 2], "available": ["10:20", "11:30"], "tier": ["7", "008"]})
    devices = read_table(path, None, 0).devices
    assert [d.available for d in devices] == [((10.0, 20.0),), ((11.0, 30.0),)]
    assert [d.tier for d in devices] == ["7", "008"]


# Cells that are bad in either kind of file, as they stand there.
CELLS: list[tuple[str, Any, str]] = [
    ("flops", -1.0, "row 2: flops of a device is -1.0, .* Give a number above 0"),
    ("flops", 0.0, "row 2: flops of a device is 0.0"),
    ("flops", math.nan, "row 2, column 'flops' is '?nan'?, which is not a number. Give one"),
    ("flops", None, "row 2, column 'flops' is empty. Give a number, or leave the whole column out"),
    ("latency", math.inf, "row 2: latency of a device is inf"),
    ("dropout", 1.5, "row 2: dropout of a device is 1.5, but it is a probability"),
    ("memory", None, "row 2, column 'memory' is empty"),
]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("column", "value", "message"), CELLS)
def test_a_bad_cell_is_named_with_its_row_and_column(
    kind: str, column: str, value: Any, message: str, tmp_path: Path
) -> None:
    columns = {"flops": [1.0, 1.0, 1.0], "tier": ["a", "b", "c"], column: [0.5, value, 0.5]}
    path = write(tmp_path, kind, columns)
    with pytest.raises(FleetError, match=f"^{re.escape(str(path))}, {message}"):
        read_table(path, None, 0)
    assert len(read_table(path, 1, 0)) == 1  # a row that nobody asked for is not read


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("flops", "fast", "row 2, column 'flops' is 'fast'. Give a number"),
        ("flops", "true", "row 2, column 'flops' is 'true'. Give a number"),
        ("flops", "2020-01-01", "row 2, column 'flops' is '2020-01-01'. Give a number"),
        ("up", "5 MB/s", "row 2, column 'up' is '5 MB/s'. Give a number"),
        ("available", "0-60", "row 2, column 'available' is '0-60'. Write from:to in seconds"),
        ("available", "0:60 120", "row 2, column 'available' is '0:60 120'. Write from:to in seconds"),
        ("available", "0:60:5", "row 2, column 'available' is '0:60:5'. Write from:to"),
        ("available", "noon:60", "row 2, column 'available' is 'noon:60'. Write from:to"),
        ("available", "50:70 0:60", "row 2: available of a device holds 0:60, .* ascend"),
        ("available", "60:0", "row 2: available of a device holds 60:0"),
        ("available", "0:nan", "row 2: available of a device holds 0:nan"),
    ],
)
def test_bad_text_is_named_with_its_row_and_column(column: str, value: str, message: str, tmp_path: Path) -> None:
    good = "0:60" if column == "available" else "1"
    path = write(tmp_path, "csv", {"flops": ["1", "1"], column: [good, value]})
    with pytest.raises(FleetError, match=message):
        read_table(path, None, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"flops": [True, False]}, "row 1, column 'flops' is True"),
        ({"flops": [[1.0], [2.0]]}, r"row 1, column 'flops' is \[1\.0\]\. Give a number"),
        ({"flops": [1.0], "available": [[0.0, 60.0]]}, r"row 1, column 'available' is \[0\.0, 60\.0\]\. Write from:to"),
    ],
)
def test_cells_of_other_kinds_are_refused(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=message):
        read_table(write(tmp_path, "parquet", columns), None, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a table of devices: .* Give a CSV or Parquet file with a header"),
        ("flops\n", "has no rows, so the fleet would be empty. Give one row a device"),
        ("flop\n1\n", "has a column 'flop' that no device has. Did you mean 'flops'"),
        ("flops,colour\n1,red\n", "has a column 'colour' that no device has. Choose from: available, down"),
        ("flops,flops\n1,2\n", "has two columns 'flops'"),
        ("flops,class\n1,a\n", "has a column 'class' that no device has. Did you mean 'tier'"),
        ("flops,pace\n1,2\n", "has a column 'pace' that no device has"),
        ("up\n1\n", "has no column 'flops', so no device's speed is known. Add it, in FLOP/s"),
        ("flops,up\n1,2,3\n", "cannot be read as a table of devices"),
        ("1e9\n2e9\n", "has a column '1e9' that no device has"),  # no header
    ],
)
def test_a_table_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.csv"
    path.write_text(text)
    with pytest.raises(FleetError, match=f"^{re.escape(str(path))} {message}"):
        read_table(path, None, 0)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", {"flops": [1, 2]})
    with pytest.raises(
        FleetError, match=r"describes 2 devices, but there are 3 clients\. Add rows, or ask for at most 2"
    ):
        read_table(path, 3, 0)
    assert isinstance(read_table(path, 2, 0), Fleet)


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.parquet"])
def test_a_file_that_is_missing_or_damaged_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(FleetError, match="cannot be read as a table of devices"):
        read_table(path, None, 0)
    path.write_bytes(b"PAR1\xff\x00\xfe garbage")
    with pytest.raises(FleetError, match=re.escape(str(path))):
        read_table(path, None, 0)
