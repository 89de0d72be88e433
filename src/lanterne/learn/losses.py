"""Losses: functions of a model's output and the labels that give one number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

#: The label of a row that counts for nothing in a cross-entropy.
NO_LABEL = -100


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, `-(1/B) sum_i log softmax(output_i)[labels_i]`.

    Args:
        output: `[B, classes]`, logits.
        labels: `[B]`, int64; rows with `NO_LABEL` are left out, of `B` as well.

    Returns:
        A 0-d tensor.
    """
    return functional.cross_entropy(output, labels, ignore_index=NO_LABEL)


def logit_adjusted(loss: Loss, prior: Tensor) -> Loss:
    """A loss of `output + log prior`: who has seen a label often must be surer of it.

    Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail Learning via Logit Adjustment", ICLR 2021, arXiv 2007.07314.

    Args:
        loss: of logits and labels.
        prior: `[classes]`, the share of each label; a label of share 0 takes no part, and must not occur.

    Returns:
        Another loss of the same.

    Examples:
        >>> import torch
        >>> output, labels, even = torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.tensor([0.5, 0.5])
        >>> plain, adjusted = cross_entropy(output, labels), logit_adjusted(cross_entropy, even)(output, labels)
        >>> bool(torch.allclose(plain, adjusted))
        True
        >>> logit_adjusted(cross_entropy, torch.tensor([1.0, 0.0]))(output, labels).tolist()
        0.0
    """
    bias = prior.log()
    return lambda output, labels: loss(output + bias, labels)
