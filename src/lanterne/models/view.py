"""What a client holds is data: a view says which coordinates of the flat parameters somebody has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from lanterne.tree import Shape, leaves

if TYPE_CHECKING:
    from lanterne.models.stack import LayerStack


@dataclass(frozen=True, eq=False)
class ParamView:
    """Which coordinates of the flat vector somebody holds, and the shapes they have there.

    Args:
        index: a slice of the flat vector where the blocks are whole, else the coordinates, `[held]` int64, ascending.
        shapes: per block held, the shapes of its tensors.
        first: the first block held.
    """

    index: slice | Tensor
    shapes: tuple[tuple[Shape, ...], ...]
    first: int = 0

    @cached_property
    def flat_shapes(self) -> list[Shape]:
        """The shapes of all tensors held, in order."""
        return [shape for block in self.shapes for shape in block]

    @cached_property
    def sizes(self) -> list[int]:
        """How many values each tensor has."""
        return [math.prod(shape) for shape in self.flat_shapes]

    @cached_property
    def size(self) -> int:
        """How many coordinates are held."""
        return sum(self.sizes)

    @property
    def last(self) -> int:
        """One past the last block held."""
        return self.first + len(self.shapes)

    def take(self, w: Tensor) -> Tensor:
        """The held coordinates of a full vector, `[size]`."""
        return w[self.index]

    def leaves(self, w: Tensor) -> list[Tensor]:
        """The held vector `[size]` as the tensors that the blocks want."""
        return leaves(w, self.sizes, self.flat_shapes)


def full(stack: LayerStack) -> ParamView:
    """All blocks."""
    return stack.span(0, len(stack))


def prefix(stack: LayerStack, at: int) -> ParamView:
    """The blocks before `at`: a client's half of a cut."""
    return stack.span(0, at)


def suffix(stack: LayerStack, at: int) -> ParamView:
    """The blocks from `at` on: a server's half of a cut."""
    return stack.span(at, len(stack))


def reached(stack: LayerStack, depth: int) -> ParamView:
    """The `depth` blocks nearest the output: what a truncated backward pass got to."""
    return stack.span(len(stack) - depth, len(stack))
