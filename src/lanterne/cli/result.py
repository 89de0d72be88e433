"""What is shown when a run has ended: warnings, a table or JSON, and where the pictures are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lanterne.cli.output import Format, StoppedError, console, say_json, warn
from lanterne.errors import LanterneError

Plots = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the pictures into the run directory.")]


def present(out: Path, result: dict[str, Any], format: Format, plots: bool) -> None:
    """Show a run that has ended.

    Args:
        out: its directory.
        result: what `run_experiment` returned.
        format: JSON stands alone on standard output; a table is followed by the paths.
        plots: whether to draw.

    Raises:
        StoppedError: when the pictures could not be drawn; the result has been shown nevertheless.
    """
    for cell in result["runs"]:
        if cell["diverged"] is not None:
            who = f"{cell['algorithm']} (seed {cell['seed']})"
            warn(f"{who} diverged in round {cell['diverged']}: its later numbers are empty. A smaller lr may help.")
    pictures: list[Path] = []
    trouble: Exception | None = None
    if plots:
        from lanterne.report import plot_run

        try:
            pictures = plot_run(out)
        except (LanterneError, OSError) as error:
            trouble = error
    if format is Format.json:
        say_json({**result, "plots": pictures})
    else:
        _table(out, pictures)
    if trouble is not None:
        raise StoppedError(f"The run is finished, but not drawn: {trouble} Draw it with: lanterne plot {out}", 1)


def _table(out: Path, pictures: list[Path]) -> None:
    from lanterne.report import load_run, summarise, table

    terminal = console()
    terminal.print(table(summarise(load_run(out).cells), terminal.width))
    for path in pictures:
        terminal.print(str(path), markup=False, soft_wrap=True)
    terminal.print(f"The run is in {out}", markup=False, soft_wrap=True)
