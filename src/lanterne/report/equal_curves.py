"""Accuracy at equal virtual time, equal bytes and equal samples: the picture behind `lanterne compare --at`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lanterne.report import style
from lanterne.report.curves import entries, scale
from lanterne.report.equal import Equal, equal
from lanterne.report.prices import PRICES, Price
from lanterne.report.records import CellRecords, number
from lanterne.report.summary import by_label
from lanterne.report.units import unit

_LEFT, _RIGHT, _GAP, _HEIGHT, _TOP = 0.62, 0.2, 0.3, 2.5, 0.12
_LEAST_RANGE = 10.0
_Numbers = NDArray[np.float64]


def figure(cells: Sequence[CellRecords]) -> Figure | None:
    """A panel for each kind of budget, as far as all runs have spent; strokes where the tables read the accuracies.

    A line is the mean over the seeds of the last evaluated round's accuracy, and therefore a staircase; it ends where
    a seed has diverged.

    Args:
        cells: cells with rows.

    Returns:
        The picture, or None where the cells cannot be compared at any budget.
    """
    found = [entry for entry in equal(cells) if entry["why_not"] is None]
    if not found:
        return None
    groups = by_label(cells)
    looks = style.colours(list(groups))
    made = style.canvas(1.0)
    legend = style.legend(made, *entries(groups, looks), _LEFT, _TOP)
    above = _TOP + legend + 0.16
    made.set_size_inches(style.WIDTH, above + _HEIGHT + 0.55)
    style.place(made, made.legends[0], _LEFT, _TOP)

    width = (style.WIDTH - _LEFT - _RIGHT - _GAP * (len(found) - 1)) / len(found)
    first: Axes | None = None
    for index, entry in enumerate(found):
        axes = style.panel(made, _LEFT + index * (width + _GAP), above, width, _HEIGHT, first)
        _draw(axes, entry, groups, looks)
        axes.tick_params(left=False, labelleft=first is None)
        first = first or axes
    assert first is not None
    low, high = first.get_ylim()
    spare = max(0.0, _LEAST_RANGE - (high - low)) / 2
    first.set_ylim(max(low - spare, -2.0), min(high + spare, 102.0))
    first.set_ylabel("accuracy (%)")
    return made


def _draw(axes: Axes, entry: Equal, groups: dict[str, list[CellRecords]], looks: dict[str, style.Look]) -> None:
    price, largest = PRICES[entry["at"]], entry["budgets"][-1]
    size = unit(price.kind, largest)[0]
    axes.grid(False, axis="x")
    for budget in entry["budgets"]:
        axes.axvline(budget / size, color=style.PALE, linewidth=0.8, zorder=1)
    for rank, (label, cells) in enumerate(groups.items()):
        colour, dash = looks[label]
        x, y = _steps(cells, price, largest)
        axes.step(x / size, y, where="post", color=colour, linestyle=dash, linewidth=1.7, zorder=3 + rank / 100)
        marks = [stat["mean"] for stat in entry["accuracy"][label]]
        axes.plot(
            [budget / size for budget, mean in zip(entry["budgets"], marks, strict=True) if mean is not None],
            [100 * mean for mean in marks if mean is not None],
            linestyle="", marker="o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6,
            zorder=4 + rank / 100,
        )  # fmt: skip
    scale(axes, price, 0.0, largest)


def _steps(cells: Sequence[CellRecords], price: Price, largest: float) -> tuple[_Numbers, _Numbers]:
    """Where any seed was evaluated, up to the end, and the mean of what each seed's last evaluation was there."""
    spent = [np.array([price.of(row) for row in cell.rows]) for cell in cells]
    places = np.unique(np.concatenate([*spent, [largest]]))
    places = places[(places >= max(seed[0] for seed in spent)) & (places <= largest)]
    known = [np.array([100 * number(row, "accuracy") for row in cell.rows]) for cell in cells]
    read = [y[np.searchsorted(x, places, side="right") - 1] for x, y in zip(spent, known, strict=True)]
    return places, np.mean(read, axis=0)
