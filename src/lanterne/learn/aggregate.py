"""How many updates become one.

Updates are deltas `w' - w` everywhere: this alone makes degenerate cases equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lanterne.models import ParamView


class Update(NamedTuple):
    """A client's delta on the coordinates that it holds, `[view.size]`, and its weight."""

    view: ParamView
    delta: Tensor
    weight: float


def coverage_sum(current: Tensor, updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """The weighted sum of deltas per coordinate, and the sum of weights that cover it.

    One pass per update, then one per distinct view.

    Args:
        current: `[size]`, for its shape and kind.
        updates: in the order in which they are summed.

    Returns:
        `sum_u weight_u delta_u` and `sum_u weight_u`, each `[size]`.
    """
    sums: dict[ParamView, tuple[Tensor, float]] = {}
    for view, delta, weight in updates:
        if view in sums:
            total, weights = sums[view]
            sums[view] = total.add_(delta, alpha=weight), weights + weight
        else:
            sums[view] = delta * weight, weight
    total, cover = torch.zeros_like(current), torch.zeros_like(current)
    for view, (part, weights) in sums.items():
        if isinstance(view.index, slice):
            total[view.index] += part
            cover[view.index] += weights
        else:
            total.index_add_(0, view.index, part)
            cover.index_add_(0, view.index, torch.full_like(part, weights))
    return total, cover


def coverage_mean(current: Tensor, updates: Sequence[Update], factor: float | Tensor = 1.0) -> Tensor:
    """Per coordinate, the weighted mean of the deltas that cover it; a coordinate that nobody covers keeps its value.

    `w'_i = w_i + factor_i * sum_{u covers i} weight_u delta_{u,i} / sum_{u covers i} weight_u`

    Args:
        current: `[size]`, the weights before.
        updates: in the order in which they are summed.
        factor: a number, or `[size]`.

    Returns:
        `[size]`, the weights after; bit-identical to `current` where nobody covers.

    Examples:
        >>> view = ParamView(slice(0, 2), (((2,),),))
        >>> coverage_mean(torch.zeros(3), [Update(view, torch.tensor([2.0, 4.0]), 1.0)])
        tensor([2., 4., 0.])
    """
    total, cover = coverage_sum(current, updates)
    uncovered = cover == 0
    moved = current + factor * total / cover.masked_fill_(uncovered, 1.0)
    return torch.where(uncovered, current, moved)


def polynomial_staleness(staleness: int, exponent: float) -> float:
    """The weight of an update that is `staleness` versions old, `(1 + staleness)^(-exponent)`.

    Examples:
        >>> polynomial_staleness(0, 0.5), polynomial_staleness(3, 0.5)
        (1.0, 0.5)
    """
    return float((1.0 + staleness) ** -exponent)
