"""A partition with fewer parts than clients: how a data set serves a population that is larger than it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import DataError

Rows = NDArray[np.int64]


class Shared(Sequence[Rows]):
    """Client `c` holds part `c mod S`: the clients of a part hold the same rows, and read them in orders of their own.

    A million clients then cost what `S` parts cost. It is a population of `S` data sets, not of a million: what depends
    on how many different clients were heard looks better than it is.

    Args:
        parts: the row numbers of each part.
        clients: how many clients there are, at least as many as parts.

    Raises:
        DataError: more parts than clients, whose rows nobody would hold.

    Examples:
        >>> Shared([np.array([0, 1]), np.array([2])], clients=5)[4].tolist()
        [0, 1]
    """

    def __init__(self, parts: Sequence[Rows], clients: int) -> None:
        if not 1 <= len(parts) <= clients:
            raise DataError(
                f"{clients} clients cannot hold {len(parts)} parts of the data, one each. "
                f"Write a number of parts from 1 to {clients}."
            )
        self.parts, self.clients = list(parts), clients

    def __len__(self) -> int:
        """How many clients there are."""
        return self.clients

    def __getitem__(self, client):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """The rows of a client."""
        return self.parts[range(self.clients)[client] % len(self.parts)]


def different(partition: Sequence[NDArray[np.integer]]) -> Sequence[NDArray[np.integer]]:
    """The different parts of a partition: client `c` holds that of number `c mod` how many there are.

    Args:
        partition: of the rows.
    """
    return partition.parts if isinstance(partition, Shared) else partition
