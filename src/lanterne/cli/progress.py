"""How a run is doing: a live table on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from lanterne.report.units import percent, quantity

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_EVERY = 5.0  # seconds between two lines
_NAMED = 4  # late clients that are named


@dataclass
class Cell:
    """One competitor with one seed: how far it is."""

    label: str
    seed: int
    rounds: int
    first: int
    seen: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    @property
    def round(self) -> int:
        """Rounds done."""
        return int(self.seen.get("rounds", self.seen.get("round", self.first)))

    @property
    def accuracy(self) -> str:
        """In per cent; the round in which it diverged."""
        diverged = self.seen.get("diverged")
        return percent(self.seen.get("accuracy")) if diverged is None else f"diverged in {diverged}"

    @property
    def virtual(self) -> str:
        """Time on the simulated clock."""
        return quantity("seconds", self.seen.get("virtual_seconds") or 0.0)

    def late(self, named: int = _NAMED) -> str:
        """How many clients were late in the last round, and who are the first of them."""
        late = self.seen.get("late") or []
        names = " ".join(map(str, late[:named])) + (" …" if len(late) > named else "")
        return f"{len(late)}: {names}" if late and named else str(len(late))


class Progress:
    """Hears how a run goes, and shows it on standard error.

    A view never ends a run: where it cannot be written any more, it falls silent.

    Args:
        cells: how many competitors and seeds there are in all; 0 where it is not known.
        quiet: whether to show nothing.
        console: where to show it.
    """

    def __init__(self, cells: int = 0, quiet: bool = False, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False)
        self._total, self._quiet = cells, quiet
        self._cells: list[Cell] = []
        self._said = 0.0
        self._live: Any = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            from rich.live import Live

            self._live = Live(get_renderable=self.render, console=self._console, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def begin(self, label: str, seed: int, first_round: int, rounds: int) -> None:
        """A competitor with a seed begins, or goes on."""
        self._cells.append(Cell(label, seed, rounds, first_round))
        self._said = time.monotonic()

    def row(self, row: dict[str, Any]) -> None:
        """A round was evaluated."""
        cell = self._cells[-1]
        cell.seen = row
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            self._line(cell)

    def end(self, result: dict[str, Any]) -> None:
        """A competitor with a seed is finished."""
        cell = self._cells[-1]
        cell.seen = {**cell.seen, **result}
        cell.ended = True
        self._line(cell, f", took {quantity('seconds', result.get('wall_seconds') or 0.0)}")

    def _line(self, cell: Cell, more: str = "") -> None:
        if self._quiet or self._live is not None:
            return
        who = f"{cell.label} seed {cell.seed}: round {cell.round}/{cell.rounds}"
        text = f"{who}, accuracy {cell.accuracy} %, virtual time {cell.virtual}, late {cell.late()}{more}\n"
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._quiet = True

    def render(self) -> RenderableType:
        """The live table, as wide as the terminal is; the oldest lines leave first."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width, height = self._console.size
        named = _NAMED if width >= 66 else 0
        columns: dict[str, Callable[[Cell], RenderableType]] = {
            "": lambda cell: Text(cell.label),
            "seed": lambda cell: str(cell.seed),
            "round": lambda cell: f"{cell.round}/{cell.rounds}",
            "acc %": lambda cell: cell.accuracy,
            "virtual": lambda cell: cell.virtual,
            "late": lambda cell: cell.late(named),
        }
        if width < 52:
            del columns["virtual"]
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        for heading in columns:
            name = not heading
            table.add_column(
                heading,
                justify="left" if name or (heading == "late" and named) else "right",
                no_wrap=True,
                max_width=max(6, width // 3) if name else None,
            )
        if width >= 80:
            columns["done"] = lambda cell: ProgressBar(cell.rounds, cell.round)
            table.add_column("", width=min(24, width - 66))
        for cell in self._cells[-max(height - 4, 1) :]:
            table.add_row(*(column(cell) for column in columns.values()))
        done = sum(cell.ended for cell in self._cells)
        if self._total > 1:
            table.caption = f"{done} of {self._total} done"
            table.caption_justify = "left"
        return table if self._cells else Text("Preparing the fleet, the data and the model …")
