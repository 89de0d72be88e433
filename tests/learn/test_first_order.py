"""Local training against PyTorch's own optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lanterne.learn import Task, local_sgd, sgd_step
from lanterne.models import LayerStack, full, prefix, suffix
from models.nets import batch_of, stack_of, weights_of

STEPS = 5


def batches(stack: LayerStack, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """`[steps, batch, ...]` and labels."""
    xs, ys = zip(*(batch_of(stack, 4, key) for key in range(steps)), strict=True)
    return torch.stack(xs), torch.stack(ys)


def by_torch(
    stack: LayerStack, w: Tensor, x: Tensor, y: Tensor, lr: float, momentum: float
) -> tuple[Tensor, Tensor | None]:
    """The same steps by `torch.optim.SGD` on the user's module; the weights and the velocity."""
    net = stack.load(w)
    optimiser = torch.optim.SGD(net.parameters(), lr, momentum)
    for xi, yi in zip(x, y, strict=True):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(xi), yi).backward()
        optimiser.step()
    m = [optimiser.state[p]["momentum_buffer"].reshape(-1) for p in net.parameters()] if momentum else None
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]), None if m is None else torch.cat(m)


@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["salf-mlp", "residual", "convolutions"])
def test_local_steps_are_those_of_pytorchs_optimiser(name: str, momentum: float, functional: bool) -> None:
    stack = stack_of(name)
    w, (x, y) = weights_of(stack), batches(stack)
    before = w.clone()
    found, m = local_sgd(Task(stack, functional=functional), full(stack), w, x, y, 0.1, momentum)
    expected, velocity = by_torch(stack, w, x, y, 0.1, momentum)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(w, before)  # left as it is
    assert (m is None) == (velocity is None) == (momentum == 0)
    if m is not None:
        assert velocity is not None
        assert torch.allclose(m, velocity, rtol=1e-11, atol=1e-13)
        other, _ = by_torch(stack, w, x, y, 0.1, 0.0)  # the wrong variant: the velocity is forgotten
        assert not torch.allclose(found, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_in_two_halves_are_the_steps_in_one(momentum: float) -> None:
    """A velocity that is kept between rounds goes on where it was, to the bit."""
    stack = stack_of("residual")
    task, w, (x, y) = Task(stack), weights_of(stack), batches(stack)
    whole = local_sgd(task, full(stack), w, x, y, 0.1, momentum)
    half, m = local_sgd(task, full(stack), w, x[:2], y[:2], 0.1, momentum)
    rest = local_sgd(task, full(stack), half, x[2:], y[2:], 0.1, momentum, m)
    assert torch.equal(rest[0], whole[0])
    if momentum:
        assert torch.equal(rest[1], whole[1])
        fresh = local_sgd(task, full(stack), half, x[2:], y[2:], 0.1, momentum)
        assert not torch.equal(fresh[0], whole[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_server_half_alone_takes_the_steps_of_the_whole(momentum: float) -> None:
    """With the lower half's output given, the upper half moves as it does in the whole model."""
    stack = stack_of("salf-mlp")
    task, w, (x, y) = Task(stack), weights_of(stack), batches(stack)
    low, high = prefix(stack, 1), suffix(stack, 1)
    m = torch.ones_like(w) if momentum else None
    smashed = task.predict(low, low.take(w), x[0])
    whole, _ = sgd_step(task, full(stack), w.clone(), m, x[0], y[0], 0.1, momentum)
    part, v = sgd_step(task, high, high.take(w).clone(), m if m is None else high.take(m), smashed, y[0], 0.1, momentum)
    assert torch.equal(part, high.take(whole))
    assert (v is None) == (not momentum)


def test_no_batches_no_step() -> None:
    stack = stack_of("salf-mlp")
    w, (x, y) = weights_of(stack), batches(stack)
    found, m = local_sgd(Task(stack), full(stack), w, x[:0], y[:0], 0.1, 0.9)
    assert torch.equal(found, w)
    assert found is not w
    assert m is None
