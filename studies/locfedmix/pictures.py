"""The pictures of the study: curves of each setting, what many clients lose, and the ablation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from lanterne.report import style
from studies.harness.measures import Row, Rows, at_the_end, by_seed
from studies.harness.tables import groups, pick
from studies.locfedmix.plan import ABLATED, LOCFEDMIX
from studies.locfedmix.results import RACE

_AXES = (
    ("epochs_done", "epochs", 1.0, False),
    ("bytes", "MB sent, up and down", 1e6, True),
    ("virtual_seconds", "seconds of virtual time", 1.0, True),
)
_LEFT, _TOP, _GAP, _RIGHT = 0.62, 0.12, 0.3, 0.15
_HEIGHT, _BELOW, _ABOVE = 1.85, 0.5, 0.28


def pictures(rows: Rows, folder: Path) -> list[Path]:
    """Draw all of them.

    Args:
        rows: of the test split.
        folder: for the pictures.
    """
    race = [row for row in rows if row["method"] in RACE]
    written = []
    for (data, model, fleet), own in groups(race, "data", "model", "fleet").items():
        written.append(curves(own, folder / f"{_word(f'{data} {model} {fleet}')}.png"))
    if len({row["clients"] for row in race}) > 1:
        written.append(scaling(race, folder / "scalability.png"))
    labels = [method.label for method in ABLATED]
    ablated = [
        row
        for _, own in groups(rows, "problem", "fleet").items()
        if any(pick(own, method=label) for label in labels[1:])
        for row in own
        if row["method"] in labels
    ]
    if ablated:
        written.append(bars(ablated, folder / "ablation.png"))
    return written


def curves(rows: Rows, path: Path) -> Path:
    """Accuracy against epochs, bytes and virtual time: a line of panels for each problem, the mean over seeds.

    Args:
        rows: of one data set on one fleet.
        path: the file.
    """
    problems = groups(rows, "partition", "clients")
    with style.sheet():
        looks = _looks(rows)
        figure = style.canvas(1.0)
        high = _legend(figure, looks)
        each = _ABOVE + _HEIGHT + _BELOW
        figure.set_size_inches(style.WIDTH, _TOP + high + 0.1 + each * len(problems))
        style.place(figure, figure.legends[0], _LEFT, _TOP)
        width = (style.WIDTH - _LEFT - _RIGHT - _GAP * 2) / 3
        for line, ((partition, clients), own) in enumerate(problems.items()):
            first: Axes | None = None
            for place, (column, name, unit, log) in enumerate(_AXES):
                top = _TOP + high + 0.1 + each * line + _ABOVE
                axes = style.panel(figure, _LEFT + place * (width + _GAP), top, width, _HEIGHT, first)
                for (method,), runs in groups(own, "method").items():
                    colour, dash = looks[method]
                    heavy = 2.4 if method == LOCFEDMIX.label else 1.3
                    x, y = _mean(runs, column, unit)
                    axes.plot(x, y, color=colour, linestyle=dash, linewidth=heavy)
                    axes.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=3.5)
                if log:
                    axes.set_xscale("log")
                    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.set_xlabel(name)
                axes.tick_params(labelleft=first is None)
                if first is None:
                    first = axes
                    axes.set_ylabel("accuracy, %")
                    axes.set_title(f"{partition}, {clients} clients", loc="left", fontsize=9)
        return style.save(figure, path)


def scaling(rows: Rows, path: Path) -> Path:
    """Accuracy at the end against the number of clients: a panel for each data set, partition and fleet.

    Args:
        rows: of the race on the test split.
        path: the file.
    """
    panels = groups(rows, "data", "model", "partition", "fleet")
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    with style.sheet():
        looks = _looks(rows)
        figure = style.canvas(1.0)
        high = _legend(figure, looks)
        each = 0.42 + _HEIGHT + _BELOW
        figure.set_size_inches(style.WIDTH, _TOP + high + 0.1 + each * down)
        style.place(figure, figure.legends[0], _LEFT, _TOP)
        width = (style.WIDTH - _LEFT - _RIGHT - 0.42 * (across - 1)) / across
        for number, ((data, _, partition, fleet), own) in enumerate(panels.items()):
            line, place = divmod(number, across)
            top = _TOP + high + 0.1 + each * line + 0.42
            axes = style.panel(figure, _LEFT + place * (width + 0.42), top, width, _HEIGHT)
            for (method,), found in groups(own, "method").items():
                colour, dash = looks[method]
                ends = [(n, at_the_end(pick(found, clients=n))) for n in sorted({row["clients"] for row in found})]
                known = [(n, 100 * end.mean, 100 * end.deviation) for n, end in ends if end.known > 1]
                if known:
                    x, y, error = zip(*known, strict=True)
                    heavy = 2.4 if method == LOCFEDMIX.label else 1.3
                    axes.errorbar(
                        x, y, error, color=colour, linestyle=dash, linewidth=heavy, marker="o", markersize=3,
                        elinewidth=0.6,
                    )  # fmt: skip
            every = sorted({row["clients"] for row in own})
            axes.set_xscale("log")
            axes.set_xticks(every, [str(n) for n in every])
            axes.minorticks_off()
            axes.set_title(f"{data}, {partition}\n{fleet}", loc="left", fontsize=9)
            axes.set_xlabel("clients")
            if not place:
                axes.set_ylabel("accuracy at the end, %")
        return style.save(figure, path)


def bars(rows: Rows, path: Path) -> Path:
    """The ablation: accuracy at the end, each seed a dot.

    Args:
        rows: of LocFedMix-SL and of its variants, on the test split.
        path: the file.
    """
    panels = groups(rows, "problem", "fleet")
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    labels = [method.label for method in ABLATED]
    with style.sheet():
        looks = style.colours(labels)
        figure = style.canvas(1.0)
        handles = [Patch(facecolor=looks[label][0]) for label in labels]
        high = style.legend(figure, handles, labels, _LEFT, _TOP)
        each = 0.42 + _HEIGHT + 0.15
        figure.set_size_inches(style.WIDTH, _TOP + high + 0.1 + each * down)
        style.place(figure, figure.legends[0], _LEFT, _TOP)
        width = (style.WIDTH - _LEFT - _RIGHT - 0.5 * (across - 1)) / across
        for number, ((problem, fleet), own) in enumerate(panels.items()):
            line, place = divmod(number, across)
            top = _TOP + high + 0.1 + each * line + 0.42
            axes = style.panel(figure, _LEFT + place * (width + 0.5), top, width, _HEIGHT)
            for at, label in enumerate(labels):
                runs = by_seed(pick(own, method=label)).values()
                ends = [100 * at_the_end(run).mean for run in runs if run[-1]["accuracy"] is not None]
                if ends:
                    axes.bar(at, fmean(ends), color=looks[label][0], width=0.7)
                    axes.plot([at] * len(ends), ends, color=style.INK, linestyle="", marker="o", markersize=3)
            axes.set_xticks([])
            axes.set_title(f"{problem}\n{fleet}", loc="left", fontsize=9)
            if not place:
                axes.set_ylabel("accuracy at the end, %")
        return style.save(figure, path)


def _looks(rows: Rows) -> dict[str, style.Look]:
    """The same look of a method in all pictures."""
    there = {row["method"] for row in rows}
    return {method: look for method, look in style.colours(RACE).items() if method in there}


def _legend(figure: Figure, looks: dict[str, style.Look]) -> float:
    handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=2.2) for colour, dash in looks.values()]
    return style.legend(figure, handles, list(looks), _LEFT, _TOP)


def _mean(runs: Sequence[Row], column: str, unit: float) -> tuple[list[float], list[float]]:
    """The mean over seeds at each share that all have reached; the untrained model has no place on a log axis."""
    shares = [
        every
        for (share,), every in groups(sorted(runs, key=lambda row: float(row["share"])), "share").items()
        if share and all(row["accuracy"] is not None for row in every)
    ]
    seeds = len(by_seed(runs))
    whole = [every for every in shares if len(every) == seeds]
    return (
        [fmean(row[column] for row in every) / unit for every in whole],
        [100 * fmean(row["accuracy"] for row in every) for every in whole],
    )


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
