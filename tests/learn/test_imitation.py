"""Gradients of inputs, and of how far they are from others, in both forms against autograd on the user's own module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as f

from lanterne.learn import Task, imitation_gradient, input_gradient
from lanterne.models import full, suffix
from models.nets import NAMES, batch_of, stack_of, weights_of

FORMS = pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])


@FORMS
@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_users_own(name: str, functional: bool) -> None:
    stack = stack_of(name)
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    net, s = stack.load(w), x.clone().requires_grad_()
    (up,) = torch.autograd.grad(f.cross_entropy(net(s), y, reduction="sum"), [s], create_graph=True)
    assert torch.allclose(len(x) * input_gradient(task, full(stack), w, x, y), up, rtol=1e-12, atol=1e-14)
    wanted = torch.cos(up.detach() * 7)
    gap = (up - wanted).square().sum()
    found = torch.autograd.grad(gap, list(net.parameters()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([g.reshape(-1) for g in found])
    g = imitation_gradient(task, full(stack), w, x, y, wanted)
    assert torch.allclose(g, expected, rtol=1e-10, atol=1e-12)
    assert float(g.norm()) > 0


@FORMS
def test_a_server_asks_for_the_gradient_of_its_smashed_data_alone(functional: bool) -> None:
    stack = stack_of("salf-cnn")
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    for cut in range(1, len(stack)):
        high, s = suffix(stack, cut), task.predict(stack.span(0, cut), w[: stack.edges[cut]], x)
        _, expected = task.gradient_with_input(high, high.take(w), s, y)
        assert torch.allclose(input_gradient(task, high, high.take(w), s, y), expected, rtol=1e-12, atol=1e-14)


@FORMS
def test_the_scale_is_that_of_single_samples(functional: bool) -> None:
    """Two batches in one are the sum of two: neither loss is divided by the samples in it (item 8 of section 4.6)."""
    stack = stack_of("salf-mlp")
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack, 6)

    def of(rows: slice) -> Tensor:
        return imitation_gradient(task, full(stack), w, x[rows], y[rows], torch.ones_like(x[rows]))

    assert torch.allclose(of(slice(0, 6)), of(slice(0, 2)) + of(slice(2, 6)), rtol=1e-10, atol=1e-12)


def test_a_network_that_gives_what_is_wanted_has_nothing_to_learn() -> None:
    stack = stack_of("salf-mlp")
    task, w, (x, y) = Task(stack), weights_of(stack), batch_of(stack)
    wanted = len(x) * input_gradient(task, full(stack), w, x, y)
    assert float(imitation_gradient(task, full(stack), w, x, y, wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_clients_may_be_stacked(name: str) -> None:
    stack = stack_of(name)
    several, one, (x, y) = Task(stack, functional=True), Task(stack), batch_of(stack)
    ws = torch.stack([weights_of(stack), 1.1 * weights_of(stack)])
    found = vmap(lambda w: imitation_gradient(several, full(stack), w, x, y, torch.ones_like(x)))(ws)
    for w, g in zip(ws, found, strict=True):
        expected = imitation_gradient(one, full(stack), w, x, y, torch.ones_like(x))
        assert torch.allclose(g, expected, rtol=1e-9, atol=1e-11)
