"""`lanterne resume`: go on with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lanterne.cli.output import AsFormat, Debug, Format, Quiet, resumable, warn
from lanterne.cli.result import Plots, present


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run that did not end.")],
    format: AsFormat = Format.table,
    plots: Plots = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was interrupted, from any directory, to the bit where it would have been."""
    with resumable(run, debug):
        from lanterne.cli.progress import Progress
        from lanterne.experiment import resume_experiment

        with Progress(quiet=quiet) as progress:
            result = resume_experiment(run, progress, warn=warn)
    present(run, result, format, plots)
