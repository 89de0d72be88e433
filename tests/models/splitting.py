"""One step of a model, whole and cut: what the tests of cuts compare."""

from __future__ import annotations

import torch
from torch import Tensor

from lanterne.learn import Task
from lanterne.models import Cut, LayerStack, full, initial_weights
from models.nets import batch_of, weights_of


def numbers(stack: LayerStack) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, samples and labels; a few of each for a large model."""
    small = stack.size < 1_000_000
    w = weights_of(stack) if small else initial_weights(stack, 0, torch.float64)
    return w, *batch_of(stack, 4 if small else 2)


def unsplit(task: Task, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return task.loss(task.predict(full(task.stack), w, x), y), task.gradient(full(task.stack), w, x, y)


def split(task: Task, cut: Cut, w: Tensor, x: Tensor, y: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """As a client and a server do it: smashed data up, their gradient down."""
    low, high = cut.views(task.stack)
    smashed = task.predict(low, low.take(w), x)
    loss = task.loss(task.predict(high, high.take(w), smashed), y)
    server, up = task.gradient_with_input(high, high.take(w), smashed, y)
    return loss, torch.cat([task.pullback(low, low.take(w), x, scale * up), server])
