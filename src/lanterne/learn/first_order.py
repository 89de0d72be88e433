"""Local training by gradients: stochastic gradient descent, with or without momentum, on one flat vector."""

from __future__ import annotations

import torch
from torch import Tensor

from lanterne.learn.task import Task
from lanterne.models import ParamView


def sgd_step(
    task: Task, view: ParamView, w: Tensor, m: Tensor | None, x: Tensor, y: Tensor, lr: float, momentum: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """One step, `m' = momentum * m + g;  w' = w - lr * m'`.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`; consumed: the step may be taken in place.
        m: `[view.size]`, the velocity, or None before the first step.
        x: `[batch, ...]`.
        y: `[batch]`.
        lr: the step size.
        momentum: 0 is plain descent, which needs no velocity.

    Returns:
        `w'` and `m'` (None without momentum).
    """
    if not momentum:
        return task.descend_(view, w, [x], [y], lr), None
    g = task.gradient(view, w, x, y)
    m = g if m is None else torch.add(g, m, alpha=momentum)
    return torch.sub(w, m, alpha=lr), m


def local_sgd(
    task: Task,
    view: ParamView,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    momentum: float = 0.0,
    m: Tensor | None = None,
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

    Returns:
        The weights after the last step, and the velocity.
    """
    w = w.clone()
    if not momentum:
        return task.descend_(view, w, x, y, lr), None
    for i in range(len(x)):
        w, m = sgd_step(task, view, w, m, x[i], y[i], lr, momentum)
    return w, m
