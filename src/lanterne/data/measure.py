"""What dropping the slow does to the people who own the slow devices: accuracy on their kind of data.

A mean over the test split hides it: a class that only slow devices hold may be lost while the mean stays high. A client
has few rows of its own, too few to judge on; but under label shift, where clients differ in how often they see a class
and not in what the class looks like, the test split weighted by the client's label mix is an unbiased estimate for it.
Where the clients are the owners of the rows and each has held-out rows of its own, those are the better judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanterne.errors import DataError


def label_shares(
    partition: Sequence[NDArray[np.integer]], labels: Tensor | NDArray[np.integer[Any]], classes: int
) -> Tensor:
    """How often each client sees each class.

        shares[c, k] = |{rows of client c with label k}| / |rows of client c|

    Args:
        partition: the row numbers of each client, at least one each.
        labels: the labels of all rows, `[rows]`.
        classes: how many classes there are.

    Returns:
        Shares, float64, `[clients, classes]`; each row sums to 1.

    Raises:
        DataError: a client without rows, or a label outside the classes.

    Examples:
        >>> label_shares([np.array([0, 1]), np.array([2, 3])], np.array([0, 1, 1, 1]), classes=2).tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    numbers = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= classes):
        raise DataError(
            f"The labels run from {numbers.min()} to {numbers.max()}, but with {classes} classes a label lies in "
            f"0..{classes - 1}. Give the number of classes of the data set."
        )
    counts = np.zeros((len(partition), classes))
    for client, rows in enumerate(partition):
        if not len(rows):
            raise DataError(f"Client {client} has no rows, so it has no label mix. Give every client at least one row.")
        counts[client] = np.bincount(numbers[rows], minlength=classes)
    return torch.from_numpy(counts / counts.sum(axis=1, keepdims=True))


def client_means(per_class: Tensor, shares: Tensor) -> Tensor:
    """What each client should expect of a model, from what the model does on each class of the test split.

        mean[c] = sum_k shares[c, k] * per_class[k]

    The expectation over the client's own distribution is exactly this sum under label shift, where `p(x | y)` is the
    same for everybody and only `p(y)` differs: IID, Dirichlet, shard and class partitions of one data set. It is not
    under feature shift (other handwritings, other cameras), which needs held-out rows of every client: see `held_out`.

    Args:
        per_class: accuracy (a share of 1) or loss (its unit) on each class of the test split, `[classes]`; `nan` where
            the split has no row of the class.
        shares: what `label_shares` returns, `[clients, classes]`.

    Returns:
        The mean of each client, float64, `[clients]`; `nan` for a client who holds a class that was not measured.

    Raises:
        DataError: the two do not speak of the same classes.

    Examples:
        >>> shares = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
        >>> client_means(torch.tensor([1.0, 0.5]), shares).tolist()
        [0.75, 0.5]
    """
    if per_class.ndim != 1 or shares.ndim != 2 or shares.shape[1] != len(per_class):
        raise DataError(
            f"Values of shape {tuple(per_class.shape)} cannot be weighted by shares of shape {tuple(shares.shape)}. "
            "Give one value for each class, [classes], and the shares as [clients, classes]."
        )
    values = per_class.to(shares)
    # Not a matrix product: a class that a client does not hold must not reach it, not even as nan.
    return torch.where(shares > 0, shares * values, 0.0).sum(dim=1)


def held_out(
    partition: Sequence[NDArray[np.integer]], owner: Tensor | None, test_owner: Tensor | None
) -> NDArray[np.int64] | None:
    """Which client each row of the test split belongs to, where clients are the owners of the rows.

    Args:
        partition: the row numbers of each client.
        owner: who each training row comes from, `[rows]`.
        test_owner: who each held-out row comes from, `[test rows]`.

    Returns:
        Client numbers, int64, `[test rows]`, -1 where nobody here owns the row; None where a client holds rows of
        several owners, shares one with another client, or has no held-out row: then there is no such judge for all.

    Examples:
        >>> rows = [np.array([0, 1]), np.array([3])]
        >>> held_out(rows, torch.tensor([4, 4, 7, 9]), torch.tensor([9, 7, 4, 4])).tolist()
        [1, -1, 0, 0]
        >>> held_out([np.array([0, 3])], torch.tensor([4, 4, 7, 9]), torch.tensor([9])) is None
        True
    """
    if owner is None or test_owner is None:
        return None
    owners = [np.unique(owner.numpy()[rows]) for rows in partition]
    if any(len(each) != 1 for each in owners):
        return None
    client_of = {int(own): client for client, (own,) in enumerate(owners)}
    found = np.array([client_of.get(own, -1) for own in test_owner.tolist()], dtype=np.int64)
    known = np.unique(found[found >= 0])
    return found if len(known) == len(partition) else None
