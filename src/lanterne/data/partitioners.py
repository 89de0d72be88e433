"""The partitioners of flwr-datasets, asked for row numbers only, quietly, and with complaints in our words."""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from lanterne.data.quiet import quiet
from lanterne.errors import DataError

Rows = NDArray[np.int64]

_LEAST = (10, 1)  # rows per client: what flwr-datasets asks for by itself, else at least something to train on


def dirichlet(labels: Rows, clients: int, alpha: float, key: int) -> list[Rows]:
    """Divide the rows of each class by shares drawn from a symmetric Dirichlet distribution.

    Args:
        labels: the label of each row, `[rows]`.
        clients: how many clients there are, at most as many as rows.
        alpha: the concentration, above 0.
        key: what the draw depends on.

    Raises:
        DataError: a client is without a row however often the draw is repeated.
    """
    for least in _LEAST:
        # A ValueError says that the draw was repeated ten times in vain; with too few rows it need not begin.
        if least * clients <= labels.size:
            with contextlib.suppress(ValueError):
                return _draw("Dirichlet", labels, clients, alpha=alpha, min_partition_size=least, seed=key)
    rows = _draw("Dirichlet", labels, clients, alpha=alpha, min_partition_size=0, seed=key)
    empty = sum(not each.size for each in rows)
    raise DataError(
        f"The partition 'dirichlet:{alpha:g}' of {labels.size} rows leaves {empty} of {clients} clients without a row, "
        "and repeating the draw ten times did not help. Write fewer clients, a larger alpha, or 'iid'."
    )


def classes(labels: Rows, clients: int, per_client: float, key: int) -> list[Rows]:
    """Give each client a number of classes, and divide each class evenly among those who hold it.

    Args:
        labels: the label of each row, `[rows]`.
        clients: how many clients there are, at most as many as rows.
        per_client: how many classes a client holds, a whole number from 1.
        key: what the draw depends on.

    Raises:
        DataError: there are fewer classes than a client shall hold, or fewer rows of a class than clients who hold it.
    """
    count = int(per_client)
    _, sizes = np.unique(labels, return_counts=True)
    if count > sizes.size:
        raise DataError(
            f"The partition 'classes:{count}' gives each client {count} classes, but the labels show {sizes.size}. "
            f"Write at most 'classes:{sizes.size}'."
        )
    try:
        return _draw(
            "Pathological",
            labels,
            clients,
            num_classes_per_partition=count,
            class_assignment_mode="first-deterministic",
            seed=key,
        )
    except ValueError as error:
        raise DataError(
            f"The partition 'classes:{count}' gives a class to more of the {clients} clients than it has rows (the "
            f"smallest class has {sizes.min()}). Write fewer clients or fewer classes per client."
        ) from error


def _draw(kind: str, labels: Rows, clients: int, **arguments: object) -> list[Rows]:
    with quiet():
        import datasets
        from flwr_datasets import partitioner as partitioners

        make = getattr(partitioners, f"{kind}Partitioner")
        partitioner = make(num_partitions=clients, partition_by="label", shuffle=False, **arguments)
        partitioner.dataset = datasets.Dataset.from_dict({"label": labels})
        partitioner.num_partitions  # noqa: B018 - the first question makes the partitioner draw
        # The map itself: load_partition would copy a data set for each client, two seconds for a thousand.
        rows = partitioner._partition_id_to_indices
    return [np.asarray(rows[client], dtype=np.int64) for client in range(clients)]
