"""Summaries as a table in the terminal, in Markdown, and as JSON.

A column has a place and a rank. The terminal's table takes columns by rank while the width lasts, those of one rank
together or not at all, and shows them by place; Markdown shows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from lanterne.report.summary import Reached, Stat, Summary
from lanterne.report.units import Kind, percent, quantity

if TYPE_CHECKING:
    from rich.table import Table

_GUTTER = 2
_LONGEST = 28


@dataclass(frozen=True, slots=True)
class _Column:
    rank: int
    heading: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Characters, with the gutter; a heading may break at its spaces, a name anywhere, a number nowhere."""
        wanted = max(len(word) for word in [*self.heading.split(), *self.cells])
        return (wanted if self.rank else min(wanted, _LONGEST)) + _GUTTER


def table(summaries: Sequence[Summary], width: int = 80, title: str | None = None) -> Table:
    """The comparison for a terminal.

    Args:
        summaries: what `summarise` returned.
        width: characters of a line; columns of lesser importance are left out until the table fits.
        title: a line above the table.

    Returns:
        A table for `rich.console.Console.print`.
    """
    from rich.markup import escape
    from rich.table import Table

    columns = _columns(summaries)
    kept: list[_Column] = []
    room = width
    for rank, together in groupby(sorted(columns, key=_rank), _rank):
        group = list(together)
        needed = sum(column.width for column in group)
        if rank <= 1 or needed <= room:
            kept += group
            room -= needed
    shown = [column for column in columns if column in kept]
    notes = _notes(summaries)
    result = Table(
        box=None,
        title=title and escape(title),
        title_justify="left",
        caption="\n".join(map(escape, notes)) or None,
        caption_justify="left",
        padding=(0, _GUTTER, 0, 0),
        header_style="bold",
    )
    for position, column in enumerate(shown):
        inner = column.width - _GUTTER
        heading = "\n".join(wrap(column.heading, inner))
        result.add_column(
            escape(heading), justify="right" if position else "left", overflow="fold", vertical="bottom", width=inner
        )
    for line in zip(*(column.cells for column in shown), strict=True):
        result.add_row(*map(escape, line))
    return result


def markdown(summaries: Sequence[Summary]) -> str:
    """The comparison as a Markdown table with every column, and its notes.

    Args:
        summaries: what `summarise` returned.

    Returns:
        Text that ends in a line feed.
    """
    columns = _columns(summaries)
    lines = [
        [column.heading for column in columns],
        ["---", *("---:" for _ in columns[1:])],
        *zip(*(column.cells for column in columns), strict=True),
    ]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = _notes(summaries)
    return "\n".join([*text, *([""] if notes else []), *(f"{note}  " for note in notes)]).rstrip() + "\n"


def as_json(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The comparison as one JSON object; what is not known is null.

    Args:
        summaries: what `summarise` returned.

    Returns:
        `targets`, the accuracies whose time and bytes are stated, and `algorithms`, the summaries in order.
    """
    targets = [target["accuracy"] for target in summaries[0]["targets"]] if summaries else []
    algorithms = [
        {**entry, "diverged": {str(seed): number for seed, number in entry["diverged"].items()}} for entry in summaries
    ]
    return {"targets": targets, "algorithms": algorithms}


def _rank(column: _Column) -> int:
    return column.rank


def _columns(summaries: Sequence[Summary]) -> list[_Column]:
    """All columns in the order of their places."""
    classes = list(dict.fromkeys(name for entry in summaries for name in entry["accuracy_by_class"]))
    targets = [target["accuracy"] for target in summaries[0]["targets"]] if summaries else []
    absent = Stat(mean=None, std=None, n=0)

    def column(rank: int, heading: str, cell: Callable[[Summary], str]) -> _Column:
        return _Column(rank, heading, [cell(entry) for entry in summaries])

    found = [
        column(0, "algorithm", _name),
        column(1, "accuracy %", lambda entry: _percent(entry["accuracy"])),
        column(10, "best %", lambda entry: _percent(entry["best_accuracy"])),
    ]
    for position, name in enumerate(classes):
        of = _by_class(name, absent)
        found.append(column(4 if position in (0, len(classes) - 1) else 12, f"{name} %", of))
    found += [
        column(5, "worst tenth %", lambda entry: _percent(entry["accuracy_worst_tenth"])),
        column(11, "spread %", lambda entry: _percent(entry["accuracy_spread"])),
        column(9, "rounds", lambda entry: _quantity("count", entry["rounds"])),
        column(6, "virtual time", lambda entry: _quantity("seconds", entry["virtual_seconds"])),
        column(7, "bytes", lambda entry: _quantity("bytes", entry["bytes"])),
        column(13, "up", lambda entry: _quantity("bytes", entry["bytes_up"])),
        column(13, "down", lambda entry: _quantity("bytes", entry["bytes_down"])),
        column(13, "samples trained", lambda entry: _quantity("count", entry["samples_trained"])),
        column(8, "wasted %", lambda entry: percent(entry["wasted_share"]["mean"])),
        column(14, "held across the cut: client", lambda entry: _held(entry["memory_held"])),
        column(14, "server", lambda entry: _held(entry["memory_held_server"])),
    ]
    for position, target in enumerate(targets):
        text = f"{percent(target)} %"
        found.append(column(3 if position else 2, f"time to {text}", _to_target(position, "seconds")))
        found.append(column(12, f"bytes to {text}", _to_target(position, "bytes")))
    return [entry for entry in found if any(cell != "-" for cell in entry.cells) or entry.rank <= 1]


def _name(entry: Summary) -> str:
    return entry["algorithm"] + (" *" if entry["unfinished"] else "") + (" !" if entry["diverged"] else "")


def _by_class(name: str, absent: Stat) -> Callable[[Summary], str]:
    return lambda entry: _percent(entry["accuracy_by_class"].get(name, absent))


def _to_target(position: int, kind: Kind) -> Callable[[Summary], str]:
    def cell(entry: Summary) -> str:
        target: Reached = entry["targets"][position]
        if target["reached"] < target["seeds"]:
            return f"{target['reached']} of {target['seeds']} seeds" if target["reached"] else "not reached"
        return _quantity(kind, target["virtual_seconds"] if kind == "seconds" else target["bytes"])

    return cell


def _percent(stat: Stat) -> str:
    deviation = "" if stat["std"] is None else f" ± {percent(stat['std'])}"
    return percent(stat["mean"]) + deviation


def _quantity(kind: Kind, stat: Stat) -> str:
    return "-" if stat["mean"] is None else quantity(kind, stat["mean"])


def _held(stat: Stat) -> str:
    """Memory held across a cut: most methods have none."""
    return _quantity("bytes", stat) if stat["mean"] else "-"


def _notes(summaries: Sequence[Summary]) -> list[str]:
    """What the marks of the table mean, if they occur."""
    notes = []
    if any(stat["std"] is not None for stat in (entry["accuracy"] for entry in summaries)):
        notes.append("± standard deviation over seeds.")
    unfinished = [entry["algorithm"] for entry in summaries if entry["unfinished"]]
    if unfinished:
        notes.append(f"* unfinished, up to its last row: {', '.join(unfinished)}.")
    for entry in summaries:
        for seed, at in entry["diverged"].items():
            notes.append(f"! {entry['algorithm']} diverged in round {at} (seed {seed}).")
    return notes
