"""A run directory, read: what every table and picture is made from.

    runs/demo/config.toml                      the experiment
    runs/demo/cells/<label>-seed<seed>/        one algorithm, one seed
        rows.jsonl                             one evaluated round a line, cumulative
        timeline.jsonl                         one settled request a line
        result.json                            the cell's outcome, absent while it is unfinished

Half-written ends are ignored; what else cannot be read is refused with the file, the line and the repair.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lanterne.errors import ConfigError
from lanterne.report.jsonl import Record, lines, whole

_CELL = re.compile(r"(?P<label>.+)-seed(?P<seed>-?\d+)")


@dataclass(frozen=True, slots=True)
class CellRecords:
    """What one algorithm left behind with one seed.

    Attributes:
        label: the algorithm's name in tables and pictures.
        seed: the run's seed.
        path: the cell's directory.
        rows: one mapping per evaluated round, in order; quantities are cumulative; empty before the first evaluation.
        result: the object written when the cell ended; None while it is unfinished.
    """

    label: str
    seed: int
    path: Path
    rows: tuple[Record, ...]
    result: Record | None

    @property
    def finished(self) -> bool:
        """Whether the cell ran to its end, diverged ones included."""
        return self.result is not None

    @property
    def diverged(self) -> int | None:
        """The round in which training diverged, or None."""
        found = None if self.result is None else self.result.get("diverged")
        return None if found is None else int(found)

    def timeline(self) -> Iterator[Record]:
        """The settled requests in the order of the file, read as they are asked for: a timeline may outgrow memory.

        Yields:
            One mapping per request; times are absolute virtual seconds.

        Raises:
            ConfigError: the file is damaged before its last line.
        """
        yield from lines(self.path / "timeline.jsonl", ("client", "start", "arrived"))


@dataclass(frozen=True, slots=True)
class RunRecords:
    """One run directory.

    Attributes:
        path: the directory, as it was given.
        config: the text of its `config.toml`.
        cells: in the order in which the config names the algorithms, then by seed.
    """

    path: Path
    config: str
    cells: tuple[CellRecords, ...]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """The config as nested dictionaries."""
        return tomllib.loads(self.config)


def number(record: Record, key: str) -> float:
    """A number of a record, where absent, null and infinite all mean that it is not known.

    Args:
        record: a row, a request or a result.
        key: the name of the quantity.

    Returns:
        The number, or NaN.

    Examples:
        >>> number({"accuracy": 0.5}, "accuracy")
        0.5
        >>> number({"accuracy": None}, "accuracy")
        nan
    """
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def load_run(path: str | Path) -> RunRecords:
    """Read a run directory, finished or not.

    Args:
        path: the directory that `lanterne run --out` wrote.

    Returns:
        Its cells with all rows; timelines are left on disk until somebody iterates over them.

    Raises:
        ConfigError: the path is no run directory, or one that is damaged.
    """
    path = Path(path)
    config = _config(path)
    order = {name: position for position, name in reversed(list(enumerate(_words(tomllib.loads(config)))))}
    cells = [_cell(folder) for folder in _folders(path)]
    cells.sort(key=lambda cell: (order.get(cell.label, len(order)), cell.label, cell.seed))
    return RunRecords(path=path, config=config, cells=tuple(cells))


def load_runs(paths: Iterable[str | Path]) -> list[RunRecords]:
    """Read several run directories.

    Args:
        paths: directories, none of them twice.

    Raises:
        ConfigError: no path at all, the same directory twice, or one that `load_run` refuses.
    """
    seen: set[Path] = set()
    runs = []
    for path in map(Path, paths):
        if path.resolve() in seen:
            raise ConfigError(f"{path} is named twice: a run cannot be compared with itself. Name each directory once.")
        seen.add(path.resolve())
        runs.append(load_run(path))
    if not runs:
        raise ConfigError("No run directory was named. Write one or more, as in `lanterne compare runs/a runs/b`.")
    return runs


def _config(path: Path) -> str:
    """The text of `config.toml`, once it is sure that this is a run directory."""
    if not path.exists():
        raise ConfigError(f"There is no run directory {path}. Name one that `lanterne run --out` wrote.")
    if not (path / "config.toml").is_file() or not (path / "cells").is_dir():
        raise ConfigError(f"{path} is not a run directory: {_why_not(path)}")
    try:
        text = (path / "config.toml").read_text("utf-8")
        tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path / 'config.toml'} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(
            f"{path / 'config.toml'} is damaged ({error}): the experiment can no longer be told. "
            "Restore the file, or run the experiment again into a new directory."
        ) from error
    return text


def _why_not(path: Path) -> str:
    if not path.is_dir():
        return "it is a file. Name the directory that `lanterne run --out` wrote."
    if (path / "rows.jsonl").exists():
        return f"it is one cell of a run. Name the run itself: {path.resolve().parent.parent.name}."
    inside = sorted(entry.parent for entry in path.glob("*/config.toml") if (entry.parent / "cells").is_dir())
    if inside:
        return f"it holds {len(inside)} of them. Name one, as in {inside[0]}."
    absent = " and ".join(name for name in ("config.toml", "cells/") if not (path / name).exists())
    return f"{absent or 'its config.toml'} is missing. Name a directory that `lanterne run --out` wrote."


def _words(settings: object) -> Iterator[str]:
    """Every key and every string of the config in the order of the text."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, list):
        for item in settings:
            yield from _words(item)
    elif isinstance(settings, dict):
        for key, value in settings.items():
            yield str(key)
            yield from _words(value)


def _folders(path: Path) -> list[Path]:
    folders = [entry for entry in (path / "cells").iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise ConfigError(f"{path} holds no cell yet: the run ended before it began. Start it again.")
    return folders


def _cell(folder: Path) -> CellRecords:
    parts = _CELL.fullmatch(folder.name)
    if parts is None:
        raise ConfigError(
            f"{folder} is not a cell of a run: the name of a cell is <label>-seed<number>. Move it out of cells/."
        )
    rows = tuple(lines(folder / "rows.jsonl", ("round", "virtual_seconds", "accuracy")))
    return CellRecords(parts["label"], int(parts["seed"]), folder, rows, whole(folder / "result.json"))
