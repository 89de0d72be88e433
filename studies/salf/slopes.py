"""Slopes of errors against rounds on log axes, their table and their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.special import gammaincc

from lanterne.report import style
from studies.harness.measures import Row, Rows, Spread
from studies.harness.tables import groups, pick, table
from studies.salf.convex import BLOCKS, CLOCKS, problem

#: The tail: the last so many tenths of the rounds' logarithm, here the last decade.
DECADE = 10


def slope(rows: Rows, column: str) -> float:
    """The exponent `a` of `error = c t^a`, by least squares of logarithms over the last decade of rounds.

    Args:
        rows: of one run.
        column: `distance` or `excess`.

    Examples:
        >>> round(slope([{"round": t, "distance": 3 / t} for t in range(1, 100)], "distance"), 9)
        -1.0
    """
    last = max(row["round"] for row in rows)
    tail = [(math.log(row["round"]), math.log(row[column])) for row in rows if row["round"] >= last / DECADE]
    t, error = np.array(tail).T
    return float(np.polyfit(t, error, 1)[0])


def slopes(rows: Rows) -> str:
    """A table of the curves.

    Args:
        rows: of all of them.
    """
    known = problem()
    heads = ["method", "clock", "batches", "T / m", "p of the first block", "slope of the distance",
             "slope of F - F\\*", "distance at the end", "F - F\\* at the end", "seconds a round"]  # fmt: skip
    lines = []
    for (clock, deadline, batches, method), own in groups(rows, "clock", "deadline", "batches", "method").items():
        runs = list(groups(own, "seed").values())
        ends = [max(run, key=lambda row: int(row["round"])) for run in runs]
        fitted = [Spread.of(slope(run, column) for run in runs) for column in ("distance", "excess")]
        lines.append([
            method, clock, batches, "waits" if deadline is None else f"{deadline:g}", _empty(clock, deadline),
            *(f"{s.mean:.2f} ± {s.deviation:.2f}" if s.known > 1 else f"{s.mean:.2f}" for s in fitted),
            *(f"{fmean(end[column] for end in ends):.1e}" for column in ("distance", "excess")),
            f"{fmean(end['virtual_seconds'] / end['round'] for end in ends):.2f}",
        ])  # fmt: skip
    rounds = max(row["round"] for row in rows)
    said = (
        f"ρ_c = {known.convexity:.3f}, ρ_s = {known.smoothness:.3f}, γ = {known.gamma:.1f}; the largest entry of the "
        f"gradient at the optimum is {np.abs(known.gradient(known.optimum)).max():.0e}. Slopes over the rounds "
        f"{rounds // DECADE} to {rounds}, mean ± standard deviation over seeds."
    )
    return f"{said}\n\n{table(heads, lines, words=3)}"


def picture(rows: Rows, path: Path) -> Path:
    """The distance against rounds on log axes: a panel for each clock and deadline, FedAvg in each.

    Args:
        rows: of all curves.
        path: the file.
    """
    waits = {kind: pick(rows, deadline=None, batches=kind) for (kind,) in groups(rows, "batches")}
    panels = [(key, own) for key, own in groups(rows, "clock", "deadline", "batches").items() if key[1] is not None]
    with style.sheet():
        looks = style.colours([method for (method,) in groups(rows, "method")])
        width = 0.75 + len(panels) * 2.35
        figure = style.canvas(3.5, width)
        handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=2.2) for colour, dash in looks.values()]
        handles.append(Line2D([], [], color=style.QUIET, linestyle=":", linewidth=1.2))
        style.legend(figure, handles, [*looks, "1/t"], 0.75, 0.12)
        first = None
        for place, ((clock, deadline, batches), own) in enumerate(panels):
            axes = style.panel(figure, 0.75 + place * 2.35, 0.75, 2.1, 2.25, first)
            for (method,), runs in groups([*waits[batches], *own], "method").items():
                colour, dash = looks[method]
                each = list(groups(runs, "seed").values())
                for run in each:
                    axes.plot(*_curve([run]), color=colour, linestyle=dash, linewidth=0.6, alpha=0.4)
                axes.plot(*_curve(each), color=colour, linestyle=dash, linewidth=1.8)
            rounds, error = _curve(list(groups(waits["independent"], "seed").values()))
            guide = [error[-1] * rounds[-1] / t for t in rounds]
            axes.plot(rounds, guide, color=style.QUIET, linestyle=":", linewidth=1.2)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{clock}, T / m = {deadline:g}\n{batches} batches", fontsize=9)
            axes.set_xlabel("rounds")
            axes.tick_params(labelleft=first is None)
            first = first or axes
        if first is not None:
            first.set_ylim(min(row["distance"] for row in rows) / 2, 2 * max(row["distance"] for row in rows))
            first.set_ylabel("‖w - w*‖²")
        return style.save(figure, path)


def _curve(runs: Sequence[Sequence[Row]]) -> tuple[list[int], list[float]]:
    """The mean over runs, which are judged at the same rounds."""
    rounds = [row["round"] for row in runs[0]]
    return rounds, [fmean(run[i]["distance"] for run in runs) for i in range(len(rounds))]


def _empty(clock: str, deadline: float | None) -> str:
    """The chance that nobody reaches the first block by the deadline, `prod_u Q(L, T / m_u)`."""
    if deadline is None:
        return "0"
    return f"{math.prod(float(gammaincc(BLOCKS, deadline / mean)) for mean in CLOCKS[clock]):.2g}"
