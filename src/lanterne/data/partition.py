"""Who owns which rows: by a named scheme, or a partition of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lanterne import rng
from lanterne.data.partitioners import Rows, classes, dirichlet
from lanterne.data.schemes import SIZES, by_size, iid, natural, shards
from lanterne.data.shared import Shared
from lanterne.errors import DataError, nearest

_LARGEST_ALPHA = 1e6  # the shares are equal to a tenth of a percent; far above, their sum overflows


def partition(
    spec: str,
    labels: Tensor | NDArray[np.integer[Any]] | Sequence[int],
    clients: int,
    seed: int,
    owner: Tensor | NDArray[np.integer[Any]] | Sequence[int] | None = None,
) -> Sequence[Rows]:
    """The row numbers of each client; nobody shares a row with another unless asked to, and nobody is left without.

    * `iid`: the rows in random order, cut into parts whose sizes differ by one at most.
    * `dirichlet:ALPHA`: the rows of each class are divided by shares drawn from `Dir(ALPHA, ..., ALPHA)` (Yurochkin et
      al. 2019, arXiv 1905.12022; flwr-datasets' `DirichletPartitioner` without balancing). The draw is repeated, up to
      ten times, until every client holds 10 rows; where that fails, until every client holds one.
    * `shards:N`: the rows sorted by label are cut into `N * clients` shards whose sizes differ by one at most, and each
      client is dealt N (McMahan et al. 2017, arXiv 1602.05629, with N = 2).
    * `classes:N`: each client holds N classes, the first in turn, the others random, and a class is divided evenly
      among those who hold it (flwr-datasets' `PathologicalPartitioner`, `first-deterministic`). With fewer clients than
      classes, the rows of a class that nobody holds are left out.
    * `linear`, `square`, `exponential`: the rows in random order, cut into parts in proportion to `c`, `c^2` or `e^c`,
      rounded down, for the clients c = 1, 2, ...; what is left over goes to the last (flwr-datasets' partitioners of
      these names).
    * `natural`: each client is one owner and holds all rows that came from it (flwr-datasets' `NaturalIdPartitioner`).
      With fewer clients than owners, the owners are drawn at random, and the rows of the others are left out. All other
      schemes but `classes` use every row.
    * `...@S`, any of these: cut for S clients, and client `c` holds what falls to number `c mod S`. So a population can
      be larger than the data set; see `Shared`.

    Args:
        spec: one of the above, for instance `"dirichlet:0.3"`.
        labels: the label of each row, `[rows]`.
        clients: how many clients there are.
        seed: the run's seed; the same arguments give the same partition.
        owner: who each row comes from, `[rows]`, where that is known.

    Returns:
        For each client its row numbers, int64, ascending.

    Raises:
        DataError: a scheme that does not exist, an argument outside its range, more clients than rows, a client without
            rows.

    Examples:
        >>> rows = partition("shards:2", [0, 0, 1, 1, 2, 2, 3, 3], clients=2, seed=0)
        >>> [len(each) for each in rows]
        [4, 4]
    """
    numbers = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise DataError(
            f"The labels are {numbers.dtype} of shape {numbers.shape}; a partition needs the class number of each row. "
            "Give integers of shape [rows]."
        )
    spec, at, parts = spec.partition("@")
    if at:
        return Shared(partition(spec, numbers, _parts(spec, parts), seed, owner), clients)
    scheme, argument = _parse(spec)
    if not 1 <= clients <= numbers.size:
        raise DataError(
            f"{clients} clients cannot share {numbers.size} rows so that each holds at least one. "
            f"Write a number of clients from 1 to {numbers.size}, or let clients share parts, as in '{spec}@"
            f"{min(100, max(1, numbers.size))}'."
        )
    key = rng.fold(seed, "partition")
    if scheme == "natural":
        return natural(None if owner is None else np.asarray(owner), numbers.size, clients, key)
    if scheme in SIZES:
        return by_size(scheme, numbers.size, clients, key)
    rows = _SCHEMES[scheme](numbers.astype(np.int64), clients, argument, key)
    return [np.sort(each) for each in rows]


def check_partition(
    rows: Sequence[NDArray[np.integer[Any]] | Sequence[int]], n_rows: int, clients: int
) -> Sequence[Rows]:
    """A user's own partition, checked: one array per client, no row twice, none that does not exist, nobody empty.

    Args:
        rows: for each client its row numbers, in any order; rows that nobody holds are left out.
        n_rows: how many rows there are to train on.
        clients: how many clients the fleet has.

    Returns:
        The same row numbers as int64, in the order given.

    Raises:
        DataError: what is wrong, and with which client and row.

    Examples:
        >>> [each.tolist() for each in check_partition([[0, 2], [1]], n_rows=3, clients=2)]
        [[0, 2], [1]]
    """
    if isinstance(rows, Shared):
        return Shared(check_partition(rows.parts, n_rows, len(rows.parts)), clients)
    if len(rows) != clients:
        raise DataError(
            f"The partition has {len(rows)} parts, the fleet {clients} clients. "
            "Give one array of row numbers for each client."
        )
    empty = [client for client, own in enumerate(rows) if not np.size(own)]
    if empty:
        raise DataError(
            f"The partition leaves {len(empty)} of {clients} clients without a row, first of all client {empty[0]}. "
            "Who has nothing to train on cannot take part: give each of them a row, or leave these parts out and make "
            "the fleet as much smaller."
        )
    holder = np.full(n_rows, -1, dtype=np.int64)
    checked = []
    for client, own in enumerate(rows):
        numbers = np.asarray(own)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise DataError(
                f"Part {client} of the partition is {numbers.dtype} of shape {numbers.shape}. "
                "Give every client a one-dimensional array of at least one row number."
            )
        numbers = numbers.astype(np.int64)
        outside = numbers[(numbers < 0) | (numbers >= n_rows)]
        if outside.size:
            raise DataError(
                f"Part {client} of the partition holds row {outside[0]}, but the data set has the rows "
                f"0..{n_rows - 1}. Number the rows of the training split from 0."
            )
        unique, counts = np.unique(numbers, return_counts=True)
        twice = np.concatenate([unique[holder[unique] >= 0], unique[counts > 1]])
        if twice.size:
            other = holder[twice[0]] if holder[twice[0]] >= 0 else client
            raise DataError(
                f"The partition names row {twice[0]} twice, for client {other} and for client {client}, so that it "
                "would count double. Give every row to one client at most, and name it once."
            )
        holder[numbers] = client
        checked.append(numbers)
    return checked


def _parts(spec: str, parts: str) -> int:
    if not parts.isdecimal() or not int(parts):
        raise DataError(
            f"The partition '{spec}@{parts}' needs a whole number of parts behind '@', 1 or more. "
            f"Write for instance '{spec}@100'."
        )
    return int(parts)


def _parse(spec: str) -> tuple[str, float]:
    scheme, colon, argument = spec.partition(":")
    plain = ("iid", "natural", *SIZES)
    if scheme not in (*plain, *_SCHEMES):
        raise DataError(f"There is no partition {scheme!r} (in {spec!r}). {nearest(scheme, {*plain, *_SCHEMES})}")
    if scheme in plain:
        if colon:
            raise DataError(f"The partition {spec!r} has an argument, but {scheme} takes none. Write {scheme!r}.")
        return scheme, 0
    try:
        value = float(argument) if scheme == "dirichlet" else int(argument)
    except ValueError:
        value = -1
    if scheme == "dirichlet" and not 0 < value <= _LARGEST_ALPHA:
        raise DataError(
            f"The partition {spec!r} needs a concentration alpha above 0 and up to {_LARGEST_ALPHA:g}: the smaller, "
            "the fewer classes a client sees. Write for instance 'dirichlet:0.3'."
        )
    if scheme != "dirichlet" and value < 1:
        raise DataError(
            f"The partition {spec!r} needs a whole number of {scheme} per client, 1 or more. "
            f"Write for instance '{scheme}:2'."
        )
    return scheme, value


_SCHEMES: dict[str, Callable[[Rows, int, float, int], list[Rows]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "classes": classes,
}
