"""Which pictures there are, and writing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lanterne.errors import ConfigError, nearest
from lanterne.report.records import CellRecords, load_run

Picture = Literal["accuracy", "classes", "timeline", "equal"]
PICTURES: tuple[Picture, ...] = ("accuracy", "classes", "timeline")
FORMATS = ("png", "svg", "pdf")


def plot_run(run_directory: str | Path, out: str | Path | None = None, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw a run: accuracy, device classes, and the timeline of the fleet.

    Args:
        run_directory: what `lanterne run --out` wrote, finished or not.
        out: the folder for the pictures; by default `plots/` of the run directory. Made if absent.
        formats: of `png`, `svg`, `pdf`.

    Returns:
        The files, in the order in which they were written. A picture for which the run has no data yet is left out.

    Raises:
        ConfigError: the directory is missing, damaged, no run or still without a row, or the format cannot be drawn.
        RunError: a file could not be written.

    Examples:
        `plot_run("runs/demo", formats=("png", "svg"))` writes `runs/demo/plots/accuracy.png` and five more.
    """
    run = load_run(run_directory)
    return plot_cells(run.cells, Path(out) if out is not None else run.path / "plots", formats, PICTURES)


def plot_cells(
    cells: Sequence[CellRecords], out: Path, formats: Sequence[str], pictures: Sequence[Picture]
) -> list[Path]:
    """Draw pictures of any cells, from one run or from several.

    Args:
        cells: what to draw; those without rows are left out.
        out: the folder for the pictures; made if absent.
        formats: of `FORMATS`.
        pictures: of `PICTURES`, or `equal`, which is of use where methods are compared.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ConfigError: no cell has a row, or a format cannot be drawn.
        RunError: a file could not be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"Pictures cannot be written as {name!r}. {nearest(name, FORMATS)}")
    cells = [cell for cell in cells if cell.rows]
    if not cells:
        raise ConfigError("There is nothing to draw: no cell has a row yet. Let the run evaluate a round first.")

    # Matplotlib takes most of a second to import, which only those who draw should pay.
    from lanterne.report import classes, curves, equal_curves, style, timeline

    draw = {
        "accuracy": curves.figure,
        "classes": classes.figure,
        "timeline": timeline.figure,
        "equal": equal_curves.figure,
    }
    written = []
    with style.sheet():
        for picture in pictures:
            figure = draw[picture](cells)
            if figure is not None:
                written += [style.save(figure, out / f"{picture}.{name}") for name in formats]
    return written
