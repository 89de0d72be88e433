"""Gradients with respect to an input alone, and a network that learns to give the same ones as another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from lanterne.learn.task import Task
from lanterne.models import ParamView


def input_gradient(task: Task, view: ParamView, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`d loss(blocks(w, x), y) / dx`; that of the parameters is not computed.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`, held fixed.
        x: `[batch, ...]`, the input of the view's first block.
        y: `[batch]`, labels.

    Returns:
        A tensor of the shape of `x`.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack, full
        >>> stack = LayerStack(nn.Sequential(nn.Linear(2, 2, bias=False)), (2,))
        >>> task = Task(stack, lambda output, y: 0.5 * (output - y).square().sum())
        >>> x = torch.tensor([[3.0, 1.0]])
        >>> input_gradient(task, full(stack), torch.tensor([2.0, 0.0, 0.0, 1.0]), x, torch.tensor([[2.0, 1.0]]))
        tensor([[8., 0.]])
    """
    if task.functional:
        return grad(lambda u: task.loss(task.predict(view, w, u), y))(x)  # type: ignore[no-any-return]
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(task.loss(task.predict(view, w.detach(), x), y), [x])
    return found


def imitation_gradient(task: Task, view: ParamView, w: Tensor, x: Tensor, y: Tensor, wanted: Tensor) -> Tensor:
    """The gradient of how far the input gradients of a network are from those wanted.

        d/dw  sum_k || d (sum_j loss_j) / dx_k - wanted_k ||^2

    Both are gradients of a **sum** over samples, so that they do not depend on how many are in the batch: the loss,
    which is a mean, is taken as often as there are samples.

    Args:
        task: the network that learns, and the loss.
        view: blocks that end with its last.
        w: `[view.size]`.
        x: `[batch, ...]`, the input of the view's first block.
        y: `[batch]`, labels.
        wanted: a tensor of the shape of `x`.

    Returns:
        `[view.size]`.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack, full
        >>> stack = LayerStack(nn.Sequential(nn.Linear(1, 1, bias=False)), (1,))
        >>> task = Task(stack, lambda output, y: (output - y).mean())        # its gradient is w for every sample
        >>> x, y, w = torch.ones(3, 1), torch.zeros(3, 1), torch.tensor([5.0])
        >>> imitation_gradient(task, full(stack), w, x, y, 2 * x)            # 3 samples, 2 (5 - 2) each
        tensor([18.])
    """
    samples = len(x)
    if task.functional:

        def distance(v: Tensor) -> Tensor:
            return (samples * input_gradient(task, view, v, x, y) - wanted).square().sum()

        return grad(distance)(w)  # type: ignore[no-any-return]
    leaves = [leaf.requires_grad_() for leaf in view.leaves(w.detach())]
    x = x.detach().requires_grad_()
    loss = task.loss(task.forward(leaves, x, view.first, view.last), y)
    (g,) = torch.autograd.grad(loss, [x], create_graph=True)
    gap = (samples * g - wanted).square().sum()
    found = torch.autograd.grad(gap, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([one.reshape(-1) for one in found])
