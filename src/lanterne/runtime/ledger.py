"""The books: bytes by category, samples, FLOPs, seconds and peak memory, per client and in all.

They are kept in columns, one row per address, so that a checkpoint of a hundred thousand clients is a copy of arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lanterne.protocol import Address, Direction
from lanterne.runtime.pricing import Memory
from lanterne.runtime.unserved import Unserved

_SECONDS, _FLOPS, _WASTED_SECONDS, _WASTED_FLOPS = range(4)
_DOWN, _UP, _STATIC, _WORKING, _HELD, _SAMPLES, _ROUND, _STEP, _CATEGORIES = range(9)


@dataclass(slots=True)
class Account:
    """One client's books.

    Args:
        bytes: by category.
        down: bytes to the client, of all categories.
        up: bytes from it.
        flops: of all units done, wasted ones included.
        flops_wasted: of units whose result nobody used.
        busy: seconds at work: download, computation, upload.
        wasted: those of them whose result nobody used.
        static: peak bytes held throughout a request.
        working: peak bytes held in between.
        held: peak bytes that a forward pass left for the backward pass that comes with a later request.
        samples: those whose forward pass was done, see `Ledger.train`.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    down: int = 0
    up: int = 0
    flops: float = 0.0
    flops_wasted: float = 0.0
    busy: float = 0.0
    wasted: float = 0.0
    static: int = 0
    working: int = 0
    held: int = 0
    samples: int = 0


class Ledger(Mapping[Address, Account]):
    """The accounts of all addresses that were ever asked, and the clients' total: row 0, kept along.

    `unserved` is what the server holds across the cut.
    """

    def __init__(self) -> None:
        self.categories: list[str] = []
        self.unserved = Unserved()
        self._rows: dict[Address, int] = {}
        self._reals: NDArray[np.float64] = np.zeros((8, 4))
        self._counts: NDArray[np.int64] = np.zeros((8, _CATEGORIES), dtype=np.int64)

    def __getitem__(self, to: Address) -> Account:
        """What an address has cost; an address that was never asked has no account."""
        return self._account(self._rows[to])

    def __eq__(self, other: object) -> bool:
        """Whether the same addresses have cost the same."""
        if not isinstance(other, Ledger) or self.unserved.snapshot() != other.unserved.snapshot():
            return False
        return self.total == other.total and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Address]:
        """The addresses, in the order in which they were first asked."""
        return iter(self._rows)

    def __len__(self) -> int:
        """How many addresses were ever asked."""
        return len(self._rows)

    @property
    def total(self) -> Account:
        """All clients together; memory is the largest of any."""
        return self._account(0)

    def carry(self, client: Address, category: str, direction: Direction, nbytes: int) -> None:
        """Bytes went over a client's link."""
        if category not in self.categories:
            self.categories.append(category)
            self._counts = np.pad(self._counts, ((0, 0), (0, 1)))
        way, kind = _DOWN if direction == "down" else _UP, _CATEGORIES + self.categories.index(category)
        for row in self._both(client):
            self._counts[row, way] += nbytes
            self._counts[row, kind] += nbytes

    def hold(self, client: Address, memory: Memory) -> None:
        """A client held so much memory."""
        for row in self._both(client):
            self._counts[row, _STATIC] = max(int(self._counts[row, _STATIC]), memory.static)
            self._counts[row, _WORKING] = max(int(self._counts[row, _WORKING]), memory.working)

    def keep(self, client: Address, nbytes: int) -> None:
        """A client's forward pass left so many bytes for the backward pass that is to come with a later request."""
        for row in self._both(client):
            self._counts[row, _HELD] = max(int(self._counts[row, _HELD]), nbytes)

    def train(self, client: Address, round: int, steps: range, batch: int) -> None:
        """A client's forward passes through the first block went through these batches of its stream.

        A batch that comes again in the same round, for another pass over the same samples, is not counted again.

        Args:
            client: whose.
            round: in which the request was dispatched.
            steps: the batches.
            batch: samples in each.
        """
        own, total = self._both(client)
        first = steps.start
        if self._counts[own, _ROUND] == round + 1:
            first = max(first, int(self._counts[own, _STEP]))
        self._counts[own, _ROUND], self._counts[own, _STEP] = round + 1, max(first, steps.stop)
        self._counts[[own, total], _SAMPLES] += max(steps.stop - first, 0) * batch

    def spend(self, to: Address, seconds: float, flops: float, *, wasted: bool) -> None:
        """Time and work were spent. A server's count in its own account, not in the clients' total."""
        for row in self._both(to):
            self._reals[row, _SECONDS] += seconds
            self._reals[row, _FLOPS] += flops
        if wasted:
            self.regret(to, seconds, flops)

    def regret(self, to: Address, seconds: float, flops: float) -> None:
        """What was spent turns out to have been for nothing."""
        for row in self._both(to):
            self._reals[row, _WASTED_SECONDS] += seconds
            self._reals[row, _WASTED_FLOPS] += flops

    def snapshot(self) -> dict[str, Any]:
        """Plain data: columns."""
        rows = 1 + len(self._rows)
        clients = [to for to in self._rows if isinstance(to, int)]
        return {
            "categories": list(self.categories),
            "clients": torch.tensor(clients, dtype=torch.int64),
            "client_rows": torch.tensor([self._rows[to] for to in clients], dtype=torch.int64),
            "servers": [(to, row) for to, row in self._rows.items() if not isinstance(to, int)],
            "reals": torch.from_numpy(self._reals[:rows].copy()),
            "counts": torch.from_numpy(self._counts[:rows].copy()),
            "unserved": self.unserved.snapshot(),
        }

    def restore(self, snap: dict[str, Any]) -> None:
        """Back to a snapshot."""
        self.categories = list(snap["categories"])
        clients = zip(snap["clients"].tolist(), snap["client_rows"].tolist(), strict=True)
        found: list[tuple[Address, int]] = [*clients, *snap["servers"]]
        self._rows = dict(sorted(found, key=lambda pair: pair[1]))
        self._reals, self._counts = snap["reals"].cpu().numpy().copy(), snap["counts"].cpu().numpy().copy()
        self.unserved.restore(snap["unserved"])

    def _both(self, to: Address) -> tuple[int, ...]:
        """The rows in which something is entered: its own, and for a client the total."""
        row = self._rows.get(to)
        if row is None:
            row = self._rows[to] = 1 + len(self._rows)
            if row == len(self._reals):
                self._reals = np.pad(self._reals, ((0, row), (0, 0)))
                self._counts = np.pad(self._counts, ((0, row), (0, 0)))
        return (row, 0) if isinstance(to, int) else (row,)

    def _account(self, row: int) -> Account:
        seconds, flops, wasted, flops_wasted = map(float, self._reals[row])
        down, up, static, working, held, samples, _, _, *counts = map(int, self._counts[row])
        carried = Counter({name: n for name, n in zip(self.categories, counts, strict=True) if n})
        return Account(carried, down, up, flops, flops_wasted, seconds, wasted, static, working, held, samples)
