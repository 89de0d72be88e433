"""The verbs and what they share on the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lanterne.cli import compare, listing, plot, resume, run

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"lanterne {version('lanterne')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def lanterne(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Train one neural network over a fleet of unequal devices, and never wait for the last one.

    A first race:  lanterne run salf drop fedavg --stragglers 0.9 --rounds 10
    """
    del version
    if context.invoked_subcommand is None:
        help_text = context.get_help()
        if help_text:
            sys.stdout.write(help_text + "\n")
        raise typer.Exit(2)


app.command("run")(run.run)
app.command("resume")(resume.resume)
app.command("compare")(compare.compare)
app.command("plot")(plot.plot)
app.command("list")(listing.listing)
