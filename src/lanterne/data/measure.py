"""What dropping the slow does to the people who own the slow devices: accuracy on their kind of data.

A mean over the test split hides it: a class that only slow devices hold may be lost while the mean stays high. A client
has few rows of its own, too few to judge on; but under label shift, where clients differ in how often they see a class
and not in what the class looks like, the test split weighted by the client's label mix is an unbiased estimate for it.
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
    under feature shift (other handwritings, other cameras), which needs held-out rows of every client.

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
