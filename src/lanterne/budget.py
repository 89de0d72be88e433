"""How much work may still be done: known beforehand in a simulation, found out from the clock on a device.

A unit is one block's forward, backward or update. `Units` is the budget whose end is known; `Clock` only knows whether
there is time for one more unit. Blocks come in order, so neither needs to be told which one is next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Units:
    """The budget of a simulated device: it ends after `known` units, or never.

    Examples:
        >>> Units(10).steps(blocks=3)                 # a step of 3 blocks is 6 units: one whole step, 1 block backward
        (1, 1)
        >>> Units().steps(blocks=3) is None           # no end: every step that was asked for
        True
    """

    known: int | None = None

    def steps(self, blocks: int) -> tuple[int, int] | None:
        """Whole first-order steps that fit, and how many blocks the backward pass of the next one reaches.

        Args:
            blocks: how many blocks a forward pass goes through; a step is `blocks` units forward, `blocks` backward.
        """
        if self.known is None:
            return None
        whole, rest = divmod(self.known, 2 * blocks)
        return whole, max(0, rest - blocks)


@dataclass(frozen=True, slots=True)
class Clock:
    """The budget of a real device: asked before each unit, it says whether there is time for it."""

    allows: Callable[[], bool]


Budget = Units | Clock
