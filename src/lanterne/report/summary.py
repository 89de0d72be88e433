"""What the algorithms of a run achieved, over seeds: accuracy, for whom, how soon, and at what price.

A standard deviation is that of a sample (divided by n - 1), over seeds. A target is reached in the first evaluated
round whose accuracy is at least the target: nothing is interpolated, and nothing is extrapolated past the end of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import TypedDict

from lanterne.errors import ConfigError
from lanterne.report.jsonl import Record
from lanterne.report.prices import sent
from lanterne.report.records import CellRecords, number

_DEFAULT_SHARE = 0.9


class Stat(TypedDict):
    """A quantity over seeds; `mean` is None where no seed knows it, `std` where fewer than two do."""

    mean: float | None
    std: float | None
    n: int


class Reached(TypedDict):
    """How soon, and for how many bytes, an accuracy was reached.

    The three quantities are over all seeds, and therefore empty unless every seed reached the target: a mean over
    the lucky ones would flatter.
    """

    accuracy: float
    reached: int
    seeds: int
    virtual_seconds: Stat
    bytes: Stat
    rounds: Stat


class Summary(TypedDict):
    """One algorithm over its seeds. Accuracies and shares are between 0 and 1, times in seconds."""

    algorithm: str
    seeds: list[int]
    unfinished: list[int]
    diverged: dict[int, int]
    rounds: Stat
    accuracy: Stat
    best_accuracy: Stat
    accuracy_by_class: dict[str, Stat]
    accuracy_worst_tenth: Stat
    accuracy_spread: Stat
    virtual_seconds: Stat
    wall_seconds: Stat
    bytes_up: Stat
    bytes_down: Stat
    bytes: Stat
    bytes_by_category: dict[str, Stat]
    samples_trained: Stat
    flops: Stat
    memory_held: Stat
    memory_held_server: Stat
    wasted_share: Stat
    idle_share: Stat
    replies: dict[str, float]
    targets: list[Reached]


def summarise(cells: Iterable[CellRecords], targets: Sequence[float] = ()) -> list[Summary]:
    """Each algorithm of a run over its seeds.

    Args:
        cells: the cells of one run, or of several whose labels differ; order is kept.
        targets: accuracies between 0 and 1 whose time and bytes are wanted, beside `default_target`.

    Returns:
        One summary per label, in order of first appearance.

    Raises:
        ConfigError: a target that is not an accuracy.
    """
    cells = list(cells)
    for target in targets:
        if not 0 < target <= 1:
            meant = f" Write {target / 100:g} for {target:g} %." if 1 < target <= 100 else ""
            raise ConfigError(f"The target {target:g} is not an accuracy, which lies between 0 and 1.{meant}")
    default = default_target(cells)
    wanted = sorted({*targets, *([] if default is None else [default])})
    return [_summary(label, group, wanted) for label, group in by_label(cells).items()]


def by_label(cells: Iterable[CellRecords]) -> dict[str, list[CellRecords]]:
    """The cells of each algorithm, in order of first appearance."""
    groups: dict[str, list[CellRecords]] = {}
    for cell in cells:
        groups.setdefault(cell.label, []).append(cell)
    return groups


def default_target(cells: Iterable[CellRecords]) -> float | None:
    """Nine tenths of the best accuracy of a method that waits: what can be had if nobody is cut off.

    A method waits if no reply of its rows was partial or cancelled. Where every method cuts somebody off, the best of
    them stands in. Accuracies are means over seeds.

    Args:
        cells: the cells of the comparison.

    Returns:
        The accuracy, rounded down to a tenth of a per cent; None where no cell has an accuracy.
    """
    groups = by_label(cells)
    waiting = {label: group for label, group in groups.items() if all(_waits(cell) for cell in group)}
    best = [_stat(group, _best)["mean"] for group in (waiting or groups).values()]
    known = [accuracy for accuracy in best if accuracy]
    return math.floor(max(known) * _DEFAULT_SHARE * 1000) / 1000 if known else None


def classes_of(cells: Iterable[CellRecords]) -> list[str]:
    """The device classes that rows report on, in the order in which they are reported."""
    return list(dict.fromkeys(name for cell in cells for name in _part(_last(cell), "accuracy_by_class")))


def _summary(label: str, cells: Sequence[CellRecords], targets: Sequence[float]) -> Summary:
    def stat(key: str) -> Stat:
        return _stat(cells, lambda cell: number(_last(cell), key))

    def stats(key: str, names: Iterable[str]) -> dict[str, Stat]:
        parts = [_part(_last(cell), key) for cell in cells]
        return {name: stat_of([number(part, name) for part in parts]) for name in names}

    categories = dict.fromkeys(name for cell in cells for name in _part(_last(cell), "bytes"))
    return Summary(
        algorithm=label,
        seeds=[cell.seed for cell in cells],
        unfinished=[cell.seed for cell in cells if not cell.finished],
        diverged={cell.seed: cell.diverged for cell in cells if cell.diverged is not None},
        rounds=_stat(cells, _rounds),
        accuracy=stat("accuracy"),
        best_accuracy=_stat(cells, _best),
        accuracy_by_class=stats("accuracy_by_class", classes_of(cells)),
        accuracy_worst_tenth=stat("accuracy_worst_tenth"),
        accuracy_spread=stat("accuracy_spread"),
        virtual_seconds=stat("virtual_seconds"),
        wall_seconds=stat("wall_seconds"),
        bytes_up=stat("bytes_up"),
        bytes_down=stat("bytes_down"),
        bytes=_stat(cells, lambda cell: sent(_last(cell))),
        bytes_by_category=stats("bytes", categories),
        samples_trained=stat("samples_trained"),
        flops=stat("flops"),
        memory_held=stat("memory_held"),
        memory_held_server=stat("memory_held_server"),
        wasted_share=_stat(cells, _wasted),
        idle_share=_stat(cells, _idle),
        replies=_replies(cells),
        targets=[_reached(cells, target) for target in targets],
    )


def _last(cell: CellRecords) -> Record:
    """The state at the end: the result over the last row, which is all that an unfinished cell has."""
    return {**(cell.rows[-1] if cell.rows else {}), **(cell.result or {})}


def _part(record: Record, key: str) -> Record:
    return record.get(key) or {}


def _best(cell: CellRecords) -> float:
    stated = number(cell.result or {}, "best_accuracy")
    seen = [accuracy for row in cell.rows if math.isfinite(accuracy := number(row, "accuracy"))]
    return stated if math.isfinite(stated) else max(seen, default=math.nan)


def _rounds(cell: CellRecords) -> float:
    stated = number(cell.result or {}, "rounds")
    return stated if math.isfinite(stated) else number(_last(cell), "round")


def _wasted(cell: CellRecords) -> float:
    """The share of busy time whose work nobody used; busy time includes it."""
    end = _last(cell)
    busy = number(end, "busy_seconds")
    return number(end, "wasted_seconds") / busy if busy else math.nan


def _idle(cell: CellRecords) -> float:
    end = _last(cell)
    both = number(end, "busy_seconds") + number(end, "idle_seconds")
    return number(end, "idle_seconds") / both if both else math.nan


def _replies(cells: Sequence[CellRecords]) -> dict[str, float]:
    """The share of each outcome among the replies of the evaluated rounds."""
    counts: dict[str, float] = {}
    for cell in cells:
        for row in cell.rows:
            for outcome, count in _part(row, "replies").items():
                counts[outcome] = counts.get(outcome, 0) + count
    total = sum(counts.values())
    return {outcome: count / total for outcome, count in counts.items()} if total else {}


def _waits(cell: CellRecords) -> bool:
    replies = [_part(row, "replies") for row in cell.rows]
    return not any(reply.get("partial") or reply.get("cancelled") for reply in replies)


def _reached(cells: Sequence[CellRecords], target: float) -> Reached:
    first = [next((row for row in cell.rows if number(row, "accuracy") >= target), None) for cell in cells]
    rows = [row for row in first if row is not None]
    counted = rows if len(rows) == len(cells) else []
    return Reached(
        accuracy=target,
        reached=len(rows),
        seeds=len(cells),
        virtual_seconds=stat_of([number(row, "virtual_seconds") for row in counted]),
        bytes=stat_of([sent(row) for row in counted]),
        rounds=stat_of([number(row, "round") for row in counted]),
    )


def _stat(cells: Iterable[CellRecords], of: Callable[[CellRecords], float]) -> Stat:
    return stat_of([of(cell) for cell in cells])


def stat_of(values: Sequence[float], *, every: bool = False) -> Stat:
    """Mean and deviation of a quantity over seeds.

    Args:
        values: one for each seed; NaN where it is not known.
        every: whether nothing is said unless every seed knows it: a mean over the lucky ones would flatter.

    Examples:
        >>> stat_of([0.25, 0.75, math.nan])["mean"]
        0.5
        >>> stat_of([0.25, 0.75, math.nan], every=True)
        {'mean': None, 'std': None, 'n': 0}
    """
    known = [value for value in values if math.isfinite(value)]
    if every and len(known) < len(values):
        known = []
    return Stat(
        mean=fmean(known) if known else None,
        std=stdev(known) if len(known) > 1 else None,
        n=len(known),
    )
