"""Training while a budget lasts: the backward pass stops at a block, and what it reached is kept.

In a simulation the depth is known: the unreached blocks run without a graph and the suffix is differentiated in one
call. On a device the pass goes block by block and asks the clock before each. Reached blocks are bit-identical to the
full pass in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lanterne.budget import Budget, Clock
from lanterne.learn.first_order import sgd_step
from lanterne.learn.task import Task
from lanterne.models import full, prefix, reached
from lanterne.tree import flatten


def inputs_at(task: Task, w: Tensor, x: Tensor, depth: int) -> Tensor:
    """The input of the `depth` blocks nearest the output, computed without a graph.

    Args:
        task: the model.
        w: `[size]`, all parameters.
        x: `[batch, ...]`.
        depth: blocks, counted from the output.
    """
    low = prefix(task.stack, len(task.stack) - depth)
    if not low.shapes:
        return x
    with torch.no_grad():
        return task.predict(low, low.take(w), x).detach()


def truncated_gradient(task: Task, w: Tensor, x: Tensor, y: Tensor, budget: Clock) -> Tensor:
    """The gradient of the blocks that the backward pass reaches before the clock says stop.

    A device cannot know which block will be its last, so it has computed, besides the blocks that it sends, the input
    gradient of the last of them.

    Args:
        task: the model and the loss.
        w: `[size]`, all parameters.
        x: `[batch, ...]`.
        y: `[batch]`.
        budget: asked before each block, forward and backward.

    Returns:
        The gradient of a suffix of `w`, empty where nothing was reached.
    """
    stack = task.stack
    tape: list[tuple[list[Tensor], Tensor, Tensor]] = []
    h = x
    for b in range(len(stack)):
        if not budget.allows():
            return w[:0]
        view = stack.span(b, b + 1)
        leaves = [leaf.requires_grad_() for leaf in view.leaves(view.take(w).detach())]
        start = h.detach().requires_grad_(b > 0)
        h = task.forward(leaves, start, b, b + 1)
        tape.append((leaves, start, h))
    (up,) = torch.autograd.grad(task.loss(h, y), h, retain_graph=True)
    found: list[Tensor] = []
    while tape and budget.allows():
        leaves, start, end = tape.pop()
        gradients = torch.autograd.grad(end, [*leaves, start] if tape else leaves, up)
        up = gradients[-1]
        found = [*gradients[: len(leaves)], *found]
    return flatten(found) if found else w[:0]


def budgeted_sgd(
    task: Task,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    budget: Budget,
    momentum: float = 0.0,
    m: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, int]:
    """Local steps until the budget ends: whole steps move every block, the interrupted one only the blocks it reached.

    Args:
        task: the model and the loss.
        w: `[size]`, left as it is.
        x: `[steps, batch, ...]`.
        y: `[steps, batch]`.
        lr: the step size.
        budget: how many units, or a clock.
        momentum: as in `sgd_step`. The velocity of blocks that were not reached stays.
        m: the velocity to start with.

    Returns:
        The weights `[size]`; the velocity; and the number of blocks whose backward pass was finished, over all steps:
        `whole steps * blocks + depth of the interrupted step`.
    """
    if isinstance(budget, Clock):
        return _by_clock(task, w, x, y, lr, budget, momentum, m)
    whole, depth = budget.steps(len(task.stack)) or (len(x), 0)
    w = w.clone()
    view = full(task.stack)
    for i in range(whole):
        w, m = sgd_step(task, view, w, m, x[i], y[i], lr, momentum)
    if depth:
        low = inputs_at(task, w, x[whole], depth)
        view = reached(task.stack, depth)
        head = w[: view.index.start]  # type: ignore[union-attr]
        v = None if m is None else view.take(m)
        tail, v = sgd_step(task, view, view.take(w).clone(), v, low, y[whole], lr, momentum)
        w = torch.cat([head, tail])
        m = _patched(m, v, w)
    return w, m, whole * len(task.stack) + depth


def _by_clock(
    task: Task, w: Tensor, x: Tensor, y: Tensor, lr: float, budget: Clock, momentum: float, m: Tensor | None
) -> tuple[Tensor, Tensor | None, int]:
    w = w.clone()
    blocks = len(task.stack)
    done = 0
    for i in range(len(x)):
        g = truncated_gradient(task, w, x[i], y[i], budget)
        depth = blocks - task.stack.edges.index(len(w) - len(g))
        if depth:
            tail = w[len(w) - len(g) :]
            v = None if m is None else m[len(m) - len(g) :]
            if momentum:
                v = g if v is None else torch.add(g, v, alpha=momentum)
            w = torch.cat([w[: len(w) - len(g)], torch.sub(tail, v if momentum and v is not None else g, alpha=lr)])
            m = _patched(m, v if momentum else None, w)
        done += depth
        if depth < blocks:
            break
    return w, m, done


def _patched(m: Tensor | None, tail: Tensor | None, w: Tensor) -> Tensor | None:
    """The velocity with a new tail; the rest as it was, zero if there was none."""
    if tail is None:
        return m
    m = torch.zeros_like(w) if m is None else m
    return torch.cat([m[: len(m) - len(tail)], tail])
