"""What is perturbed together: the tensors of one or several views, numbered so that no two share a random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lanterne.errors import ModelError
from lanterne.learn.task import Task
from lanterne.models import ParamView
from lanterne.tree import Shape


@dataclass(frozen=True, eq=False)
class Segment:
    """Some blocks on the way from the samples to the loss, and which of their tensors are trained.

    Args:
        task: the network and the loss.
        view: its blocks.
        trained: for each tensor of the view whether it is perturbed and updated; all by default.
    """

    task: Task
    view: ParamView
    trained: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        """Refuse a mask of another length."""
        if self.trained is not None and len(self.trained) != len(self.view.flat_shapes):
            raise ModelError(
                f"The mask says for {len(self.trained)} tensors whether they are trained, and the view has "
                f"{len(self.view.flat_shapes)}. Give one True or False for each tensor, in the order of the view."
            )


@dataclass(frozen=True)
class Held:
    """One tensor: where it lies in the flat vector, its number, and which of the trained ones it is, if it is."""

    first: int
    shape: Shape
    size: int
    number: tuple[int, int, int]
    index: int | None


@dataclass(frozen=True, eq=False)
class Group:
    """Segments behind each other, as one flat vector `[size]`: a model, a half of it, a half and its auxiliary head.

    The order is that of the vector. The number of a tensor is (segment, block of its network, tensor of that block). So
    a half has, with the same key, that part of the direction which it has in the whole; only spheres are stretched
    otherwise.

    Args:
        segments: the output of each is the input of the next; the loss is that of the last one's task.

    Raises:
        ModelError: if nothing is trained.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack, full
        >>> stack = LayerStack(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), (3,))
        >>> group = Group((Segment(Task(stack), full(stack), (True, False, True, False)),))
        >>> group.size, group.dimension, [held.number for held in group.trained]
        (11, 8, [(0, 0, 0), (0, 1, 0)])
    """

    segments: Sequence[Segment]

    def __post_init__(self) -> None:
        """Refuse a group without trained tensors."""
        if not self.trained:
            raise ModelError("Nothing is trained: every tensor is masked out. Let one of them be trained at least.")

    @cached_property
    def size(self) -> int:
        """How many parameters the vector has."""
        return sum(segment.view.size for segment in self.segments)

    @cached_property
    def dimension(self) -> int:
        """`d`: how many parameters are trained."""
        return sum(held.size for held in self.trained)

    @cached_property
    def trained(self) -> tuple[Held, ...]:
        """The trained tensors, in the order of the vector."""
        return tuple(held for tensors in self.tensors for held in tensors if held.index is not None)

    @cached_property
    def tensors(self) -> tuple[tuple[Held, ...], ...]:
        """All tensors of each segment."""
        found, first, index = [], 0, 0
        for s, segment in enumerate(self.segments):
            view, tensors = segment.view, []
            blocks = ((view.first + b, k) for b, shapes in enumerate(view.shapes) for k in range(len(shapes)))
            mask = [True] * len(view.sizes) if segment.trained is None else segment.trained
            for number, shape, size, yes in zip(blocks, view.flat_shapes, view.sizes, mask, strict=True):
                tensors.append(Held(first, shape, size, (s, *number), index if yes else None))
                first, index = first + size, index + bool(yes)
            found.append(tuple(tensors))
        return tuple(found)

    @property
    def functional(self) -> bool:
        """Whether this runs inside a transform, where nothing may be written in place."""
        return self.segments[0].task.functional

    @cached_property
    def inside(self) -> Group:
        """The same group as it runs inside a transform."""
        if self.functional:
            return self
        return Group(
            [
                replace(segment, task=replace(segment.task, functional=True, channels_last=False))
                for segment in self.segments
            ]
        )

    def numbers(self, device: torch.device) -> list[Tensor]:
        """The numbers of the trained tensors, three vectors of int64."""
        return [torch.tensor(column, device=device) for column in zip(*(h.number for h in self.trained), strict=True)]


def group_of(task: Task, view: ParamView, trained: Sequence[bool] | None = None) -> Group:
    """A group of one view.

    Args:
        task: the model and the loss.
        view: its blocks.
        trained: for each tensor whether it is trained; all by default.
    """
    return Group((Segment(task, view, trained),))
