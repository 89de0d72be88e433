"""Which rows a client reads at which step: a function of integers alone, so that every runtime reads the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lanterne import rng
from lanterne.data.augment import Augmentation
from lanterne.data.shared import different
from lanterne.errors import DataError, ProtocolError

Rows = NDArray[np.int64]

_EPOCHS_KEPT = 2  # a span that crosses the end of an epoch needs two
_ROWS_KEPT = 1 << 22  # 32 MiB of row numbers over all clients
_OVERHEAD = 64  # what keeping an epoch takes besides its rows, in rows


class Streams:
    """The endless stream of batches of every client.

    The stream of a client is the concatenation of fresh permutations of its rows, one per epoch. With `n` rows and
    `pi_e` the permutation of epoch `e`, drawn with `rng.generator(seed, "batches", client, e)`,

        stream[p] = rows[pi_e[p mod n]],   e = p div n,

    and step `s` reads the positions `s * batch ... (s + 1) * batch - 1`. So every batch is full, each row is read once
    per epoch, a client with fewer rows than a batch works, and the same span gives the same rows whatever was
    asked before. Safe to use from several threads.

    With an augmentation, each row of an epoch is read in a variant of its own, drawn for all of them at once with
    `rng.generator(seed, "augment", client, e)`: what is read are numbers of variants, see `Augmentation`.

    Args:
        partition: the row numbers of each client, at least one each.
        batch: rows in a batch.
        seed: the run's seed.
        augment: how rows are changed before they are read; the executor needs the same.

    Raises:
        DataError: a batch below one, or a client without rows.

    Examples:
        >>> streams = Streams([np.array([10, 11, 12]), np.array([20])], batch=2, seed=0)
        >>> streams.rows(1, range(3)).tolist()
        [[20, 20], [20, 20], [20, 20]]
        >>> sorted(streams.rows(0, range(3)).ravel().tolist())     # three steps of two rows are two epochs
        [10, 10, 11, 11, 12, 12]
    """

    def __init__(
        self,
        partition: Sequence[NDArray[np.integer]],
        batch: int,
        seed: int,
        augment: Augmentation | None = None,
    ) -> None:
        if batch < 1:
            raise DataError(f"A batch of {batch} rows cannot be trained on. Write a batch of 1 or more.")
        # A copy: the stream must not change when the caller's arrays do.
        self._rows: list[Rows] = [np.array(rows, dtype=np.int64) for rows in different(partition)]
        self._clients = len(partition)
        for client, rows in enumerate(self._rows):
            if rows.ndim != 1 or not rows.size:
                raise DataError(
                    f"Client {client} has no rows (an array of shape {rows.shape}), so it has no stream to read. "
                    "Give every client a one-dimensional array of at least one row number."
                )
        self.batch, self.seed, self.augment = batch, seed, augment
        self._kept: OrderedDict[int, dict[int, Rows]] = OrderedDict()  # client -> epoch -> rows; last used at the end
        self._kept_rows = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many clients there are."""
        return self._clients

    def samples(self, client: int) -> int:
        """How many rows a client holds.

        Args:
            client: its number, from 0.

        Raises:
            ProtocolError: there is no such client.
        """
        return len(self._own(client))

    @property
    def smallest(self) -> int:
        """The first client of those that hold the fewest rows."""
        return min(range(len(self._rows)), key=lambda client: len(self._rows[client]))

    def rows(self, client: int, steps: range) -> Rows:
        """The rows that a client reads at consecutive steps of its own stream.

        Args:
            client: its number, from 0.
            steps: which steps, `range(first, last + 1)`.

        Returns:
            Row numbers, or those of their variants, int64, `[len(steps), batch]`; the caller may write to them.

        Raises:
            ProtocolError: there is no such client, or the steps are negative or not consecutive.

        Examples:
            >>> streams = Streams([np.arange(100)], batch=32, seed=7)
            >>> bool((streams.rows(0, range(9))[5] == streams.rows(0, range(5, 6))[0]).all())
            True
        """
        n = len(self._own(client))
        if steps.step != 1 or steps.start < 0:
            raise ProtocolError(
                f"{steps} is not a span of a client's stream: its steps are consecutive and start at 0 or later. "
                "Write range(first, last + 1)."
            )
        out = np.empty(len(steps) * self.batch, dtype=np.int64)
        position, filled = steps.start * self.batch, 0
        while filled < out.size:
            epoch, start = divmod(position + filled, n)
            take = min(n - start, out.size - filled)
            out[filled : filled + take] = self._epoch(client, epoch)[start : start + take]
            filled += take
        return out.reshape(len(steps), self.batch)

    def _own(self, client: int) -> Rows:
        if not 0 <= client < self._clients:
            raise ProtocolError(f"There is no client {client}: there are {self._clients}, numbered from 0.")
        return self._rows[client % len(self._rows)]

    def _epoch(self, client: int, epoch: int) -> Rows:
        with self._lock:
            epochs = self._kept.get(client)
            if epochs is not None and epoch in epochs:
                self._kept.move_to_end(client)
                return epochs[epoch]
        own = self._own(client)
        # Outside the lock: two threads may draw the same permutation, and it is the same.
        order = rng.generator(self.seed, "batches", client, epoch).permutation(own)
        if self.augment is not None:
            order = self.augment.draw(order, rng.generator(self.seed, "augment", client, epoch))
        with self._lock:
            self._keep(client, epoch, order)
        return order

    def _keep(self, client: int, epoch: int, order: Rows) -> None:
        epochs = self._kept.setdefault(client, {})
        self._kept.move_to_end(client)
        if epoch in epochs:
            return
        if len(epochs) == _EPOCHS_KEPT:
            del epochs[next(iter(epochs))]
            self._kept_rows -= order.size + _OVERHEAD
        epochs[epoch] = order
        self._kept_rows += order.size + _OVERHEAD
        while self._kept_rows > _ROWS_KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_rows -= sum(each.size + _OVERHEAD for each in dropped.values())
