"""`lanterne compare`: several run directories side by side."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lanterne.cli.output import console, say, say_json


class At(StrEnum):
    """At equal budgets of what methods are compared."""

    time = "time"
    bytes = "bytes"
    samples = "samples"


class CompareFormat(StrEnum):
    """How the comparison is printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or not.")],
    target: Annotated[
        list[float] | None,
        typer.Option(
            "--target", metavar="ACCURACY", help="Also how soon this accuracy was reached, as 0.8; may be repeated."
        ),
    ] = None,
    at: Annotated[
        list[At] | None,
        typer.Option("--at", help="Accuracy at equal virtual time, bytes or samples; may be repeated; all by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also draw pictures into this folder.")] = None,
    format: Annotated[CompareFormat, typer.Option("--format", help="How the result is printed.")] = CompareFormat.table,
) -> None:
    """Compare methods of one or several runs: accuracy, for whom, how soon, at what price; at equal budgets."""
    from lanterne.report import compare as compared
    from lanterne.report import equal_markdown, equal_table, markdown, plot_compare, table

    found = compared(runs, target or (), [kind.value for kind in at] if at else None)
    pictures = [] if out is None else plot_compare(runs, out)
    if format is CompareFormat.json:
        say_json({**found, "plots": pictures})
        return
    if format is CompareFormat.markdown:
        say(markdown(found["algorithms"]).rstrip())
        for entry in found["equal"]:
            say("\n" + equal_markdown(entry).rstrip())
        for line in _differences(found):
            say(f"\n* {line}")
        return
    terminal = console()
    terminal.print(table(found["algorithms"], terminal.width))
    for entry in found["equal"]:
        terminal.print()
        terminal.print(equal_table(entry, terminal.width), soft_wrap=entry["why_not"] is not None)
    terminal.print()
    for line in (*_differences(found), *map(str, pictures)):
        terminal.print(line, markup=False, soft_wrap=True)


def _differences(found: dict[str, Any]) -> list[str]:
    """In what the runs themselves differ, one setting a line; null is a setting that a run does not have."""
    lines = []
    for key, by_run in found["differences"].items():
        values = ", ".join(f"{'-' if value is None else value} in {name}" for name, value in by_run.items())
        lines.append(f"{key}: {values}")
    return lines
