"""Local training by gradients: stochastic gradient descent, with or without momentum, on one flat vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lanterne.learn.task import Task
from lanterne.models import ParamView

#: What a method adds to the gradient, as a function of the weights: a proximal pull, a control variate.
Correction = Callable[[Tensor], Tensor]


def sgd_step(
    task: Task,
    view: ParamView,
    w: Tensor,
    m: Tensor | None,
    x: Tensor,
    y: Tensor,
    lr: float,
    momentum: float = 0.0,
    correction: Correction | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One step, `m' = momentum * m + g + correction(w);  w' = w - lr * m'`.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`; consumed: the step may be taken in place.
        m: `[view.size]`, the velocity, or None before the first step.
        x: `[batch, ...]`.
        y: `[batch]`.
        lr: the step size.
        momentum: 0 is plain descent, which needs no velocity.
        correction: what is added to the gradient; nothing by default.

    Returns:
        `w'` and `m'` (None without momentum).
    """
    if momentum:
        g = task.gradient(view, w, x, y)
        return momentum_step(w, m, g if correction is None else g + correction(w), lr, momentum)
    if correction is None:
        return task.descend_(view, w, [x], [y], lr), None
    added = correction(w)
    return torch.sub(task.descend_(view, w, [x], [y], lr), added, alpha=lr), None


def momentum_step(w: Tensor, m: Tensor | None, g: Tensor, lr: float, momentum: float) -> tuple[Tensor, Tensor | None]:
    """One step along a gradient that is known, `m' = momentum * m + g;  w' = w - lr * m'`.

    Args:
        w: `[size]`, left as it is.
        m: `[size]`, the velocity, or None before the first step.
        g: `[size]`, the gradient.
        lr: the step size.
        momentum: 0 is plain descent, which needs no velocity.

    Returns:
        `w'` and `m'` (None without momentum).
    """
    if momentum:
        g = m = g if m is None else torch.add(g, m, alpha=momentum)
    return torch.sub(w, g, alpha=lr), m if momentum else None


def velocity_bytes(w: Tensor, momentum: float, kept: bool) -> int:
    """What a velocity adds to a client's memory during the work; one that is kept counts as the client's state.

    Args:
        w: what is trained.
        momentum: 0 needs no velocity.
        kept: whether it stays on the client between requests.
    """
    return w.nbytes if momentum and not kept else 0


def local_sgd(
    task: Task,
    view: ParamView,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    momentum: float = 0.0,
    m: Tensor | None = None,
    correction: Correction | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Several steps, one per batch.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`, left as it is.
        x: `[steps, batch, ...]`.
        y: `[steps, batch]`.
        lr: the step size.
        momentum: as in `sgd_step`.
        m: the velocity to start with.
        correction: as in `sgd_step`.

    Returns:
        The weights after the last step, and the velocity.
    """
    w = w.clone()
    if not momentum and correction is None:
        return task.descend_(view, w, x, y, lr), None
    for i in range(len(x)):
        w, m = sgd_step(task, view, w, m, x[i], y[i], lr, momentum, correction)
    return w, m


def mean_gradient(task: Task, view: ParamView, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The mean of the batches' gradients at one point, `(1/steps) sum_i d loss(x_i, y_i) / dw`.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`, left as it is.
        x: `[steps, batch, ...]`, one step at least.
        y: `[steps, batch]`.

    Returns:
        `[view.size]`.
    """
    total = task.gradient(view, w, x[0], y[0])
    for i in range(1, len(x)):
        total = total + task.gradient(view, w, x[i], y[i])
    return total / len(x)
