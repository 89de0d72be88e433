"""Which learning rate a method is given: the best of the grid on validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.harness.cells import read
from studies.harness.plan import Fleet, Method, Plan, Problem


def score(result: Mapping[str, Any]) -> float | None:
    """The mean accuracy over the last fifth of a run; None for one that diverged.

    Args:
        result: of a cell.
    """
    if result["diverged"] is not None:
        return None
    return fmean(row["accuracy"] for row in result["rows"] if row["share"] >= 0.8)


def scores(plan: Plan, problem: Problem, fleet: Fleet, method: Method, out: Path) -> dict[float, float | None] | None:
    """The score of each learning rate of the grid, or None unless all are known.

    Args:
        plan: for its grid.
        problem: what is learned.
        fleet: on which it is tuned.
        method: who learns it.
        out: the folder of results.
    """
    found = {lr: read(out, cell) for lr, cell in plan.tuning(problem, fleet, method).items()}
    if any(result is None for result in found.values()):
        return None
    return {lr: score(result) for lr, result in found.items() if result is not None}


def choose(found: Mapping[float, float | None]) -> float:
    """The learning rate with the best score; the smaller one of equals, and the smallest if all diverged.

    Args:
        found: scores by learning rate.

    Examples:
        >>> choose({0.01: 0.5, 0.1: 0.9, 1.0: None})
        0.1
        >>> choose({0.1: None, 0.01: None})
        0.01
    """
    return max(sorted(found), key=lambda lr: -1.0 if (known := found[lr]) is None else known)
