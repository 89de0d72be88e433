"""A model as an ordered list of named blocks over one flat vector of parameters."""

from __future__ import annotations

import copy
import math
import re
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from lanterne.errors import ModelError
from lanterne.models.validate import check_modules
from lanterne.models.view import ParamView
from lanterne.tree import Shape, flatten

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_Workplace = tuple[list[nn.Module], list[list[tuple[dict[str, Any], str]]]]


class _MadeWhenAsked(dict[str, Any]):
    """A module's parameters, where a function stands for a tensor that it makes."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        value = super().__getitem__(name)
        return value() if callable(value) else value


class LayerStack:
    """An `nn.Sequential` as it is, read as an ordered list of named blocks; names never change.

    A child with parameters opens a block and gives it its name. A child without parameters (an activation, a pooling)
    and a normalisation join the block before them, so that a block is what a paper calls a layer. A residual network is
    a Sequential whose children are its residual blocks.

    The parameters of all blocks, in order, are one flat vector `w`; block `i` is `w[edges[i]:edges[i+1]]`. The stack
    itself holds no weights that matter: whoever calls it brings them.

    Args:
        net: the model. It is copied, never changed.
        sample_shape: the shape of one sample, without the batch.

    Raises:
        ModelError: for what cannot be trained here, with the repair.

    Examples:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> stack = LayerStack(net, (1, 8, 8))
        >>> stack.names, stack.edges
        (('1', '3'), (0, 2080, 2410))
    """

    def __init__(self, net: nn.Sequential, sample_shape: Sequence[int]) -> None:
        self.sample_shape: Shape = tuple(sample_shape)
        self.net = copy.deepcopy(net)
        check_modules(self.net)
        # Not `named_children`, which leaves out the second place of a layer that stands in two (an activation, say).
        children = list(zip(self.net._modules, self.net, strict=True))
        groups: list[list[str]] = []
        head: list[str] = []
        for name, child in children:
            opens = any(True for _ in child.parameters()) and not (groups and isinstance(child, _NORMS))
            if opens:
                groups.append([*head, name])
                head = []
            elif groups:
                groups[-1].append(name)
            else:
                head.append(name)
        if not groups:
            raise ModelError("This model has no parameters: there is nothing to train. Give it a layer with weights.")
        self._modules = {name: i for i, (name, _) in enumerate(children)}
        self.groups: tuple[tuple[int, ...], ...] = tuple(tuple(self._modules[n] for n in g) for g in groups)
        self.names: tuple[str, ...] = tuple(
            next(n for n in g if any(True for _ in self.net[self._modules[n]].parameters())) for g in groups
        )
        owner = {name: b for b, group in enumerate(groups) for name in group}
        by_block: list[list[str]] = [[] for _ in groups]
        for name, _ in self.net.named_parameters():
            by_block[owner[name.split(".")[0]]].append(name)
        self.parameters: tuple[tuple[str, ...], ...] = tuple(map(tuple, by_block))
        tensors = dict(self.net.named_parameters())
        self.shapes: tuple[tuple[Shape, ...], ...] = tuple(
            tuple(tuple(tensors[n].shape) for n in names) for names in by_block
        )
        sizes = [sum(math.prod(s) for s in shapes) for shapes in self.shapes]
        self.edges: tuple[int, ...] = tuple(sum(sizes[:i]) for i in range(len(sizes) + 1))
        # The modules without any tensor: cheap to copy per thread, and inside a transform too.
        self._skeleton = copy.deepcopy(self.net)
        for module in self._skeleton.modules():
            for name in module._parameters:
                module._parameters[name] = None
        for group in self.groups:
            self._work_out_of_place(group)
        self._views: dict[tuple[int, int], ParamView] = {}
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """All but the threads' working copies, so that a stack can be copied and sent."""
        return {name: value for name, value in self.__dict__.items() if name != "_thread"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """A stack without working copies."""
        self.__dict__.update(state)
        self._thread = threading.local()

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self.groups)

    def _work_out_of_place(self, group: Sequence[int]) -> None:
        """What opens a block must not overwrite the block's input: behind a cut that is somebody else's message."""
        for i in group:
            for module in self._skeleton[i].modules():
                if getattr(module, "inplace", False) is True:
                    module.inplace = False  # type: ignore[assignment]
            if any(True for _ in self.net[i].parameters()):
                return

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self.edges[-1]

    def flat(self) -> Tensor:
        """The model's own weights as one vector, `[size]`."""
        tensors = dict(self.net.named_parameters())
        return flatten([tensors[name].detach() for names in self.parameters for name in names])

    def load(self, w: Tensor) -> nn.Sequential:
        """A copy of the user's model that holds the weights `w`, to be used outside of lanterne."""
        net = copy.deepcopy(self.net).to_empty(device=w.device).to(w.dtype)
        tensors = dict(net.named_parameters())
        given, buffers = dict(self.net.named_buffers()), dict(net.named_buffers())
        view = self.span(0, len(self))
        with torch.no_grad():
            for name, value in zip((n for names in self.parameters for n in names), view.leaves(w), strict=True):
                tensors[name].copy_(value)
            for name, value in given.items():  # `to_empty` has emptied them
                buffers[name].copy_(value)
        return net

    def changed(self, change: Callable[[nn.Module], None]) -> LayerStack:
        """A stack of the same blocks and parameters, whose modules have been changed.

        Args:
            change: is given each copy of the net; it must leave the parameters alone.
        """
        other = copy.copy(self)
        other.net, other._skeleton = copy.deepcopy(self.net), copy.deepcopy(self._skeleton)
        change(other.net)
        change(other._skeleton)
        return other

    def span(self, first: int, last: int) -> ParamView:
        """The view of the blocks `first .. last-1`; equal spans are one object."""
        view = self._views.get((first, last))
        if view is None:
            index = slice(self.edges[first], self.edges[last])
            view = self._views[first, last] = ParamView(index, self.shapes[first:last], first)
        return view

    def forward(
        self,
        leaves: Sequence[Tensor],
        x: Tensor,
        first: int = 0,
        last: int | None = None,
        *,
        channels_last: bool = False,
    ) -> Tensor:
        """Run the blocks `first .. last-1`.

        Args:
            leaves: the tensors of those blocks, in order. Of a sequence that is no list or tuple each is asked for when
                its layer runs, and not kept: it may make them.
            x: `[batch, ...]`, the input of block `first`.
            first: the first block.
            last: one past the last block; all by default.
            channels_last: lay images out as `[batch, height, width, channels]` in memory: another order of the same
                numbers, in which convolutions and poolings are faster on a CPU.

        Returns:
            `[batch, ...]`, the output of block `last - 1`.
        """
        at_hand = isinstance(leaves, list | tuple)
        net, slots = self._workplace(at_hand)
        k = 0
        if channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for b in range(first, len(self) if last is None else last):
            for table, name in slots[b]:
                table[name] = leaves[k] if at_hand else partial(leaves.__getitem__, k)
                k += 1
            for i in self.groups[b]:
                x = net[i](x)
                # An image of one channel has no order to hand on.
                if channels_last and x.dim() == 4:
                    x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _workplace(self, at_hand: bool) -> _Workplace:
        """This thread's copy of the modules, and where their parameters are written; slots hold views, not copies."""
        name = "workplace" if at_hand else "workshop"
        found: _Workplace | None = getattr(self._thread, name, None)
        if found is None:
            net = copy.deepcopy(self._skeleton)
            if not at_hand:
                for module in net.modules():
                    module.__dict__["_parameters"] = _MadeWhenAsked(module._parameters)
            slots: list[list[tuple[dict[str, Any], str]]] = []
            for names in self.parameters:
                slots.append([])
                for path, _, leaf in (name.rpartition(".") for name in names):
                    slots[-1].append((net.get_submodule(path)._parameters, leaf))
            found = list(net), slots
            setattr(self._thread, name, found)
        return found

    @property
    def output_shape(self) -> Shape:
        """The shape of what the last block gives for one sample."""
        return self.output_shapes[-1]

    @cached_property
    def output_shapes(self) -> tuple[Shape, ...]:
        """The shape of what each block gives for one sample.

        Raises:
            ModelError: if the model cannot take the data's samples, or a block gives something else than one tensor.
        """
        x, shapes = torch.empty(2, *self.sample_shape, device="meta"), []
        for b, name in enumerate(self.names):
            leaves = [torch.empty(s, device="meta") for s in self.shapes[b]]
            try:
                x = self.forward(leaves, x, b, b + 1)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ModelError(_refusal(self.sample_shape, error)) from error
            if not isinstance(x, Tensor):
                raise ModelError(
                    f"Block {name!r} gives a {type(x).__name__}, and what goes from block to block is one tensor. "
                    "Let it return the tensor that the next block takes."
                )
            shapes.append(tuple(x.shape[1:]))
        return tuple(shapes)


def _refusal(sample_shape: Shape, error: Exception) -> str:
    """Why a model cannot be run on shapes alone: a layer wants values, makes its own elsewhere, or does not fit."""
    said = " ".join(str(error).split())
    if "expected device meta" in said:
        return (
            f"A layer of this model makes a tensor on a device of its own, not on that of its input: {said} lanterne "
            "prices a model by shapes alone, on the device 'meta'. Make it with device=x.device, for an input x."
        )
    if re.search(r"(\b|register_)meta\b", said, re.IGNORECASE):
        return (
            "A layer of this model reads values in its forward pass (as .numpy(), .tolist(), .item() and `if` do), or "
            f"the shape of what it gives depends on them (as with nonzero and masks): {said[:200]} lanterne prices a "
            "model by shapes alone, before there are values. Write that layer with operations on whole tensors, as "
            "torch.where."
        )
    return (
        f"This model cannot take samples of shape {sample_shape}: {said} Give a model whose first layer fits the data."
    )
