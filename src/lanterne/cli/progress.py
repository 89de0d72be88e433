"""How a run is doing: a live table on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
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
    row: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None

    @property
    def round(self) -> int:
        """Rounds done."""
        return int((self.result or {}).get("rounds", self.row.get("round", self.first)))

    @property
    def accuracy(self) -> str:
        """In per cent; the round in which it diverged."""
        diverged = (self.result or {}).get("diverged")
        return percent(self.row.get("accuracy")) if diverged is None else f"diverged at {diverged}"

    @property
    def virtual(self) -> str:
        """Time on the simulated clock."""
        return quantity("seconds", self.row.get("virtual_seconds") or 0.0)

    def late(self, named: int = _NAMED) -> str:
        """How many clients were late in the last round, and who are the first of them."""
        late = self.row.get("late") or []
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

            self._live = Live(
                get_renderable=self.render, console=self._console, refresh_per_second=4, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, label: str, seed: int, first_round: int, rounds: int) -> None:
        """A competitor with a seed begins, or goes on."""
        self._cells.append(Cell(label, seed, rounds, first_round))

    def row(self, row: dict[str, Any]) -> None:
        """A round was evaluated."""
        cell = self._cells[-1]
        cell.row = row
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            self._line(cell)

    def end(self, result: dict[str, Any]) -> None:
        """A competitor with a seed is finished."""
        cell = self._cells[-1]
        cell.result = result
        self._line(cell, f", {quantity('seconds', result.get('wall_seconds') or 0.0)} of yours")

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
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(6, width // 3))
        table.add_column("seed", justify="right", no_wrap=True)
        columns: list[tuple[int, str]] = [(0, "round"), (0, "acc %"), (52, "virtual"), (66, "late")]
        if width >= 80:
            table.add_column("", width=min(24, width - 66), no_wrap=True)
        for least, heading in columns:
            if width >= least:
                table.add_column(heading, justify="left" if heading == "late" else "right", no_wrap=True)
        room = max(height - 4, 1)
        for cell in self._cells[-room:]:
            bar = [ProgressBar(cell.rounds, cell.round)] if width >= 80 else []
            values = {
                "round": f"{cell.round}/{cell.rounds}",
                "acc %": cell.accuracy,
                "virtual": cell.virtual,
                "late": cell.late(),
            }
            shown = [values[heading] for least, heading in columns if width >= least]
            table.add_row(Text(cell.label), str(cell.seed), *bar, *map(Text, shown))
        done = sum(cell.result is not None for cell in self._cells)
        if self._total > 1:
            table.caption = f"{done} of {self._total} done"
            table.caption_justify = "left"
        return table if self._cells else Text("Preparing the fleet, the data and the model …")
