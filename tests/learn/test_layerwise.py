"""A backward pass that is stopped has computed a suffix of the whole gradient, to the bit."""

from __future__ import annotations

import pytest
import torch

from lanterne.budget import Clock, Units
from lanterne.learn import Task, budgeted_sgd, inputs_at, truncated_gradient
from lanterne.learn.layerwise import _patched
from lanterne.models import full, prefix
from models.nets import NAMES, batch_of, stack_of, weights_of


def stops_after(units: int) -> Clock:
    """A clock that allows so many units and then never again."""
    left = [units]

    def allows() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return Clock(allows)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_gradient_is_a_suffix_of_the_gradient(name: str) -> None:
    stack = stack_of(name)
    task, w, (x, y) = Task(stack), weights_of(stack), batch_of(stack)
    whole, n, before = task.gradient(full(stack), w, x, y), len(stack), w.clone()
    for units in range(2 * n + 3):
        depth = min(max(units - n, 0), n)
        found = truncated_gradient(task, w, x, y, stops_after(units))
        assert torch.equal(found, whole[stack.edges[n - depth] :])
    assert torch.equal(w, before)
    assert not w.requires_grad


@pytest.mark.parametrize("name", ["residual", "resnet-small"])
def test_inputs_at_are_the_inputs_of_the_last_blocks(name: str) -> None:
    stack = stack_of(name)
    task, w, (x, _) = Task(stack), weights_of(stack), batch_of(stack)
    assert inputs_at(task, w, x, len(stack)) is x
    for depth in range(len(stack)):
        low = prefix(stack, len(stack) - depth)
        h = inputs_at(task, w.clone().requires_grad_(), x, depth)
        assert torch.equal(h, task.predict(low, low.take(w), x))
        assert not h.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
@pytest.mark.parametrize("name", ["salf-mlp", "residual"])
def test_a_budget_known_beforehand_is_the_clock_that_was_not(name: str, functional: bool, momentum: float) -> None:
    """The simulator's way, of which the depth is known, and the device's, which asks before each unit, agree."""
    stack, steps = stack_of(name), 2
    task, w = Task(stack, functional=functional), weights_of(stack)
    x, y = (torch.stack(t) for t in zip(*(batch_of(stack, 4, key) for key in range(steps)), strict=True))
    n = len(stack)
    for m in (None, *([torch.linspace(-1, 1, len(w), dtype=w.dtype)] if momentum else [])):
        for units in range(2 * n * steps + 1):
            clock = budgeted_sgd(Task(stack), w, x, y, 0.1, stops_after(units), momentum, m)
            known = budgeted_sgd(task, w, x, y, 0.1, Units(units), momentum, m)
            assert torch.allclose(known[0], clock[0], rtol=1e-12, atol=1e-14)
            assert known[2] == clock[2] == sum(max(0, min(units - 2 * n * s - n, n)) for s in range(steps))
            assert (known[1] is None) == (clock[1] is None)
            if known[1] is not None:
                assert torch.allclose(known[1], clock[1], rtol=1e-12, atol=1e-14)
            reached = sum(units >= 2 * n * s + n + 1 for s in range(steps))
            assert torch.equal(known[0], w) == (reached == 0)


@pytest.mark.parametrize("budget", [Units(), Clock(lambda: True)], ids=["units", "clock"])
def test_a_budget_without_an_end_takes_every_step(budget: Units | Clock) -> None:
    stack = stack_of("residual")
    task, w = Task(stack), weights_of(stack)
    x, y = (torch.stack(t) for t in zip(*(batch_of(stack, 4, key) for key in range(3)), strict=True))
    found, m, done = budgeted_sgd(task, w, x, y, 0.1, budget)
    expected = w.clone()
    for i in range(3):
        expected = expected - 0.1 * task.gradient(full(stack), expected, x[i], y[i])
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-14)
    assert (m, done) == (None, 3 * len(stack))


def test_a_velocity_keeps_the_part_that_was_not_reached() -> None:
    w = torch.zeros(4)
    assert _patched(None, None, w) is None
    assert _patched(None, torch.tensor([5.0]), w).tolist() == [0, 0, 0, 5]
    m = torch.arange(4.0)
    assert _patched(m, None, w) is m
    assert _patched(m, torch.tensor([5.0, 6.0]), w).tolist() == [0, 1, 5, 6]
    assert _patched(m, torch.zeros(0), w).tolist() == [0, 1, 2, 3]
    assert m.tolist() == [0, 1, 2, 3]
