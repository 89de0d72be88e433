"""A task knows the model, the loss, and how gradients are taken where it runs.

The loop executor differentiates leaf views of the flat vector in place, the batched one transforms functions under
vmap. Handlers ask the task, and the executor that made it has chosen the form.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from lanterne.learn.graphs import Backward, Graphs
from lanterne.learn.losses import Loss, cross_entropy
from lanterne.learn.recorded import Recordings
from lanterne.models import LayerStack, ParamView, batch_norms
from lanterne.tree import flatten, laid_out_as

#: Into how many partial sums the gradients of several clients go: a number of no machine, because sums round.
PARTS = 8


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """A function of each item, one after the other.

    Args:
        function: of one item.
        items: in their order.

    Examples:
        >>> in_turn(abs, [1, -2])
        [1, 2]
    """
    return [function(item) for item in items]


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
        spread: a function of each of some items that do not depend on each other, results in order; perhaps in several
            threads.
    """

    stack: LayerStack
    loss: Loss = cross_entropy
    functional: bool = False
    channels_last: bool = False
    recordings: Recordings | None = field(default=None, repr=False, compare=False)
    graphs: Graphs | None = field(default=None, repr=False, compare=False)
    spread: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = field(
        default=in_turn, repr=False, compare=False
    )

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
        values = view.leaves(w.detach())

        def forth(x: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, Backward]:
            return self._forth(view, values, x, to_input=to_input)

        found = None
        if self.recordings is not None:
            found = self.recordings.replay_forth((*self._what(view), "forth", to_input), forth, x, values)
        smashed, backward = found or forth(x, values)
        self.graphs.keep(smashed, backward)
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
        return flatten(self._found(view, view.leaves(w.detach()), x, y))

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
        for a, b in zip(x, y, strict=True):
            torch._foreach_add_(values, list(self._found(view, values, a, b)), alpha=-lr)
        return w

    def gradient_with_input(self, view: ParamView, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and `d loss / dx` as well: what a split server does with smashed data.

        Returns:
            `[view.size]` and a tensor of the shape of `x`.
        """
        if self.functional:
            return grad(lambda v, u: self.loss(self.predict(view, v, u), y), argnums=(0, 1))(w, x)  # type: ignore[no-any-return]
        *gradients, dx = self._found(view, view.leaves(w.detach()), x, y, to_input=True)
        return flatten(gradients), dx

    def gradient_with_inputs(
        self, view: ParamView, w: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[float]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of `sum_i weights_i loss(blocks(w, x_i), y_i)`, and each `d loss(blocks(w, x_i), y_i) / dx_i`.

        What a split server does with the smashed data of several clients. Each client's go through by themselves: what
        is recorded and what a core keeps near itself is of that size, and parts of them are spread over threads. Their
        sum is one of `PARTS` partial sums, whatever the threads. Inside a transform it is one pass over all of them,
        unless the model has layers that look at a batch as a whole.

        Args:
            view: blocks that end with the model's last.
            w: `[view.size]`.
            x: `[batch_i, ...]` each.
            y: `[batch_i]` each.
            weights: of the losses, none of them 0.

        Returns:
            `[view.size]` and as many tensors as there are inputs, each of its input's shape and **not** weighted.
        """
        if self.functional:
            return self._pooled(view, w, x, y, weights)
        values = view.leaves(w.detach())

        def part(clients: range) -> tuple[Tensor, list[Tensor]]:
            g, ups = torch.zeros_like(w), []
            sums = view.leaves(g)
            for i in clients:
                *gradients, up = self._found(view, values, x[i], y[i], to_input=True)
                torch._foreach_add_(sums, gradients, alpha=weights[i])
                ups.append(up)
            return g, ups

        size = -(-len(x) // PARTS)
        (g, ups), *others = self.spread(part, [range(len(x))[i : i + size] for i in range(0, len(x), size)])
        for more, found in others:
            g += more
            ups += found
        return g, tuple(ups)

    def _pooled(
        self, view: ParamView, w: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[float]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`gradient_with_inputs` inside a transform."""

        def weighted(w: Tensor, x: tuple[Tensor, ...]) -> Tensor:
            if batch_norms(self.stack):
                outputs = [self.predict(view, w, one) for one in x]
            else:
                outputs = list(torch.split(self.predict(view, w, torch.cat(x)), [len(one) for one in x]))
            losses = [weight * self.loss(o, t) for weight, o, t in zip(weights, outputs, y, strict=True)]
            return torch.stack(losses).sum()

        g, ups = grad(weighted, argnums=(0, 1))(w, tuple(x))
        return g, tuple(up / weight for up, weight in zip(ups, weights, strict=True))

    def pullback(
        self,
        view: ParamView,
        w: Tensor,
        x: Tensor | Callable[[], Tensor],
        up: Tensor,
        smashed: Tensor | None = None,
    ) -> Tensor:
        """`up^T d blocks(w, x) / dw`: what a split client does with the gradient that comes down.

        Args:
            view: which blocks.
            w: `[view.size]`.
            x: `[batch, ...]`, their input, or what gives it: without the graph it is needed.
            up: the gradient of the loss with respect to their output.
            smashed: that output as `smash` gave it for the same `w` and `x`: then its graph is used where it is kept.

        Returns:
            `[view.size]`.
        """
        backward = None if self.functional or self.graphs is None else self.graphs.take(smashed)
        if backward is None:
            given = x if isinstance(x, Tensor) else x()
            if self.functional:
                return vjp(lambda v: self.predict(view, v, given), w)[1](up)[0]  # type: ignore[no-any-return]
            _, backward = self._forth(view, view.leaves(w.detach()), given, to_input=False)
        return flatten(backward(up))

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
        if backward is None:
            _, backward = self._forth(view, view.leaves(w.detach()), x, to_input=True)
        *gradients, dx = backward(up)
        return flatten(gradients), dx

    def _what(self, view: ParamView) -> tuple[Hashable, ...]:
        """All that the operators of a pass over a view depend on, besides shapes and types."""
        return self.stack, self.loss, view.first, view.shapes, self.channels_last

    def _found(
        self, view: ParamView, values: Sequence[Tensor], x: Tensor, y: Tensor, *, to_input: bool = False
    ) -> Sequence[Tensor]:
        """The gradients of a view's tensors, and of its input if that is asked for; by a recording if there is one."""

        def gradients(x: Tensor, y: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor]:
            # Whoever descends writes into this memory behind the graph's back, after the graph is gone.
            leaves = [value.detach().requires_grad_() for value in values]
            x = x.detach().requires_grad_() if to_input else x
            loss = self.loss(self.forward(leaves, x, view.first, view.last), y)
            return torch.autograd.grad(loss, [*leaves, x] if to_input else leaves)

        found = None
        if self.recordings is not None:
            found = self.recordings.replay((*self._what(view), "gradients", to_input), gradients, x, y, values)
        return gradients(x, y, values) if found is None else found

    def _forth(
        self, view: ParamView, values: Sequence[Tensor], x: Tensor, *, to_input: bool
    ) -> tuple[Tensor, Backward]:
        """The output of a view without a graph, and the way back from it to its tensors, and to its input if asked for.

        The gradient that comes is laid out in memory as the output is, so that the operators on it are always the same.
        """
        leaves = [value.detach().requires_grad_() for value in values]
        x = x.detach().requires_grad_() if to_input else x
        output = self.forward(leaves, x, view.first, view.last)
        wanted = [*leaves, x] if to_input else leaves
        return output.detach(), lambda up: torch.autograd.grad(output, wanted, laid_out_as(up, output))
