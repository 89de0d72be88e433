"""Training while a budget lasts, in whole steps: one that was cut off counts for nothing."""

from __future__ import annotations

from torch import Tensor

from lanterne.budget import Budget, Clock
from lanterne.learn.first_order import Correction, local_sgd, momentum_step
from lanterne.learn.layerwise import truncated_gradient
from lanterne.learn.task import Task
from lanterne.models import full


def stepwise_sgd(
    task: Task,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    budget: Budget,
    momentum: float = 0.0,
    m: Tensor | None = None,
    correction: Correction | None = None,
) -> tuple[Tensor, Tensor | None, int]:
    """Local steps until the budget ends; the step that it interrupts is thrown away.

    Args:
        task: the model and the loss.
        w: `[size]`, left as it is.
        x: `[steps, batch, ...]`.
        y: `[steps, batch]`.
        lr: the step size.
        budget: how many units, or a clock.
        momentum: as in `sgd_step`.
        m: the velocity to start with.
        correction: as in `sgd_step`.

    Returns:
        The weights `[size]`, the caller's own; the velocity; and the number of steps that were finished.
    """
    if isinstance(budget, Clock):
        return _by_clock(task, w, x, y, lr, budget, momentum, m, correction)
    whole, _ = budget.steps(len(task.stack)) or (len(x), 0)
    after, m = local_sgd(task, full(task.stack), w, x[:whole], y[:whole], lr, momentum, m, correction)
    return after, m, whole


def _by_clock(
    task: Task,
    w: Tensor,
    x: Tensor,
    y: Tensor,
    lr: float,
    clock: Clock,
    momentum: float,
    m: Tensor | None,
    correction: Correction | None,
) -> tuple[Tensor, Tensor | None, int]:
    w = w.clone()
    for i in range(len(x)):
        g = truncated_gradient(task, w, x[i], y[i], clock)
        if len(g) < len(w):
            return w, m, i
        w, m = momentum_step(w, m, g if correction is None else g + correction(w), lr, momentum)
    return w, m, len(x)
