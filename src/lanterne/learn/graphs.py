"""The graphs of forward passes whose backward passes come with a later call, kept beside the tensors that they gave.

A client of a split model sends what it has computed and waits for the gradient. Its state holds tensors alone, so it
would have to run forward again to go backward. While the very tensor that it sent is alive, the graph is there as well
and saves that; where it is not (after a restart, in a copy, on a second use) the caller runs forward again. The result
is the same, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

#: From the gradient with respect to an output to those with respect to what it was computed from.
Backward = Callable[[Tensor], Sequence[Tensor]]


class _Kept(NamedTuple):
    output: weakref.ref[Tensor]
    backward: Backward


class Graphs:
    """Backward passes by the output that they begin with. Several threads may keep and take.

    Examples:
        >>> import torch
        >>> graphs, output = Graphs(), torch.ones(2)
        >>> graphs.keep(output, lambda up: [2 * up])
        >>> graphs.take(torch.ones(2)) is None
        True
        >>> graphs.take(output)(torch.ones(2))
        [tensor([2., 2.])]
        >>> graphs.take(output) is None
        True
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """A copy begins anew: a graph can be neither copied nor sent."""
        return type(self), ()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def keep(self, output: Tensor, backward: Backward) -> None:
        """Keep a backward pass as long as its output is alive, or until it is taken.

        Args:
            output: what the forward pass has given, without a graph.
            backward: the way back from it; it must not hold the output.
        """
        key, kept = id(output), self._kept
        kept[key] = _Kept(weakref.ref(output, lambda _: kept.pop(key, None)), backward)

    def take(self, output: Tensor | None) -> Backward | None:
        """The backward pass of an output, once; None where there is none."""
        kept = self._kept.pop(id(output), None)
        return kept.backward if kept is not None and kept.output() is output else None
