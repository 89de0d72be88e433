"""The tables of a race study, in Markdown, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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


def accuracy(rows: Rows, without: str, equal: Collection[str] = ()) -> str:
    """For each problem, each method on each fleet: how good in the end, how good early, how soon at the target.

    Args:
        rows: of the test split.
        without: the name of the fleet without stragglers.
        equal: the methods that are FedAvg there, and were not computed.
    """
    parts = []
    for (problem,), own in groups(rows, "problem").items():
        fleets = [fleet for (fleet,) in groups(own, "fleet")]
        target = target_of(pick(own, fleet=without, method="fedavg"))
        goal = "the target" if math.isnan(target) else f"{100 * target:.1f} %"
        heads = ["method", "learning rate"]
        for fleet in fleets:
            heads += [f"{fleet}: end %", "at a quarter %", f"deadlines to {goal}"]
        lines = []
        for (method,), found in groups(own, "method").items():
            line = [method, f"{found[0]['lr']:g}"]
            for fleet in fleets:
                here = pick(found, fleet=fleet)
                as_fedavg = fleet == without and method in equal
                line += _three(here, target) if here else ["= fedavg" if as_fedavg else "", "", ""]
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


def settled(rows: Rows, without: str) -> str:
    """For each problem: by how much FedAvg without stragglers still moves in the last fifth.

    Args:
        rows: of the test split.
        without: the name of the fleet without stragglers.
    """
    lines = []
    for (problem,), own in groups(pick(rows, fleet=without, method="fedavg"), "problem").items():
        moves = movement(own)
        verdict = "yes" if abs(100 * moves.mean) < SETTLED else "no"
        lines.append([problem, f"{own[0]['deadlines']}", percent(at_the_end(own)), percent(moves, "+.2f"), verdict])
    heads = ["problem", "rounds", "end %", "moves in the last fifth, points", f"under {SETTLED}"]
    return table(heads, lines)


def choices(rows: Rows) -> str:
    """For each problem: every method's validation accuracy with every learning rate; the one it was given is bold.

    Args:
        rows: of the validation rows.
    """
    parts = []
    for (problem,), own in groups(rows, "problem").items():
        grid = sorted({row["lr"] for row in own})
        lines = []
        for (method,), found in groups(own, "method").items():
            ends = {lr: at_the_end(pick(found, lr=lr)) for lr in grid}
            chosen = next((row["chosen"] for row in found), None)
            cells = [("diverged" if not ends[lr].known else f"{100 * ends[lr].mean:.1f}") for lr in grid]
            lines.append([method, *(f"**{c}**" if lr == chosen else c for lr, c in zip(grid, cells, strict=True))])
        tuned_on = f"{own[0]['fleet']}, {own[0]['deadlines']} deadlines"
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
        text += f" ± {100 * spread.deviation:{form.lstrip('+')}}"
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
