"""Weights at `w + mu u`: the tensors of a pass, each made when its layer asks for it and forgotten when it has run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lanterne.learn.zeroth_order.directions import Direction, pieces, scaled, stretched
from lanterne.learn.zeroth_order.group import Group


class Perturbed(Sequence[Tensor]):
    """The tensors of one segment at `w + shift * u`; `LayerStack.forward` asks for one after the other.

    So a pass holds no more than it would without, and one tensor.

    Args:
        group: what is perturbed.
        segment: which of its segments.
        w: `[group.size]`, left as it is.
        direction: `u`, or None for the weights as they are.
        shift: how far along it.
    """

    def __init__(self, group: Group, segment: int, w: Tensor, direction: Direction | None, shift: float) -> None:
        self.group, self.w, self.direction = group, w, direction
        self.held = group.tensors[segment]
        self._by = None if direction is None else stretched(direction, shift, w.dtype)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self.held)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """One tensor, made now."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        held = self.held[index]
        base = self.w[held.first : held.first + held.size]
        if self.direction is None or self._by is None or held.index is None:
            return base.view(held.shape)
        return moved(base, self.direction, held.index, self._by, whole=self.group.functional).view(held.shape)


def moved(base: Tensor, direction: Direction, tensor: int, by: Tensor, *, whole: bool) -> Tensor:
    """`base + by * u` for one tensor.

    Args:
        base: `[size]`, left as it is.
        direction: `u`.
        tensor: which of the trained ones.
        by: 0-d, from `stretched`.
        whole: in one piece, as inside a transform.

    Returns:
        `[size]`.
    """
    if whole or base.is_meta:
        return base + scaled(direction, tensor, 0, len(base), by)
    out = torch.empty_like(base)
    for first, last in pieces(direction.kind, len(base), base.device, whole=False):
        torch.add(base[first:last], scaled(direction, tensor, first, last, by), out=out[first:last])
    return out


def moved_(group: Group, w: Tensor, direction: Direction, shift: float) -> Tensor:
    """All of `w + shift * u`, in place.

    Args:
        group: what is perturbed.
        w: `[group.size]`, overwritten.
        direction: `u`.
        shift: how far along it.
    """
    by = stretched(direction, shift, w.dtype)
    for i, held in enumerate(group.trained):
        part = w[held.first : held.first + held.size]
        for first, last in pieces(direction.kind, held.size, w.device, whole=False):
            part[first:last] += scaled(direction, i, first, last, by)
    return w
