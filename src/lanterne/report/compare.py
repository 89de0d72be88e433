"""Several run directories side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lanterne.report.equal import equal
from lanterne.report.plots import plot_cells
from lanterne.report.prices import At
from lanterne.report.records import CellRecords, RunRecords, load_runs
from lanterne.report.summary import summarise
from lanterne.report.tables import as_json


def compare(
    paths: Iterable[str | Path], targets: Sequence[float] = (), at: Sequence[At] | None = None
) -> dict[str, Any]:
    """All algorithms of several runs, and in what the runs themselves differ.

    A label that occurs in more than one run gets its run's name in front: `demo/salf`.

    Args:
        paths: run directories, none twice.
        targets: accuracies between 0 and 1, beside the default one, which is computed over all runs.
        at: of `time`, `bytes` and `samples`: at equal budgets of what accuracies are compared; by default of each that
            all runs know.

    Returns:
        A JSON object: `runs` (name, path, algorithms), `differences` (each setting that the runs do not share, with
        its value by run; null where a run lacks it), `targets` and `algorithms` as in `as_json`; the latter are what
        `table` and `markdown` take; and `equal`, as `equal` returns it.

    Raises:
        ConfigError: a directory that is missing, damaged or no run, a target that is no accuracy, or a budget that was
            asked for and that a run does not know.
    """
    runs = load_runs(paths)
    names = _names(runs)
    cells = _merged(names, runs)
    return {
        "runs": [
            {"name": name, "path": str(run.path), "algorithms": list(dict.fromkeys(cell.label for cell in run.cells))}
            for name, run in zip(names, runs, strict=True)
        ],
        "differences": _differences(names, runs),
        **as_json(summarise(cells, targets)),
        "equal": equal(cells, at),
    }


def plot_compare(paths: Iterable[str | Path], out: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw accuracy, device classes and accuracy at equal budgets over several runs.

    A timeline belongs to one fleet, and so to one run.

    Args:
        paths: run directories, none twice.
        out: the folder for the pictures; made if absent.
        formats: of `png`, `svg`, `pdf`.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ConfigError: a directory that is missing, damaged or no run, or a format that cannot be drawn.
        RunError: a file could not be written.
    """
    runs = load_runs(paths)
    return plot_cells(_merged(_names(runs), runs), Path(out), formats, ("accuracy", "classes", "equal"))


def _names(runs: Sequence[RunRecords]) -> list[str]:
    """Each run's directory name, with as many parents as it takes to tell the runs apart."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _merged(names: Sequence[str], runs: Sequence[RunRecords]) -> list[CellRecords]:
    owners: dict[str, set[str]] = {}
    for name, run in zip(names, runs, strict=True):
        for cell in run.cells:
            owners.setdefault(cell.label, set()).add(name)
    return [
        replace(cell, label=f"{name}/{cell.label}") if len(owners[cell.label]) > 1 else cell
        for name, run in zip(names, runs, strict=True)
        for cell in run.cells
    ]


def _differences(names: Sequence[str], runs: Sequence[RunRecords]) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all runs, by dotted key."""
    flat = [dict(_flatten(run.settings)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {
        key: dict(zip(names, found, strict=True))
        for key, found in values.items()
        if any(value != found[0] for value in found)
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str | list) else str(value)
