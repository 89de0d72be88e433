"""`lanterne plot`: draw a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lanterne.cli.output import AsFormat, Format, say, say_json


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, finished or not.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the pictures.", show_default="RUN/plots")] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="png|svg|pdf", help="Kind of picture; may be repeated.", show_default="png"),
    ] = None,
    format: AsFormat = Format.table,
) -> None:
    """Draw accuracy, device classes and the fleet's timeline of a run."""
    from lanterne.report import plot_run

    pictures = plot_run(run, out, tuple(kinds or ["png"]))
    if format is Format.json:
        say_json({"run": run, "plots": pictures})
    else:
        for picture in pictures:
            say(str(picture))
