"""Flat parameters and what can be done with them in single passes.

The parameters of a model are one vector; the tensors that layers want are views of it. What a message holds is
described by a `Spec`: names, shapes and dtypes, from which bytes follow without any number being known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class ArraySpec(NamedTuple):
    """The name, shape and dtype of one array of a message."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values, which is what a link carries."""
        return math.prod(self.shape) * self.dtype.itemsize


Spec = tuple[ArraySpec, ...]


def spec_of(arrays: Mapping[str, Tensor]) -> Spec:
    """The spec of a message's arrays, in their order."""
    return tuple(ArraySpec(name, tuple(array.shape), array.dtype) for name, array in arrays.items())


def fits(arrays: Mapping[str, Tensor], spec: Spec) -> bool:
    """Whether a message's arrays are what a spec says, in its order: `spec_of(arrays) == spec`.

    Examples:
        >>> fits({"w": torch.zeros(2)}, spec_of({"w": torch.ones(2)}))
        True
        >>> fits({"w": torch.zeros(2)}, spec_of({"w": torch.ones(3)}))
        False
    """
    if len(arrays) != len(spec):
        return False
    pairs = zip(arrays.items(), spec, strict=True)
    return all(n == a.name and t.shape == a.shape and t.dtype == a.dtype for (n, t), a in pairs)


@lru_cache(maxsize=4096)
def nbytes(spec: Spec) -> int:
    """Bytes of all arrays of a spec.

    Examples:
        >>> nbytes(spec_of({"w": torch.zeros(10, 2), "n": torch.tensor(3)}))
        88
    """
    return sum(array.nbytes for array in spec)


def empty(spec: Spec) -> dict[str, Tensor]:
    """Arrays of a spec on the `meta` device: shapes without numbers."""
    return {a.name: torch.empty(a.shape, dtype=a.dtype, device="meta") for a in spec}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector from many tensors.

    Args:
        tensors: of any shapes, of one dtype and device.

    Returns:
        Their values, `[sum of sizes]`, copied.
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def leaves(w: Tensor, sizes: Sequence[int], shapes: Sequence[Shape]) -> list[Tensor]:
    """Views of a vector in the shapes that layers want.

    Args:
        w: `[sum(sizes)]`.
        sizes: the number of values of each view.
        shapes: the shape of each view.
    """
    return [part.view(shape) for part, shape in zip(w.split_with_sizes(list(sizes)), shapes, strict=True)]


def laid_out_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor in the order in which another of its shape lies in memory; itself where it lies so.

    Args:
        tensor: of any layout.
        other: of the same shape.

    Examples:
        >>> rows = torch.arange(6).view(2, 3)
        >>> laid_out_as(rows, torch.zeros(3, 2).t()).stride()
        (1, 2)
    """
    return tensor if tensor.stride() == other.stride() else torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def digest(arrays: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and bits: equal for equal results, and for nothing else.

    Examples:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
        True
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.tensor([0.0, -0.0])})
        False
    """
    state = blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        state.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        state.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
