"""How pictures look: palette, type, panels measured in inches, legends that fit, files that appear whole.

The palette is Okabe and Ito's (2008), which colour-blind readers can tell apart; its yellow is left out, since it does
not show on white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from lanterne.errors import RunError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.legend import Legend

Dash = Literal["-", "--", ":", "-."]
Look = tuple[str, Dash]
WIDTH = 9.0
DPI = 150
INK = "#222222"
QUIET = "#767676"
PALE = "#dddddd"
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
_SHEET = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.6,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "lanterne",
}


@contextmanager
def sheet() -> Iterator[None]:
    """Draw with lanterne's look whatever the user's own matplotlibrc says, and put that back afterwards."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context(cast("Any", defaults | _SHEET)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a directory's name may be in any script
        yield


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that draws itself without a display and without pyplot.

    Args:
        height: inches.
        width: inches.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def panel(figure: Figure, left: float, top: float, width: float, height: float, share: Axes | None = None) -> Axes:
    """Axes at a place measured in inches.

    Args:
        figure: where to put them.
        left: inches from the left edge.
        top: inches from the top edge.
        width: inches.
        height: inches.
        share: axes whose vertical scale is to be the same.
    """
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), sharey=share)


def colours(labels: Sequence[str]) -> dict[str, Look]:
    """A colour and a line style for each label; the style changes once the colours are used up."""
    return {
        label: (_PALETTE[index % len(_PALETTE)], _DASHES[index // len(_PALETTE) % len(_DASHES)])
        for index, label in enumerate(labels)
    }


def ink(colour: str) -> str:
    """A darker shade of a colour, for text: the lighter ones of the palette are hard to read on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.78 * red, 0.78 * green, 0.78 * blue))


def short(label: str, most: int = 32) -> str:
    """A label that fits: its middle is left out, since labels differ at their ends.

    Examples:
        >>> short("salf:rule=cond,shrinkage=0.125", 16)
        'salf:ru…ge=0.125'
    """
    keep = most - 1
    return label if len(label) <= most else f"{label[: keep // 2]}…{label[-(keep - keep // 2) :]}"


def text_width(figure: Figure, texts: Sequence[str], size: float, weight: str = "normal") -> float:
    """The width of the widest of some texts.

    Args:
        figure: where they will stand.
        texts: one line each.
        size: points.
        weight: `normal` or `bold`.

    Returns:
        Inches.
    """
    widest = 0.0
    for text in texts:
        artist = figure.text(0, 0, text, fontsize=size, fontweight=weight)
        widest = max(widest, artist.get_window_extent().width)
        artist.remove()
    return widest / figure.dpi


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], left: float, top: float) -> float:
    """A legend in as few rows as fit the figure, without a frame.

    Args:
        figure: where to put it; its height may still change afterwards, by `place`.
        handles: one artist per entry.
        labels: one text per entry.
        left: inches from the left edge.
        top: inches from the top edge.

    Returns:
        Its height in inches.
    """
    across = float(figure.get_size_inches()[0])
    for columns in range(len(labels), 0, -1):
        made = figure.legend(
            list(handles),
            list(labels),
            loc="upper left",
            ncols=columns,
            borderaxespad=0.0,
            borderpad=0.0,
            handlelength=1.6,
            handletextpad=0.5,
            columnspacing=1.6,
            labelspacing=0.35,
        )
        box = made.get_window_extent()
        if columns == 1 or box.width / figure.dpi <= across - 2 * left:
            place(figure, made, left, top)
            break
        made.remove()
    return float(box.height / figure.dpi)


def place(figure: Figure, made: Legend, left: float, top: float) -> None:
    """Move a legend to a place measured in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    made.set_bbox_to_anchor((left / across, 1 - top / down))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure so that the file is there whole or not at all, and the same whenever it is drawn.

    Args:
        figure: what to draw.
        path: the file; its ending is the format.

    Returns:
        The path.

    Raises:
        RunError: the file could not be written.
    """
    name = path.suffix[1:]
    dates = {"svg": "Date", "pdf": "CreationDate"}
    metadata = {dates[name]: None} if name in dates else {}
    drawn = io.BytesIO()
    figure.savefig(drawn, format=name, dpi=DPI, metadata=metadata)
    part = path.with_name(f".{path.name}.{getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(drawn.getbuffer())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}. The run is safe; draw it again.") from error
    return path
