"""Numbers from rows: accuracy at equal virtual time, time to a target, and whether a fleet has settled.

A row is of one cell at one time; `Rows` are those of one method in one setting, over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median, stdev
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]

#: From this share of a run's time on lies its last fifth.
LAST_FIFTH = 0.8
#: A target is this share of what FedAvg reaches without stragglers.
TARGET = 0.95


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds: mean and standard deviation (divided by n - 1) of those that know it, and how many do."""

    mean: float
    deviation: float
    known: int
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """From one value per seed, NaN where it is not known."""
        every = list(values)
        known = [v for v in every if math.isfinite(v)]
        mean = fmean(known) if known else math.nan
        return cls(mean, stdev(known) if len(known) > 1 else math.nan, len(known), len(every))


def by_seed(rows: Rows) -> dict[int, list[Row]]:
    """The rows of each seed, in time."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row["share"])):
        found.setdefault(row["seed"], []).append(row)
    return found


def at(rows: Rows, share: float, column: str = "accuracy") -> Spread:
    """A column at one share of the time, over seeds; not known for a seed that had diverged by then."""
    return _over_seeds(rows, lambda own: next((_number(r, column) for r in own if r["share"] == share), math.nan))


def at_the_end(rows: Rows, column: str = "accuracy") -> Spread:
    """The mean of a column over the last fifth of the time, over seeds; not known for a seed that diverged."""

    def end(own: Rows) -> float:
        last = [_number(row, column) for row in own if row["share"] >= LAST_FIFTH]
        return fmean(last) if last else math.nan

    return _over_seeds(rows, end)


def deadlines_to(rows: Rows, target: float) -> Spread:
    """The first time of judgement at which the accuracy was at least a target, in deadlines, over seeds."""

    def first(own: Rows) -> float:
        hit = next((row for row in own if _number(row, "accuracy") >= target), None)
        return math.nan if hit is None else float(hit["virtual_seconds"] / hit["deadline"])

    return _over_seeds(rows, first)


def target_of(rows: Rows) -> float:
    """The accuracy to be reached: 95 % of what these rows reach at their end, down to a tenth of a per cent.

    Args:
        rows: of FedAvg without stragglers.
    """
    end = at_the_end(rows).mean
    return math.nan if math.isnan(end) else math.floor(TARGET * end * 1000) / 1000


def movement(rows: Rows) -> Spread:
    """By how much the accuracy changes over the last fifth, over seeds.

    For each seed it is the change of the line whose slope is the median of the slopes between all pairs of judgements
    (Theil and Sen): one bad judgement does not tilt it.
    """

    def change(own: Rows) -> float:
        last = [(row["share"], _number(row, "accuracy")) for row in own if row["share"] >= LAST_FIFTH]
        slopes = [(v - u) / (b - a) for (a, u), (b, v) in combinations(last, 2)]
        return median(slopes) * (1 - LAST_FIFTH) if slopes else math.nan

    return _over_seeds(rows, change)


def _over_seeds(rows: Rows, of: Callable[[Rows], float]) -> Spread:
    return Spread.of(of(own) for own in by_seed(rows).values())


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    return math.nan if value is None else float(value)
