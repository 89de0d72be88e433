"""A task knows the model, the loss, and how gradients are taken where it runs.

The loop executor differentiates leaf views of the flat vector in place, the batched one transforms functions under
vmap. Handlers ask the task, and the executor that made it has chosen the form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import grad, vjp

from lanterne.learn.graphs import Graphs
from lanterne.learn.losses import Loss, cross_entropy
from lanterne.learn.recorded import Recordings
from lanterne.models import LayerStack, ParamView, batch_norms
from lanterne.tree import flatten


@dataclass(frozen=True)
class Task:
    """Model and loss, and gradients with respect to flat vectors.

    Args:
        stack: the model; like the loss a function of its tensors, whose attributes do not change from call to call.
        loss: of the model's output and the labels.
        functional: True inside a transform such as vmap, where `torch.func` is the only way; it costs 1.7 times as much
            outside.
        channels_last: how images lie in memory, see `LayerStack.forward`; not inside a transform.
        recordings: of gradients that are taken often; none by default.
        graphs: of forward passes that a later call goes back through; without them it runs forward again.
    """

    stack: LayerStack
    loss: Loss = cross_entropy
    functional: bool = False
    channels_last: bool = False
    recordings: Recordings | None = field(default=None, repr=False, compare=False)
    graphs: Graphs | None = field(default=None, repr=False, compare=False)

    def on(self, network: LayerStack) -> Task:
        """The same task on another network: an auxiliary head, a submodel."""
        return replace(self, stack=network)

    def forward(self, leaves: Sequence[Tensor], x: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks `first .. last-1` on their tensors, `LayerStack.forward` as this executor wants it."""
        return self.stack.forward(leaves, x, first, last, channels_last=self.channels_last)

    def predict(self, view: ParamView, w: Tensor, x: Tensor) -> Tensor:
        """Run the blocks of a view.

        Args:
            view: which blocks.
            w: `[view.size]`, their parameters.
            x: `[batch, ...]`, the input of the first of them.

        Returns:
            `[batch, ...]`, the output of the last of them.
        """
        return self.forward(view.leaves(w), x, view.first, view.last)

    def smash(self, view: ParamView, w: Tensor, x: Tensor, *, to_input: bool = False) -> Tensor:
        """Run the blocks of a view as `predict` does, for a later call that goes back through them.

        Args:
            view: which blocks.
            w: `[view.size]`, their parameters.
            x: `[batch, ...]`, the input of the first of them.
            to_input: whether that call is `pullback_with_input`, not `pullback`.

        Returns:
            `[batch, ...]`, the smashed data, without a graph.
        """
        if self.functional or self.graphs is None or x.device.type == "meta":
            return self.predict(view, w, x).detach()
        leaves = self._leaves(view, w)
        x = x.detach().requires_grad_() if to_input else x
        wanted = [*leaves, x] if to_input else leaves
        output = self.forward(leaves, x, view.first, view.last)
        smashed = output.detach()
        self.graphs.keep(smashed, lambda up: torch.autograd.grad(output, wanted, up))
        return smashed

    def gradient(self, view: ParamView, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """`d loss(blocks(w, x), y) / dw`, flat.

        Args:
            view: blocks that end with the model's last.
            w: `[view.size]`.
            x: `[batch, ...]`, the input of the view's first block.
            y: `[batch]`, labels.

        Returns:
            `[view.size]`.
        """
        if self.functional:
            return grad(lambda v: self.loss(self.predict(view, v, x), y))(w)  # type: ignore[no-any-return]
        values = view.leaves(w.detach())
        found = self._replayed(view, values, x, y)
        if found is None:
            found = self._gradients(view, [value.requires_grad_() for value in values], x, y)
        return flatten(found)

    def descend_(self, view: ParamView, w: Tensor, x: Iterable[Tensor], y: Iterable[Tensor], lr: float) -> Tensor:
        """Steps of gradient descent, `w' = w - lr * gradient`, one per batch.

        Outside a transform they are taken in place, so `w` must belong to the caller.

        Args:
            view: blocks that end with the model's last.
            w: `[view.size]`.
            x: `[batch, ...]` each, the inputs of the view's first block.
            y: `[batch]` each, their labels.
            lr: the step size.

        Returns:
            `[view.size]`: `w` itself, or a new vector inside a transform.
        """
        if self.functional:
            for a, b in zip(x, y, strict=True):
                w = torch.sub(w, self.gradient(view, w, a, b), alpha=lr)
            return w
        values = view.leaves(w.detach())
        leaves: list[Tensor] = []
        for a, b in zip(x, y, strict=True):
            found = self._replayed(view, values, a, b)
            if found is None:
                leaves = leaves or self._leaves(view, w)  # the same memory, written behind the graph's back
                found = self._gradients(view, leaves, a, b)
            torch._foreach_add_(values, list(found), alpha=-lr)
        return w

    def gradient_with_input(self, view: ParamView, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and `d loss / dx` as well: what a split server does with smashed data.

        Returns:
            `[view.size]` and a tensor of the shape of `x`.
        """
        if self.functional:
            return grad(lambda v, u: self.loss(self.predict(view, v, u), y), argnums=(0, 1))(w, x)  # type: ignore[no-any-return]
        leaves, x = self._leaves(view, w), x.detach().requires_grad_()
        *gradients, dx = self._gradients(view, [*leaves, x], x, y, leaves)
        return flatten(gradients), dx

    def gradient_with_inputs(
        self, view: ParamView, w: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[float]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of `sum_i weights_i loss(blocks(w, x_i), y_i)`, and each `d loss(blocks(w, x_i), y_i) / dx_i`.

        What a split server does with the smashed data of several clients: one pass over all of them, unless the model
        has layers that look at a batch as a whole.

        Args:
            view: blocks that end with the model's last.
            w: `[view.size]`.
            x: `[batch_i, ...]` each.
            y: `[batch_i]` each.
            weights: of the losses, none of them 0.

        Returns:
            `[view.size]` and as many tensors as there are inputs, each of its input's shape and **not** weighted.
        """

        def weighted(w: Tensor, x: tuple[Tensor, ...]) -> Tensor:
            leaves = view.leaves(w) if self.functional else held
            if batch_norms(self.stack):
                outputs = [self.forward(leaves, one, view.first, view.last) for one in x]
            else:
                output = self.forward(leaves, torch.cat(x), view.first, view.last)
                outputs = list(torch.split(output, [len(one) for one in x]))
            losses = [weight * self.loss(o, t) for weight, o, t in zip(weights, outputs, y, strict=True)]
            return torch.stack(losses).sum()

        if self.functional:
            g, ups = grad(weighted, argnums=(0, 1))(w, tuple(x))
        else:
            held, inputs = self._leaves(view, w), tuple(one.detach().requires_grad_() for one in x)
            found = torch.autograd.grad(weighted(w, inputs), [*held, *inputs])
            g, ups = flatten(found[: len(held)]), found[len(held) :]
        return g, tuple(up / weight for up, weight in zip(ups, weights, strict=True))

    def pullback(self, view: ParamView, w: Tensor, x: Tensor, up: Tensor, smashed: Tensor | None = None) -> Tensor:
        """`up^T d blocks(w, x) / dw`: what a split client does with the gradient that comes down.

        Args:
            view: which blocks.
            w: `[view.size]`.
            x: `[batch, ...]`, their input.
            up: the gradient of the loss with respect to their output.
            smashed: that output as `smash` gave it for the same `w` and `x`: then its graph is used where it is kept.

        Returns:
            `[view.size]`.
        """
        if self.functional:
            return vjp(lambda v: self.predict(view, v, x), w)[1](up)[0]  # type: ignore[no-any-return]
        backward = None if self.graphs is None else self.graphs.take(smashed)
        if backward is not None:
            return flatten(backward(up))
        leaves = self._leaves(view, w)
        output = self.forward(leaves, x, view.first, view.last)
        return flatten(torch.autograd.grad(output, leaves, up))

    def pullback_with_input(
        self, view: ParamView, w: Tensor, x: Tensor, up: Tensor, smashed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The pullback and `up^T d blocks(w, x) / dx` as well: what the body of a U-shaped cut does.

        Returns:
            `[view.size]` and a tensor of the shape of `x`.
        """
        if self.functional:
            return vjp(lambda v, u: self.predict(view, v, u), w, x)[1](up)  # type: ignore[no-any-return]
        backward = None if self.graphs is None else self.graphs.take(smashed)
        if backward is not None:
            *gradients, dx = backward(up)
            return flatten(gradients), dx
        leaves, x = self._leaves(view, w), x.detach().requires_grad_()
        output = self.forward(leaves, x, view.first, view.last)
        *gradients, dx = torch.autograd.grad(output, [*leaves, x], up)
        return flatten(gradients), dx

    def _replayed(self, view: ParamView, values: list[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor] | None:
        """The gradients by a recording, where there is one."""
        if self.recordings is None:
            return None

        def gradients(x: Tensor, y: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor]:
            return self._gradients(view, [v.detach().requires_grad_() for v in values], x, y)

        what = self.stack, self.loss, view.first, view.shapes, self.channels_last
        return self.recordings.replay(what, gradients, x, y, values)

    def _leaves(self, view: ParamView, w: Tensor) -> list[Tensor]:
        return [leaf.requires_grad_() for leaf in view.leaves(w.detach())]

    def _gradients(
        self, view: ParamView, wanted: list[Tensor], x: Tensor, y: Tensor, leaves: list[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        leaves = wanted if leaves is None else leaves
        loss = self.loss(self.forward(leaves, x, view.first, view.last), y)
        return torch.autograd.grad(loss, wanted)
