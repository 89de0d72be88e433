"""The tables of a race study, in Markdown, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from studies.harness.measures import (
    Row,
    Rows,
    Spread,
    at,
    at_the_end,
    deadlines_to,
    movement,
    target_of,
)

#: The share of the time at which the tables look first.
EARLY = 0.25
#: By how much FedAvg without stragglers may move in the last fifth, in points, to have settled.
SETTLED = 0.5


def accuracy(rows: Rows, without: str, same: Mapping[tuple[str, str, str], str] | None = None) -> str:
    """For each problem, each method on each fleet: how good in the end, how good early, how soon at the target.

    Args:
        rows: of the test split.
        without: the name of the fleet without stragglers.
        same: by problem, fleet and method, the method that it is there, which was computed in its place.
    """
    parts = []
    for (problem,), own in groups(rows, "problem").items():
        fleets = [fleet for (fleet,) in groups(own, "fleet")]
        target = target_of(pick(own, fleet=without, method="fedavg"))
        goal = "the target" if math.isnan(target) else f"{100 * target:.1f} %"
        heads = ["method"]
        for fleet in fleets:
            heads += [f"{fleet}: learning rate", "end %", "at a quarter %", f"deadlines to {goal}"]
        lines = []
        known = [method for (method,) in groups(own, "method")]
        twins = dict.fromkeys(m for p, f, m in same or {} if p == problem and f in fleets and m not in known)
        for method in [*known, *twins]:
            line = [method]
            for fleet in fleets:
                here = pick(own, method=method, fleet=fleet)
                twin = (same or {}).get((problem, fleet, method))
                empty = ["", f"= {twin}" if twin else "", "", ""]
                line += [f"{here[0]['lr']:g}", *_three(here, target)] if here else empty
            lines.append(line)
        parts.append(f"**{problem}**\n\n{table(heads, lines)}")
    return "\n".join(parts)


def _three(rows: Rows, target: float) -> list[str]:
    reached = deadlines_to(rows, target)
    # A mean over the lucky ones would flatter.
    soon = f"{reached.known} of {reached.seeds} seeds" if reached.known else "never"
    if reached.known == reached.seeds:
        soon = f"{reached.mean:.0f}"
    return [percent(at_the_end(rows)), percent(at(rows, EARLY)), "" if math.isnan(target) else soon]


def classes(rows: Rows) -> str:
    """For each setting with stragglers: accuracy on the mix of labels that fast and that slow clients hold.

    Args:
        rows: of the test split.
    """
    heads = ["problem", "fleet", "method", "all %", "fast clients %", "stragglers %", "worst tenth of clients %"]
    lines = []
    for (problem, fleet, method), own in groups(rows, "problem", "fleet", "method").items():
        columns = ("accuracy", "fast", "straggler", "worst_tenth")
        found = [at_the_end(own, column) for column in columns]
        if found[2].known:
            lines.append([problem, fleet, method, *map(percent, found)])
    return table(heads, lines, words=3)


def settled(rows: Rows, without: str, length: tuple[str, str] = ("rounds", "deadlines")) -> str:
    """For each problem: by how much FedAvg without stragglers still moves in the last fifth.

    Args:
        rows: of the test split.
        without: the name of the fleet without stragglers.
        length: of a run: what it is called, and its column.
    """
    lines = []
    for (problem,), own in groups(pick(rows, fleet=without, method="fedavg"), "problem").items():
        moves = movement(own)
        error = moves.deviation / math.sqrt(moves.known) if moves.known > 1 else math.nan
        said = f"{100 * moves.mean:+.2f}" + ("" if math.isnan(error) else f" ± {100 * error:.2f}")
        lines.append([problem, f"{own[0][length[1]]:g}", percent(at_the_end(own)), said, _verdict(moves.mean, error)])
    heads = ["problem", length[0], "end %", "moves in the last fifth, points", f"under {SETTLED}"]
    return table(heads, lines)


def _verdict(mean: float, error: float) -> str:
    """Whether a movement is under the limit, by one standard error of its mean over seeds; one seed has none."""
    if math.isnan(error):
        return "unknown"
    if 100 * (abs(mean) + error) < SETTLED:
        return "yes"
    return "no" if 100 * (abs(mean) - error) >= SETTLED else "within its error"


def choices(rows: Rows, length: str = "deadlines") -> str:
    """For each problem: every method's validation accuracy with every learning rate; the one it was given is bold.

    A choice at an edge of the grid is marked: a better rate may lie beyond.

    Args:
        rows: of the validation rows.
        length: the column that says how long a run is.
    """
    parts = []
    for (problem, fleet), own in groups(rows, "problem", "fleet").items():
        grid = sorted({row["lr"] for row in own})
        lines = []
        for (method,), found in groups(own, "method").items():
            line = [method]
            for lr in grid:
                end = at_the_end(pick(found, lr=lr))
                cell = f"{100 * end.mean:.1f}" if end.known else "diverged"
                edge = " (edge)" if lr in (grid[0], grid[-1]) else ""
                line.append(f"**{cell}**{edge}" if lr == found[0]["chosen"] else cell)
            lines.append(line)
        tuned_on = f"{fleet}, {own[0][length]:g} {length}"
        parts.append(f"**{problem}** (on {tuned_on})\n\n{table(['method', *(f'{lr:g}' for lr in grid)], lines)}")
    return "\n".join(parts)


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown: words stand left, numbers right.

    Args:
        heads: of the columns.
        lines: the cells.
        words: how many columns, the first ones, hold words.

    Examples:
        >>> print(table(["method", "end %"], [["salf", "90.1"]]), end="")
        | method | end % |
        | --- | ---: |
        | salf | 90.1 |
    """
    rule = ["---" if column < words else "---:" for column in range(len(heads))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *lines))


def percent(spread: Spread, form: str = ".1f") -> str:
    """A share over seeds as a percentage; how many seeds diverged, where some did.

    Examples:
        >>> percent(Spread.of([0.9, 0.92])), percent(Spread.of([0.9, math.nan]))
        ('91.0 ± 1.4', '90.0, 1 of 2 diverged')
    """
    if not spread.known:
        return "diverged" if spread.seeds else ""
    text = f"{100 * spread.mean:{form}}"
    if spread.known > 1:
        text += f" ± {100 * spread.deviation:{form}}"
    lost = spread.seeds - spread.known
    return f"{text}, {lost} of {spread.seeds} diverged" if lost else text


def pick(rows: Rows, **values: object) -> list[Row]:
    """The rows whose columns have these values."""
    return [row for row in rows if all(row[column] == value for column, value in values.items())]


def groups(rows: Rows, *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by some columns, in order of first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found
