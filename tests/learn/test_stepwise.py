"""Whole steps while a budget lasts, and what a method may add to the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lanterne.budget import Clock, Units
from lanterne.learn import Task, local_sgd, mean_gradient, momentum_step, stepwise_sgd
from lanterne.models import full
from models.nets import batch_of, stack_of, weights_of

STEPS, LR = 3, 0.1


def problem(name: str, functional: bool = False) -> tuple[Task, Tensor, Tensor, Tensor]:
    """A task, its weights, and batches of three steps."""
    stack = stack_of(name)
    x, y = (torch.stack(t) for t in zip(*(batch_of(stack, 4, key) for key in range(STEPS)), strict=True))
    return Task(stack, functional=functional), weights_of(stack), x, y


def stops_after(units: int) -> Clock:
    """A clock that allows so many units and then never again."""
    left = [units]

    def allows() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return Clock(allows)


def by_torch(
    task: Task, w: Tensor, x: Tensor, y: Tensor, momentum: float, mu: float, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`torch.optim.SGD` on the loss + mu/2 |w - start|^2 + <shift, w>: weights and velocity."""
    net, start = task.stack.load(w), w
    optimiser = torch.optim.SGD(net.parameters(), LR, momentum)
    for xi, yi in zip(x, y, strict=True):
        optimiser.zero_grad()
        flat = torch.cat([p.reshape(-1) for p in net.parameters()])
        extra = 0.5 * mu * (flat - start).square().sum() + (0.0 if shift is None else (shift * flat).sum())
        (task.loss(net(xi), yi) + extra).backward()
        optimiser.step()
    m = [optimiser.state[p]["momentum_buffer"].reshape(-1) for p in net.parameters()] if momentum else None
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]), None if m is None else torch.cat(m)


@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["salf-mlp", "residual"])
def test_corrected_steps_descend_the_corrected_objective(name: str, momentum: float, functional: bool) -> None:
    task, w, x, y = problem(name, functional)
    shift, before = 0.01 * torch.linspace(-1, 1, len(w), dtype=w.dtype), w.clone()
    for mu, added in ((0.5, None), (0.0, shift), (0.5, shift)):
        expected, velocity = by_torch(task, w, x, y, momentum, mu, added)
        plus = 0.0 if added is None else added
        found, m = local_sgd(
            task, full(task.stack), w, x, y, LR, momentum, correction=lambda v, mu=mu, plus=plus: mu * (v - w) + plus
        )
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
        assert (m is None) == (velocity is None)
        assert m is None or torch.allclose(m, velocity, rtol=1e-11, atol=1e-13)
        plain, _ = local_sgd(task, full(task.stack), w, x, y, LR, momentum)
        assert not torch.allclose(found, plain, rtol=0, atol=1e-6)
    assert torch.equal(w, before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_correction_of_zero_changes_no_bit(momentum: float) -> None:
    task, w, x, y = problem("residual")
    plain = local_sgd(task, full(task.stack), w, x, y, LR, momentum)
    found = local_sgd(task, full(task.stack), w, x, y, LR, momentum, correction=torch.zeros_like)
    assert torch.equal(found[0], plain[0])
    assert momentum == 0 or torch.equal(found[1], plain[1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("pull", [False, True], ids=["plain", "proximal"])
@pytest.mark.parametrize("name", ["salf-mlp", "residual"])
def test_only_whole_steps_count(name: str, pull: bool, momentum: float) -> None:
    """Whatever unit the budget ends with, in the simulator and on a device: the steps before it, and nothing of it."""
    task, w, x, y = problem(name)
    n, correction = len(task.stack), (lambda v: 0.5 * (v - w)) if pull else None
    for units in range(2 * n * STEPS + 2):
        whole = min(units // (2 * n), STEPS)
        view = full(task.stack)
        expected, velocity = local_sgd(task, view, w, x[:whole], y[:whole], LR, momentum, correction=correction)
        found, m, done = stepwise_sgd(task, w, x, y, LR, Units(units), momentum, correction=correction)
        if units <= 2 * n * STEPS:
            assert torch.equal(found, expected)
            assert (m is None) == (velocity is None)
            assert m is None or torch.equal(m, velocity)
            assert done == whole
        found, m, done = stepwise_sgd(task, w, x, y, LR, stops_after(units), momentum, correction=correction)
        # A proximal step without momentum is taken in two on the simulator's way, in one on the device's.
        exact = momentum or not pull
        assert torch.equal(found, expected) if exact else torch.allclose(found, expected, rtol=0, atol=1e-15)
        assert m is None or torch.equal(m, velocity)
        assert done == whole
        assert found.data_ptr() != w.data_ptr()  # the caller may write over it


def test_without_an_end_all_steps_are_taken() -> None:
    task, w, x, y = problem("salf-mlp")
    found, m, done = stepwise_sgd(task, w, x, y, LR, Units())
    assert torch.equal(found, local_sgd(task, full(task.stack), w, x, y, LR)[0])
    assert (m, done) == (None, STEPS)


@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
def test_the_mean_gradient_is_that_of_all_batches_in_one(functional: bool) -> None:
    task, w, x, y = problem("residual", functional)
    view = full(task.stack)
    found = mean_gradient(task, view, w, x, y)
    whole = task.gradient(view, w, x.flatten(0, 1), y.flatten(0, 1))
    assert torch.allclose(found, whole, rtol=1e-12, atol=1e-15)
    assert torch.equal(mean_gradient(task, view, w, x[:1], y[:1]), task.gradient(view, w, x[0], y[0]))
    assert not torch.allclose(found, mean_gradient(task, view, w, x[:2], y[:2]), rtol=1e-3)


def test_a_step_along_a_known_gradient() -> None:
    w, g = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -4.0])
    assert momentum_step(w, None, g, 0.5, 0.0)[0].tolist() == [0.0, 4.0]
    assert momentum_step(w, None, g, 0.5, 0.0)[1] is None
    after, m = momentum_step(w, torch.tensor([4.0, 4.0]), g, 0.5, 0.25)
    assert m is not None
    assert m.tolist() == [3.0, -3.0]
    assert after.tolist() == [-0.5, 3.5]
    assert w.tolist() == [1.0, 2.0]
