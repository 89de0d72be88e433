"""Accuracy by device class: what dropping the slow does to the data that only the slow hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lanterne.report import style
from lanterne.report.records import CellRecords, number
from lanterne.report.summary import Stat, Summary, by_label, classes_of, summarise
from lanterne.report.units import percent

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
_ROW, _TOP, _BOTTOM, _EDGE = 0.42, 0.12, 0.52, 0.15


def figure(cells: Sequence[CellRecords]) -> Figure | None:
    """A row per algorithm: a mark per device class, a stroke for the global accuracy, a ring for the worst tenth.

    Args:
        cells: cells with rows.

    Returns:
        The picture, or None where no row reports accuracy by class. Marks are means over seeds, faint ones the seeds.
    """
    names = classes_of(cells)
    if not names:
        return None
    entries = summarise(cells)
    groups = by_label(cells)
    looks = style.colours(list(groups))
    shapes = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(names)}
    made = style.canvas(1.0)
    legend = style.legend(made, *_legend(shapes), _EDGE, _TOP)
    gaps = [_gap(entry) for entry in entries]
    heading = "gap between\nclasses (points)"
    left = _EDGE + 0.12 + style.text_width(made, [style.short(entry["algorithm"]) for entry in entries], 9.5, "bold")
    right = _EDGE + 0.15 + style.text_width(made, [*heading.split("\n"), *gaps], 8.5)
    head = _TOP + legend + 0.42
    body = _ROW * len(entries)
    made.set_size_inches(style.WIDTH, head + body + _BOTTOM)
    style.place(made, made.legends[0], _EDGE, _TOP)

    axes = style.panel(made, left, head, style.WIDTH - left - right, body)
    for row, (entry, gap) in enumerate(zip(entries, gaps, strict=True)):
        colour = looks[entry["algorithm"]][0]
        _faint(axes, row, groups[entry["algorithm"]], shapes, colour)
        _row(axes, row, entry, shapes, colour)
        axes.annotate(gap, (1, row), (right * 72 - _EDGE * 72, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", va="center_baseline", fontsize=9)  # fmt: skip
    axes.annotate(heading, (1, 1), (right * 72 - _EDGE * 72, 4), xycoords="axes fraction", textcoords="offset points",
                  ha="right", va="bottom", fontsize=8.5, color=style.QUIET)  # fmt: skip
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_yticks(range(len(entries)), [style.short(entry["algorithm"]) for entry in entries])
    for text, entry in zip(axes.get_yticklabels(), entries, strict=True):
        text.set(color=style.ink(looks[entry["algorithm"]][0]), fontweight="bold", fontsize=9.5)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -2.0), min(high, 102.0))
    axes.set_xlabel("accuracy on the data of each device class (%)")
    return made


def _legend(shapes: dict[str, str]) -> tuple[list[Line2D], list[str]]:
    handles = [_mark(shape, style.QUIET) for shape in shapes.values()]
    handles += [Line2D([], [], linestyle="", marker="|", markersize=13, markeredgewidth=2, color=style.INK)]
    handles += [_mark("o", style.QUIET, hollow=True)]
    return handles, [*map(style.short, shapes), "global", "worst tenth of the clients"]


def _mark(shape: str, colour: str, hollow: bool = False) -> Line2D:
    face = "white" if hollow else colour
    edge = colour if hollow else "white"
    return Line2D([], [], linestyle="", marker=shape, markersize=6.5 if hollow else 9, markerfacecolor=face,
                  markeredgecolor=edge, markeredgewidth=1.4 if hollow else 0.8)  # fmt: skip


def _row(axes: Axes, row: int, entry: Summary, shapes: Mapping[str, str], colour: str) -> None:
    """The means of one algorithm, joined by a line whose length is the gap."""
    values = [_of(entry["accuracy_by_class"].get(name)) for name in shapes]
    ends = [value for value in [*values, _of(entry["accuracy"])] if math.isfinite(value)]
    if not ends:
        why = "diverged" if entry["diverged"] else "not known"
        axes.annotate(why, (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8.5,
                      color=style.QUIET)  # fmt: skip
        return
    axes.plot(
        [min(ends), max(ends)], [row, row], color=colour, alpha=0.35, linewidth=4, solid_capstyle="round", zorder=2
    )
    tenth = _of(entry["accuracy_worst_tenth"])
    axes.plot([tenth, min(ends)], [row, row], color=colour, alpha=0.35, linewidth=1, zorder=2)
    axes.plot(tenth, row, marker="o", markersize=6.5, markerfacecolor="white", markeredgecolor=colour,
              markeredgewidth=1.4, zorder=4)  # fmt: skip
    for value, shape in zip(values, shapes.values(), strict=True):
        axes.plot(value, row, marker=shape, markersize=9, color=colour, markeredgecolor="white", markeredgewidth=0.8,
                  zorder=5)  # fmt: skip
    axes.plot(_of(entry["accuracy"]), row, marker="|", markersize=15, markeredgewidth=2, color=style.INK, zorder=6)


def _faint(axes: Axes, row: int, cells: Sequence[CellRecords], shapes: Mapping[str, str], colour: str) -> None:
    """The seeds behind the means."""
    if len(cells) < 2:
        return
    for cell in cells:
        found = cell.rows[-1].get("accuracy_by_class") or {}
        for name, shape in shapes.items():
            axes.plot(100 * number(found, name), row, marker=shape, markersize=5, color=colour, alpha=0.35,
                      markeredgewidth=0, zorder=3)  # fmt: skip


def _gap(entry: Summary) -> str:
    known = [value for stat in entry["accuracy_by_class"].values() if math.isfinite(value := _of(stat))]
    return percent((max(known) - min(known)) / 100) if len(known) > 1 else "-"


def _of(stat: Stat | None) -> float:
    """A mean in per cent, or NaN."""
    return math.nan if stat is None or stat["mean"] is None else 100 * stat["mean"]
