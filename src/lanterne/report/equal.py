"""Methods at equal virtual time, equal bytes and equal samples: how accurate each was when it had spent as much.

The largest budget is what every compared run has spent at its last row, so that nothing is extrapolated; its quarters
show the beginning. A run's accuracy at a budget is that of its last evaluated round that had not spent more: nothing is
interpolated, and a run that is seldom evaluated looks worse than it is, never better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from lanterne.errors import ConfigError, nearest
from lanterne.report.prices import PRICES, At, Price
from lanterne.report.records import CellRecords, number
from lanterne.report.summary import Stat, by_label, stat_of
from lanterne.report.units import percent, quantity

if TYPE_CHECKING:
    from rich.console import Group

SHARES = (0.25, 0.5, 0.75, 1.0)


class Equal(TypedDict):
    """Accuracies after equal budgets of one kind.

    `budgets` are in seconds, bytes or samples, ascending; `accuracy` has a quantity over seeds for each of them, by
    algorithm: empty where a seed has diverged by then. Where the runs cannot be compared in this way, there are no
    budgets, and `why_not` says why.
    """

    at: At
    budgets: list[float]
    accuracy: dict[str, list[Stat]]
    why_not: str | None


def equal(cells: Sequence[CellRecords], at: Sequence[At] | None = None) -> list[Equal]:
    """How accurate the algorithms were after equal budgets.

    Args:
        cells: of one run, or of several whose labels differ. A cell without a row is left out; one that diverged does
            not make the budgets smaller.
        at: of `time`, `bytes` and `samples`; by default all.

    Returns:
        One entry for each kind of budget, in the order of `PRICES`.

    Raises:
        ConfigError: a kind that there is not, or one that was asked for by name and that a run does not know.
    """
    for name in at or ():
        if name not in PRICES:
            raise ConfigError(f"Methods cannot be compared at equal {name!r}. {nearest(name, list(PRICES))}")
    found = [_equal(cells, name) for name in PRICES if at is None or name in at]
    for entry in found:
        if at is not None and entry["why_not"] is not None:
            raise ConfigError(entry["why_not"])
    return found


def accuracy_at(cell: CellRecords, price: Price, budget: float) -> float:
    """The accuracy of a cell's last evaluated round that had not spent more than a budget; NaN where it is not known.

    Args:
        cell: whose rows to read.
        price: what is spent.
        budget: so much of it.
    """
    within = [row for row in cell.rows if price.of(row) <= budget]
    return number(within[-1], "accuracy") if within else math.nan


def equal_table(entry: Equal, width: int = 80) -> Group | str:
    """Accuracies after equal budgets, for a terminal.

    Args:
        entry: of `equal`.
        width: characters of a line.

    Returns:
        What `rich.console.Console.print` takes: a title and a table, or the reason why there is none.
    """
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    if entry["why_not"] is not None:
        return escape(entry["why_not"])
    heads, lines = _texts(entry)
    result = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    _, *numbers = zip(heads, *lines, strict=True)
    room = width - sum(max(map(len, column)) + 2 for column in numbers) - 2
    result.add_column(heads[0], overflow="fold", max_width=max(room, len(heads[0])))
    for head in heads[1:]:
        result.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        result.add_row(*map(escape, line))
    return Group(Text(_title(entry), style="italic"), result)


def equal_markdown(entry: Equal) -> str:
    """Accuracies after equal budgets as a Markdown table under a line that says what is equal.

    Args:
        entry: of `equal`.

    Returns:
        Text that ends in a line feed.
    """
    if entry["why_not"] is not None:
        return f"* {entry['why_not']}\n"
    heads, lines = _texts(entry)
    table = [heads, ["---", *("---:" for _ in heads[1:])], *lines]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    return "\n".join([f"{_title(entry)}:", "", *text]) + "\n"


def _equal(cells: Sequence[CellRecords], at: At) -> Equal:
    price, known = PRICES[at], [cell for cell in cells if cell.rows]
    why = _why_not(known, at)
    if why is not None:
        return Equal(at=at, budgets=[], accuracy={}, why_not=why)
    largest = min(price.of(cell.rows[-1]) for cell in known if cell.diverged is None)
    budgets = [share * largest for share in SHARES]
    accuracy = {
        label: [stat_of([accuracy_at(cell, price, budget) for cell in group], every=True) for budget in budgets]
        for label, group in by_label(known).items()
    }
    return Equal(at=at, budgets=budgets, accuracy=accuracy, why_not=None)


def _why_not(cells: Sequence[CellRecords], at: At) -> str | None:
    """What keeps cells from being compared at equal budgets of a kind."""
    price, what = PRICES[at], f"Methods cannot be compared at equal {at}: "
    for cell in cells:
        if any(math.isnan(price.of(row)) for row in cell.rows):
            return (
                f"{what}{cell.path / 'rows.jsonl'} has rows without {price.column}. An earlier version of lanterne "
                "wrote it; run its config.toml again into a new directory."
            )
    rest = [cell for cell in cells if cell.diverged is None]
    if not rest:
        return f"{what}{'every run has diverged.' if cells else 'no run has a row yet.'}"
    for cell in rest:
        if not price.of(cell.rows[-1]) > 0:
            return f"{what}{cell.path} has no row after its start yet. Let it evaluate a round first."
    return None


def _title(entry: Equal) -> str:
    return f"Accuracy % at equal {PRICES[entry['at']].name}"


def _texts(entry: Equal) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line of texts for each algorithm."""
    heads = ["algorithm", *(quantity(PRICES[entry["at"]].kind, budget) for budget in entry["budgets"])]
    return heads, [[label, *map(_percent, stats)] for label, stats in entry["accuracy"].items()]


def _percent(stat: Stat) -> str:
    return percent(stat["mean"]) + ("" if stat["std"] is None else f" ± {percent(stat['std'])}")
