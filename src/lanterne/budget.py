"""How much work may still be done: known beforehand in a simulation, found out from the clock on a device.

A unit is one block's forward, backward or update. `Units` is the budget whose end is known; `Clock` only knows whether
there is time for one more unit. Blocks come in order, so neither needs to be told which one is next.

`Deadlines` says how long the rounds of a method may last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator


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


def check_deadlines(given: object) -> float | tuple[float, ...]:
    """Seconds above 0, or a list of them.

    Raises:
        ValueError: for anything else.

    Examples:
        >>> check_deadlines(2), check_deadlines([1, 2.5])
        (2.0, (1.0, 2.5))
    """
    several = isinstance(given, list | tuple)
    found = []
    for seconds in given if isinstance(given, list | tuple) else [given]:
        try:
            number = float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else 0.0
        except OverflowError:  # a whole number that no float holds
            number = 0.0
        if not number > 0:
            raise ValueError(
                f"{seconds!r} is no deadline. Give seconds above 0, or a list of them with one for each round."
            )
        found.append(number)
    if not found:
        raise ValueError("the list of deadlines is empty. Give seconds above 0, or one number for each round.")
    return tuple(found) if several else found[0]


#: Seconds after the invitation, for all rounds or for each; rounds beyond the last have the last.
Deadlines = Annotated[float | tuple[float, ...], BeforeValidator(check_deadlines)]


def of_round(deadlines: Deadlines, round: int) -> float:
    """The deadline of one round.

    Args:
        deadlines: for all rounds, or for each.
        round: from 0.

    Examples:
        >>> of_round(2.0, 7), of_round((1.0, 3.0), 0), of_round((1.0, 3.0), 7)
        (2.0, 1.0, 3.0)
    """
    return deadlines if isinstance(deadlines, float) else deadlines[min(round, len(deadlines) - 1)]
