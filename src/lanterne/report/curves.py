"""Accuracy against virtual time, rounds and bytes: the picture of a race."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from lanterne.report import style
from lanterne.report.prices import BYTES, ROUNDS, TIME, Price
from lanterne.report.records import CellRecords, number
from lanterne.report.summary import by_label
from lanterne.report.units import log_ticks, unit, unit_name

_LEFT, _RIGHT, _GAP, _HEIGHT = 0.62, 0.2, 0.3, 2.5
_LOG_RATIO = 4.0
_GRID = 400
_LEAST_RANGE = 10.0


_PANELS = (TIME, ROUNDS, BYTES)
_Curve = tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", "np.ndarray[tuple[int], np.dtype[np.float64]]"]


def figure(cells: Sequence[CellRecords]) -> Figure:
    """Three panels with a common vertical axis; a colour is an algorithm, a thin line a seed, a thick one their mean.

    Args:
        cells: cells with rows.

    Returns:
        The picture. A dot ends a run, a cross one that diverged. An axis is logarithmic where runs end in places so
        unequal that a linear one would crush the quick ones against its left end.
    """
    groups = by_label(cells)
    looks = style.colours(list(groups))
    made = style.canvas(1.0)
    legend = style.legend(made, *entries(groups, looks), _LEFT, 0.12)
    made.set_size_inches(style.WIDTH, 0.12 + legend + 0.16 + _HEIGHT + 0.55)
    style.place(made, made.legends[0], _LEFT, 0.12)

    width = (style.WIDTH - _LEFT - _RIGHT - _GAP * (len(_PANELS) - 1)) / len(_PANELS)
    first: Axes | None = None
    for index, panel in enumerate(_PANELS):
        axes = style.panel(made, _LEFT + index * (width + _GAP), 0.12 + legend + 0.16, width, _HEIGHT, first)
        _draw(axes, panel, groups, looks)
        axes.tick_params(left=False, labelleft=first is None)
        first = first or axes
    assert first is not None
    low, high = first.get_ylim()
    spare = max(0.0, _LEAST_RANGE - (high - low)) / 2
    first.set_ylim(max(low - spare, -2.0), min(high + spare, 102.0))
    first.set_ylabel("accuracy (%)")
    return made


def entries(groups: dict[str, list[CellRecords]], looks: dict[str, style.Look]) -> tuple[list[Line2D], list[str]]:
    """The legend: a line and a name for each algorithm, with what has become of its seeds.

    Args:
        groups: the cells of each algorithm.
        looks: of each, from `style.colours`.
    """
    handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=2.2) for colour, dash in looks.values()]
    names = []
    for label, cells in groups.items():
        states = {
            "diverged": sum(cell.diverged is not None for cell in cells),
            "unfinished": sum(not cell.finished for cell in cells),
        }
        told = [
            f"{count} of {len(cells)} seeds {state}" if len(cells) > 1 else state
            for state, count in states.items()
            if count
        ]
        names.append(style.short(label) + (f" ({', '.join(told)})" if told else ""))
    return handles, names


def _draw(axes: Axes, panel: Price, groups: dict[str, list[CellRecords]], looks: dict[str, style.Look]) -> None:
    curves = {label: [_curve(cell, panel) for cell in cells] for label, cells in groups.items()}
    every = [curve for found in curves.values() for curve in found if len(curve[0])]
    complete = [
        curve[0][-1]
        for label, found in curves.items()
        for cell, curve in zip(groups[label], found, strict=True)
        if cell.finished and cell.diverged is None and len(curve[0]) and curve[0][-1] > 0
    ]
    logarithmic = len(complete) > 1 and max(complete) >= _LOG_RATIO * min(complete)
    largest = max((float(curve[0][-1]) for curve in every), default=0.0)
    size = 1.0 if logarithmic else unit(panel.kind, largest)[0]
    # A logarithmic axis has no zero: what is true before training stands at its left end.
    low = min((float(x[x > 0][0]) for x, _ in every if (x > 0).any()), default=1.0) / 1.25 if logarithmic else 0.0
    for rank, (label, found) in enumerate(curves.items()):
        colour, dash = looks[label]
        several = len(found) > 1
        for cell, (x, y) in zip(groups[label], found, strict=True):
            if not len(x):
                continue
            if several or cell.diverged is not None:
                axes.plot(np.maximum(x, low) / size, y, color=colour, linestyle=dash, linewidth=0.7 if several else 1.6,
                          alpha=0.45 if several else 1.0, zorder=3 + rank / 100)  # fmt: skip
            if cell.diverged is not None:
                axes.plot(x[-1] / size, y[-1], marker="x", color=colour, markersize=7, markeredgewidth=1.8, zorder=6)
        mean = _mean([curve for cell, curve in zip(groups[label], found, strict=True) if cell.diverged is None])
        if mean is not None:
            x, y = np.maximum(mean[0], low) / size, mean[1]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.8 if several else 1.6, zorder=4 + rank / 100)
            axes.plot(x[-1], y[-1], marker="o", color=colour, markersize=5.5, markeredgecolor="white",
                      markeredgewidth=0.6, zorder=5)  # fmt: skip
    scale(axes, panel, low, largest)


def _curve(cell: CellRecords, panel: Price) -> _Curve:
    """Where a cell was, in base units, and its accuracy there in per cent; rows that lack one of them are left out."""
    points = [(panel.of(row), 100 * number(row, "accuracy")) for row in cell.rows]
    known = np.array([point for point in points if not any(map(math.isnan, point))], dtype=np.float64).reshape(-1, 2)
    return known[:, 0], known[:, 1]


def _mean(curves: Sequence[_Curve]) -> _Curve | None:
    """The mean over seeds as far as all of them go, between their own rows by straight lines; None without a seed."""
    curves = [curve for curve in curves if len(curve[0])]
    if len(curves) < 2:
        return curves[0] if curves else None
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    inner = np.unique(np.concatenate([x for x, _ in curves]))
    grid = inner[(inner >= start) & (inner <= end)]
    if len(grid) > _GRID:
        grid = grid[np.linspace(0, len(grid) - 1, _GRID).round().astype(int)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)


def scale(axes: Axes, panel: Price, low: float, largest: float) -> None:
    """Limits, ticks and the name of the horizontal axis.

    Args:
        axes: whose.
        panel: what it measures.
        low: where a logarithmic axis begins; 0 for a linear one.
        largest: the last value that is drawn.
    """
    size, symbol = unit(panel.kind, largest)
    if low:
        high = largest * 1.25
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        ticks, texts, between = log_ticks(panel.kind, low, high)
        axes.set_xticks(ticks, texts)
        axes.xaxis.set_minor_locator(FixedLocator(between))
        axes.xaxis.set_minor_formatter(NullFormatter())
        named = "log scale"
    else:
        high = largest / size
        axes.set_xlim(-0.03 * (high or 1.0), 1.04 * (high or 1.0))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.kind == "count") if high else FixedLocator([0.0]))
        named = unit_name(panel.kind, symbol)
    axes.set_xlabel(f"{panel.name} ({named})" if named else panel.name)
