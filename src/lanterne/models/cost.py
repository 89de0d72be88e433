"""What a block costs, derived from the model: its shapes are run on the `meta` device under a FLOP counter.

FLOPs are those of products and convolutions, 2 per multiply-add, which is what `torch.utils.flop_counter` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lanterne.errors import ModelError
from lanterne.models.flops import FlopCounter
from lanterne.models.stack import LayerStack

# Two samples, halved: some layers refuse a batch of one.
_BATCH = 2


class BlockCost(NamedTuple):
    """The cost of one block for one sample.

    `forward`, `weight_gradient` and `input_gradient` are FLOPs; `output` is bytes of what it gives; `saved` is bytes
    that its forward pass keeps for the backward pass; `parameters` is their number.
    """

    forward: float
    weight_gradient: float
    input_gradient: float
    parameters: int
    output: int
    saved: int


def block_costs(stack: LayerStack, dtype: torch.dtype = torch.float32) -> tuple[BlockCost, ...]:
    """The cost of each block, per sample.

    Args:
        stack: the model.
        dtype: of its numbers, for the bytes.

    Returns:
        One entry per block, in order.

    Raises:
        ModelError: if the model cannot take the data's samples, or a block leaves a parameter or its input unused, or
            writes into its input.

    Examples:
        >>> from torch import nn
        >>> linear = LayerStack(nn.Sequential(nn.Linear(3, 5)), (3,))
        >>> block_costs(linear)[0].forward            # 2 FLOPs per multiply-add
        30.0
    """
    _ = stack.output_shape
    x = torch.empty(_BATCH, *stack.sample_shape, dtype=dtype, device="meta")
    saved: list[int] = []
    parameters: set[int] = set()
    seen: set[int] = set()
    alive: list[object] = []  # an address says which storage is meant only as long as the storage lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in seen and storage not in parameters:
            seen.add(storage)
            alive.append(tensor)
            saved[-1] += tensor.untyped_storage().nbytes()
        return tensor

    costs = []
    for b in range(len(stack)):
        leaves = [torch.empty(s, dtype=dtype, device="meta", requires_grad=True) for s in stack.shapes[b]]
        alive.append(leaves)
        parameters.update(leaf.untyped_storage()._cdata for leaf in leaves)
        saved.append(0)
        given, writes = x.detach(), x._version
        y = stack.forward(leaves, given, b, b + 1)
        _check_out_of_place(stack, b, given._version == writes)
        weights, _ = _backward(y, leaves)
        h = x.detach().requires_grad_()
        with FlopCounter() as forward, saved_tensors_hooks(pack, lambda t: t):
            y = stack.forward(leaves, h, b, b + 1)
        both, gradients = _backward(y, [*leaves, h])
        _check_used(stack, b, [g is not None for g in gradients])
        costs.append(
            BlockCost(
                forward=forward.total / _BATCH,
                weight_gradient=weights / _BATCH,
                input_gradient=(both - weights) / _BATCH,
                parameters=stack.edges[b + 1] - stack.edges[b],
                output=y.numel() * y.element_size() // _BATCH,
                saved=saved[-1] // _BATCH,
            )
        )
        x = y
    return tuple(costs)


def _backward(y: Tensor, wanted: list[Tensor]) -> tuple[float, Sequence[Tensor | None]]:
    if not y.requires_grad:
        return 0.0, [None] * len(wanted)
    with FlopCounter() as mode:
        gradients = torch.autograd.grad(y, wanted, torch.empty_like(y), allow_unused=True)
    return float(mode.total), gradients


def _check_out_of_place(stack: LayerStack, block: int, kept: bool) -> None:
    """Refuse a block that overwrites what it is given: behind a cut a message, before the first block the data."""
    if not kept:
        raise ModelError(
            f"Block {stack.names[block]!r} writes into its input, which others still need: a sample, or what came over "
            "a cut. Write the operation out of place (x = x + y instead of x += y, relu instead of relu_)."
        )


def _check_used(stack: LayerStack, block: int, used: list[bool]) -> None:
    """Refuse what would have no gradient in training: a parameter, or the way to the blocks before."""
    *parameters, start = used
    for name, found in zip(stack.parameters[block], parameters, strict=True):
        if not found:
            raise ModelError(
                f"Block {stack.names[block]!r} never uses its parameter {name!r}: it cannot be trained. Leave it out."
            )
    if block and not start:
        raise ModelError(
            f"The output of block {stack.names[block]!r} does not depend on its input, "
            "so that no block before it can be trained. Use the input in its forward."
        )


def describe(stack: LayerStack, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """The costs as rows for a table: one plain dictionary per block."""
    return [
        {"block": name, **cost._asdict()} for name, cost in zip(stack.names, block_costs(stack, dtype), strict=True)
    ]
