"""Losses: functions of a model's output and the labels that give one number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, `-(1/B) sum_i log softmax(output_i)[labels_i]`.

    Args:
        output: `[B, classes]`, logits.
        labels: `[B]`, int64.

    Returns:
        A 0-d tensor.
    """
    return functional.cross_entropy(output, labels)
