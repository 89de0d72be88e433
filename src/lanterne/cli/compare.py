"""`lanterne compare`: several run directories side by side."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lanterne.cli.output import console, say, say_json


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
    out: Annotated[Path | None, typer.Option("--out", help="Also draw pictures into this folder.")] = None,
    format: Annotated[CompareFormat, typer.Option("--format", help="How the result is printed.")] = CompareFormat.table,
) -> None:
    """Compare the methods of one or several runs: accuracy, for whom, how soon, and at what price."""
    from lanterne.report import compare as compared
    from lanterne.report import markdown, plot_compare, table

    found = compared(runs, target or ())
    pictures = [] if out is None else plot_compare(runs, out)
    if format is CompareFormat.json:
        say_json({**found, "plots": pictures})
        return
    if format is CompareFormat.markdown:
        say(markdown(found["algorithms"]).rstrip())
        for line in _differences(found):
            say(f"\n* {line}")
        return
    terminal = console()
    terminal.print(table(found["algorithms"], terminal.width))
    for line in (*_differences(found), *map(str, pictures)):
        terminal.print(line, markup=False, soft_wrap=True)


def _differences(found: dict[str, Any]) -> list[str]:
    """In what the runs themselves differ, one setting a line; null is a setting that a run does not have."""
    lines = []
    for key, by_run in found["differences"].items():
        values = ", ".join(f"{'-' if value is None else value} in {name}" for name, value in by_run.items())
        lines.append(f"{key}: {values}")
    return lines
