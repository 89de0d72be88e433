"""A fleet from a file: one row a device, CSV or Parquet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lanterne.errors import FleetError, nearest
from lanterne.fleet.device import NUMBERS, Device
from lanterne.fleet.fleet import Fleet, Server
from lanterne.rng import fold

#: What a file can say of a device.
COLUMNS = (*NUMBERS, "available", "tier")
#: What it cannot, for it is said of the whole fleet; by the names that the presets have for it.
FLEET_WIDE = ("server_flops", "machines", "server_memory", "detection", "rejoin")


def read_table(
    path: str | Path,
    clients: int | None,
    seed: int,
    server: Server | None = None,
    detection: float = 0.0,
    rejoin: float = 0.0,
) -> Fleet:
    """The fleet that a file describes.

    Columns are named as the fields of `Device`: `flops` (required), `memory`, `down`, `up`, `latency`, `overhead`,
    `dropout`, `failure`, `period`, `tier`, and `available` as `from:to` pairs in seconds, separated by spaces, as in
    `0:60 120:inf`. A column that is left out has its default. The devices whose `tier` is `straggler` are left out of
    the default deadline.

    Args:
        path: a `.csv` or `.parquet` file.
        clients: how many clients the experiment has; None takes as many as there are rows. Rows are given to clients in
            order; there must be enough of them.
        seed: of the run.
        server: what runs the server's half.
        detection: seconds until a lost device is noticed.
        rejoin: seconds after which a lost device is back.

    Raises:
        FleetError: for what cannot be read, naming the row and the column.
    """
    path = Path(path)
    columns = _read(path)
    for name in columns:
        if name not in COLUMNS:
            hint = "Did you mean 'tier'?" if name == "class" else nearest(name, COLUMNS)
            raise FleetError(f"{path} has a column {name!r} that no device has. {hint}")
    if "flops" not in columns:
        raise FleetError(f"{path} has no column 'flops', so no device's speed is known. Add it, in FLOP/s.")
    rows = len(columns["flops"])
    if clients is not None and rows < clients:
        raise FleetError(
            f"{path} describes {rows} devices, but there are {clients} clients. "
            f"Add rows, or ask for at most {rows} clients: left out, their number is that of the rows."
        )
    known: dict[Device, Device] = {}  # rows that say the same are one object: a large fleet has few kinds
    devices = []
    for row in range(rows if clients is None else clients):
        device = _device(path, columns, row)
        devices.append(known.setdefault(device, device))
    return Fleet(devices, fold(seed, "fleet"), server or Server(), detection, rejoin)


def _read(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        # Cells of a CSV file stay text: guessing would read a column of 10:20 as times of day.
        options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
        csv = path.suffix == ".csv"
        table = pyarrow.csv.read_csv(path, convert_options=options) if csv else pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise FleetError(
            f"{path} cannot be read as a table of devices: {error}. Give a CSV or Parquet file with a header."
        ) from error
    if not table.num_rows:
        raise FleetError(f"{path} has no rows, so the fleet would be empty. Give one row a device.")
    twice = [name for i, name in enumerate(table.column_names) if name in table.column_names[:i]]
    if twice:
        raise FleetError(f"{path} has two columns {twice[0]!r}, so it is not clear which one holds. Leave one out.")
    return {name: table[name].to_pylist() for name in table.column_names}


def _device(path: Path, columns: dict[str, list[Any]], row: int) -> Device:
    values: dict[str, Any] = {}
    for name, column in columns.items():
        value = column[row]
        where = f"{path}, row {row + 1}, column {name!r}"
        if name == "tier":
            values[name] = "device" if value is None or value == "" else str(value)
        elif name == "available":
            values[name] = _windows(where, value)
        else:
            if name == "period" and (value is None or value == ""):
                continue
            if value is None or value == "":
                raise FleetError(f"{where} is empty. Give a number, or leave the whole column out for the default.")
            try:
                values[name] = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                raise FleetError(f"{where} is {value!r}. Give a number.") from None
            if math.isnan(values[name]):
                raise FleetError(f"{where} is {value!r}, which is not a number. Give one.")
    try:
        return Device(**values)
    except FleetError as error:
        raise FleetError(f"{path}, row {row + 1}: {error}") from error


def _windows(where: str, value: object) -> tuple[tuple[float, float], ...] | None:
    if value is None or not str(value).strip():
        return None
    try:
        pairs = tuple((float(a), float(b)) for a, b in (part.split(":") for part in str(value).split()))
    except ValueError:
        raise FleetError(
            f"{where} is {value!r}. Write from:to in seconds, several separated by spaces, as in '0:60 120:inf'."
        ) from None
    return pairs
