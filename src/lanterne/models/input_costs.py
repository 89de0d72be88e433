"""What it costs to differentiate with respect to the input alone, and to differentiate such a gradient once more.

Products and convolutions are counted as in `lanterne.models.cost`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanterne.models.flops import FlopCounter
from lanterne.models.stack import LayerStack

# Two samples, halved: some layers refuse a batch of one.
_BATCH = 2


class InputCost(NamedTuple):
    """FLOPs of one block for one sample, where a backward pass holds the parameters fixed.

    `backward` is the gradient with respect to the block's input. `double` is what it takes to differentiate that
    gradient once more: with respect to the block's parameters, and to what came to it from the block behind. A block
    that is not the pass's first hands a gradient on to the one in front of it as well, for `onward` more.
    """

    backward: float
    double: float
    onward: float


def input_costs(stack: LayerStack, dtype: torch.dtype = torch.float32) -> tuple[InputCost, ...]:
    """The cost of each block, per sample.

    Args:
        stack: the network.
        dtype: of its numbers.

    Returns:
        One entry per block, in order.

    Examples:
        >>> from torch import nn
        >>> linear = LayerStack(nn.Sequential(nn.Linear(3, 5)), (3,))
        >>> input_costs(linear)                      # products of 30 FLOPs: one, three, and one more
        (InputCost(backward=30.0, double=90.0, onward=30.0),)
    """
    x = torch.empty(_BATCH, *stack.sample_shape, dtype=dtype, device="meta")
    costs = []
    for b in range(len(stack)):
        leaves = [torch.empty(s, dtype=dtype, device="meta", requires_grad=True) for s in stack.shapes[b]]
        h = x.detach().requires_grad_()
        y = stack.forward(leaves, h, b, b + 1)
        up = torch.empty_like(y).requires_grad_()
        with FlopCounter() as backward:
            (g,) = torch.autograd.grad(y, [h], up, create_graph=True)
        inner, all_ = ([*leaves, up], [*leaves, up, h])
        double, onward = (_again([g, y], wanted) for wanted in (inner, all_))
        costs.append(InputCost(backward.total / _BATCH, double / _BATCH, (onward - double) / _BATCH))
        x = y
    return tuple(costs)


def _again(outputs: list[Tensor], wanted: list[Tensor]) -> float:
    """FLOPs of the gradients of a gradient and of the output, with respect to these."""
    with FlopCounter() as counter:
        seeds = [torch.empty_like(o) for o in outputs]
        torch.autograd.grad(outputs, wanted, seeds, retain_graph=True, allow_unused=True)
    return float(counter.total)
