"""What the server holds across the cut: what clients sent and it has not worked off, and what it keeps meanwhile."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

#: What the arrays are counted as that come up across a cut and wait for the server's work.
ACROSS = frozenset({"act_up", "labels_up", "grad_up"})

_Key = tuple[str, int]


class Unserved:
    """Bytes on the server, by what they wait for: now, and at most at any moment.

    A client's arrays wait from their arrival until the server's work on them has ended. Under a U-shaped cut the server
    keeps, besides, what its own forward pass saved until it has gone backward.

    Examples:
        >>> held = Unserved()
        >>> held.come(("sent", 0), 10)
        >>> held.come(("sent", 1), 20)
        >>> held.gone(("sent", 0))
        >>> held.now, held.peak
        (20, 30)
    """

    def __init__(self) -> None:
        self.now, self.peak = 0, 0
        self._held: dict[_Key, int] = {}

    def come(self, key: _Key, nbytes: int) -> None:
        """So many bytes wait from now on; under the same key they take the place of those before."""
        self.gone(key)
        self._held[key] = nbytes
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def gone(self, key: _Key) -> None:
        """They are worked off; nothing happens where they were not there."""
        self.now -= self._held.pop(key, 0)

    def only(self, keys: Container[_Key]) -> None:
        """All others are given up: nothing is still to come that would take them in."""
        for key in [key for key in self._held if key not in keys]:
            self.gone(key)

    def snapshot(self) -> dict[str, Any]:
        """Plain data."""
        return {"held": [(*key, nbytes) for key, nbytes in self._held.items()], "peak": self.peak}

    def restore(self, snap: dict[str, Any]) -> None:
        """Back to a snapshot."""
        self._held = {(kind, number): nbytes for kind, number, nbytes in snap["held"]}
        self.now, self.peak = sum(self._held.values()), snap["peak"]
