"""The schemes that are a few lines of NumPy each.

The partitioners of flwr-datasets are not used for them: those of IID and of sizes cut rows that they do not shuffle,
the one of shards leaves out the rows that do not fill a shard, up to half of a small data set, and the one of natural
ids walks the rows in Python. Where theirs leave out nothing, on shuffled rows, the results are the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lanterne import rng
from lanterne.data.partitioners import Rows
from lanterne.errors import DataError

#: How much client c = 1, 2, ... gets, up to a factor; `e^c` relative to the last client's, which does not overflow.
SIZES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "linear": lambda c: c,
    "square": lambda c: c**2,
    "exponential": lambda c: np.exp(c - c[-1]),
}


def iid(labels: Rows, clients: int, _: float, key: int) -> list[Rows]:
    """The rows in random order, cut into parts whose sizes differ by one at most."""
    return np.array_split(rng.generator(key).permutation(labels.size), clients)


def shards(labels: Rows, clients: int, per_client: float, key: int) -> list[Rows]:
    """The rows sorted by label, cut into shards whose sizes differ by one at most; each client is dealt so many.

    Raises:
        DataError: there are fewer rows than shards.
    """
    count = clients * int(per_client)
    if count > labels.size:
        raise DataError(
            f"{clients} clients with {int(per_client)} shards each need {count} shards, but there are only "
            f"{labels.size} rows. Write at most 'shards:{labels.size // clients}', or fewer clients."
        )
    parts = np.array_split(np.argsort(labels, kind="stable"), count)
    hands = rng.generator(key).permutation(count).reshape(clients, -1)
    return [np.concatenate([parts[shard] for shard in hand]) for hand in hands]


def by_size(scheme: str, rows: int, clients: int, key: int) -> list[Rows]:
    """The rows in random order, cut into parts in proportion to `SIZES[scheme]`.

    Args:
        scheme: one of `SIZES`.
        rows: how many rows there are.
        clients: how many clients there are, at most as many as rows.
        key: what the order depends on.

    Raises:
        DataError: a part that is rounded down to nothing.
    """
    sizes = _sizes(scheme, rows, clients)
    empty = int((sizes == 0).sum())
    if empty:
        # The more clients there are, the less is left for the first.
        most = bisect_left(range(1, clients), True, key=lambda k: not _sizes(scheme, rows, k).all())
        milder = next((each for each in ("square", "linear") if _sizes(each, rows, clients).all()), "iid")
        raise DataError(
            f"The partition {scheme!r} of {rows} rows leaves {empty} of {clients} clients without a row. Write at most "
            f"{most} clients, or {milder!r}."
        )
    order = rng.generator(key).permutation(rows)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _sizes(scheme: str, rows: int, clients: int) -> NDArray[np.int64]:
    share = SIZES[scheme](np.arange(1, clients + 1, dtype=np.float64))
    sizes: NDArray[np.int64] = (share / share.sum() * rows).astype(np.int64)
    sizes[-1] += rows - sizes.sum()
    return sizes


def natural(owner: NDArray[np.integer] | None, rows: int, clients: int, key: int) -> list[Rows]:
    """Each client is one owner; with fewer clients than owners, the owners are drawn at random.

    Args:
        owner: who each row comes from, `[rows]`.
        rows: how many rows there are.
        clients: how many clients there are.
        key: what the draw depends on.

    Raises:
        DataError: nobody knows who owns the rows, or there are more clients than owners.
    """
    if owner is None:
        raise DataError(
            "The partition 'natural' needs to know who each row comes from, and this data set does not say. Name the "
            "column that does (data.owner), or take another partition, for instance 'dirichlet:0.3'."
        )
    if owner.shape != (rows,):
        raise DataError(
            f"The owners are of shape {owner.shape}, but there are {rows} rows. Give one owner for each row."
        )
    order = np.argsort(owner, kind="stable")
    _, starts = np.unique(owner[order], return_index=True)
    parts = np.split(order, starts[1:])
    if clients > len(parts):
        raise DataError(
            f"The partition 'natural' leaves {clients - len(parts)} of {clients} clients without a row, for the rows "
            f"come from {len(parts)} owners. Write at most {len(parts)} clients."
        )
    chosen = np.sort(rng.generator(key).permutation(len(parts))[:clients])
    return [parts[each] for each in chosen]
