"""The calls of one run of the loop executor that can begin."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


class Ready:
    """The calls whose inputs are there, in their order."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._after: dict[int, list[Any]] = {}
        self._waits: dict[int, int] = {}
        self._ready: list[Any] = []
        self._helps: list[Callable[[], None]] = []
        self._left = len(nodes)
        self.error: BaseException | None = None
        for node in nodes:
            needs = node.needs
            self._waits[id(node)] = len(needs)
            for need in needs:
                self._after.setdefault(id(need), []).append(node)
            if not needs:
                self._ready.append(node)
        self._ready.reverse()

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return not self._left or self.error is not None

    def take(self) -> Any:  # noqa: ANN401
        """The next call; waits for one, and helps meanwhile; None when there are no more."""
        while True:
            with self._changed:
                while not (self._ready or self._helps) and self._left and self.error is None:
                    self._changed.wait()
                if self.error is not None or not self._left:
                    return None
                if self._ready:
                    return self._ready.pop()
                help = self._helps.pop()
            help()

    def ask(self, help: Callable[[], None], threads: int) -> None:
        """A call has work for threads that find no call.

        Args:
            help: takes part in it, and returns when there is nothing left of it.
            threads: how many may take part.
        """
        with self._changed:
            self._helps += [help] * threads
            self._changed.notify_all()

    def finished(self, node: Any) -> None:  # noqa: ANN401
        """A call is computed: those that waited for it alone are ready."""
        self._left -= 1
        new = False
        for after in self._after.get(id(node), ()):
            self._waits[id(after)] -= 1
            if not self._waits[id(after)]:
                self._ready.insert(0, after)
                new = True
        if new or not self._left:
            self._changed.notify_all()

    def stop(self, error: BaseException) -> None:
        """A call failed: begin no other."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()
