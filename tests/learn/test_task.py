"""Gradients in both forms against autograd on the user's own module, and once against differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as f

from lanterne.learn import Task, cross_entropy
from lanterne.models import LayerStack, ParamView, full, prefix, suffix
from models.nets import NAMES, batch_of, stack_of, weights_of

FORMS = pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
SMOOTH = ["salf-mlp", "resnet-small", "residual", "convolutions"]


def plainly(stack: LayerStack, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient by the user's module alone; and each block's input with its gradient."""
    net, h = stack.load(w), x.clone().requires_grad_()
    starts = []
    for group in stack.groups:
        starts.append(h)
        for i in group:
            h = net[i](h)
    loss = f.cross_entropy(h, y)
    gradients = torch.autograd.grad(loss, [*net.parameters(), *starts])
    n = len(gradients) - len(starts)
    return torch.cat([g.reshape(-1) for g in gradients[:n]]), starts, list(gradients[n:])


@FORMS
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_users_own(name: str, functional: bool) -> None:
    stack = stack_of(name)
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    expected, starts, ups = plainly(stack, w, x, y)
    assert torch.allclose(task.gradient(full(stack), w, x, y), expected, rtol=1e-12, atol=1e-14)
    for cut in range(1, len(stack)):  # what a server does with smashed data, and a client with what comes down
        high, low, edge = suffix(stack, cut), prefix(stack, cut), stack.edges[cut]
        g, dx = task.gradient_with_input(high, high.take(w), starts[cut].detach(), y)
        assert torch.allclose(g, expected[edge:], rtol=1e-12, atol=1e-14)
        assert torch.allclose(dx, ups[cut], rtol=1e-12, atol=1e-14)
        down = task.pullback(low, low.take(w), x, dx)
        assert torch.allclose(down, expected[:edge], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(task.pullback(low, low.take(w), x, 2 * dx), expected[:edge], rtol=1e-3, atol=1e-6)
        for first in range(cut):  # and the body of a U, with what comes back from the tail
            body = stack.span(first, cut)
            g, dx = task.pullback_with_input(body, body.take(w), starts[first].detach(), ups[cut])
            assert torch.allclose(g, body.take(expected), rtol=1e-12, atol=1e-14)
            assert torch.allclose(dx, ups[first], rtol=1e-12, atol=1e-14)


@FORMS
@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_the_limit_of_differences(name: str, functional: bool) -> None:
    """Central differences along random directions: independent of any automatic differentiation."""
    stack = stack_of(name)
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    view, g = full(stack), torch.Generator().manual_seed(0)
    gradient, dx = task.gradient_with_input(view, w, x, y)
    for _ in range(3):
        v, u, h = (
            torch.randn(w.shape, generator=g, dtype=w.dtype),
            torch.randn(x.shape, generator=g, dtype=x.dtype),
            1e-6,
        )

        def loss(s: float, v: Tensor = v, u: Tensor = u) -> Tensor:
            return task.loss(task.predict(view, w + s * v, x + s * u), y)

        slope = float((loss(h) - loss(-h)) / (2 * h))
        assert slope == pytest.approx(float(gradient @ v + (dx * u).sum()), rel=1e-5, abs=1e-6)
        assert slope != pytest.approx(float(gradient @ v), rel=1e-5, abs=1e-6)  # without the samples' part


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name: str) -> None:
    stack = stack_of(name)
    w, (x, y) = weights_of(stack), batch_of(stack)
    here, there = Task(stack), Task(stack, functional=True)
    a, b = here.gradient(full(stack), w, x, y), there.gradient(full(stack), w, x, y)
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    for p, q in zip(
        here.gradient_with_input(full(stack), w, x, y), there.gradient_with_input(full(stack), w, x, y), strict=True
    ):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["salf-mlp", "residual"])
def test_the_functional_form_goes_under_vmap(name: str) -> None:
    stack = stack_of(name)
    ws = torch.stack([weights_of(stack, key) for key in range(3)])
    xs, ys = (torch.stack(t) for t in zip(*(batch_of(stack, 4, key) for key in range(3)), strict=True))
    task = Task(stack, functional=True)
    together = vmap(lambda w, x, y: task.gradient(full(stack), w, x, y))(ws, xs, ys)
    alone = torch.stack([Task(stack).gradient(full(stack), *c) for c in zip(ws, xs, ys, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- side effects
@FORMS
def test_nothing_but_descend_changes_its_inputs(functional: bool) -> None:
    stack = stack_of("residual")
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    w0, x0, view = w.clone(), x.clone(), full(stack)
    task.predict(view, w, x)
    task.gradient(view, w, x, y)
    task.gradient_with_input(view, w, x, y)
    task.pullback(view, w, x, torch.ones(4, 3, dtype=w.dtype))
    task.pullback_with_input(view, w, x, torch.ones(4, 3, dtype=w.dtype))
    assert torch.equal(w, w0)
    assert torch.equal(x, x0)
    assert not w.requires_grad
    assert not x.requires_grad
    assert w.grad is None


@FORMS
@pytest.mark.parametrize("name", NAMES)
def test_descend_is_a_step_against_the_gradient(name: str, functional: bool) -> None:
    stack = stack_of(name)
    task, w, (x, y) = Task(stack, functional=functional), weights_of(stack), batch_of(stack)
    w0, g = w.clone(), task.gradient(full(stack), w, x, y)
    after = task.descend_(full(stack), w, [x], [y], 0.3)
    assert torch.equal(after, torch.sub(w0, g, alpha=0.3))
    assert (after is w) == (not functional)
    assert torch.equal(w, w0) == functional
    assert not after.requires_grad


def test_a_view_of_a_larger_vector_moves_that_vector_and_nothing_beside_it() -> None:
    """Why whoever descends has to own what it descends on."""
    stack = stack_of("salf-mlp")
    task, w, (x, y) = Task(stack), weights_of(stack), batch_of(stack)
    high, before = suffix(stack, 1), w.clone()
    h = task.predict(prefix(stack, 1), prefix(stack, 1).take(w), x)
    task.descend_(high, high.take(w), [h], [y], 0.3)
    edge = stack.edges[1]
    assert torch.equal(w[:edge], before[:edge])
    assert not torch.equal(w[edge:], before[edge:])


def test_index_views_give_the_gradient_of_the_smaller_model() -> None:
    """A client that holds half of a hidden layer trains the narrower network that it has."""
    stack = LayerStack(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), (3,))
    rows = torch.cat([torch.arange(6), torch.arange(12, 14), 16 + torch.tensor([0, 1, 4, 5]), torch.arange(24, 26)])
    view = ParamView(rows, (((2, 3), (2,)), ((2, 2), (2,))))
    w, (x, y) = weights_of(stack), batch_of(stack)
    small = LayerStack(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double(), (3,))
    for functional in (False, True):
        found = Task(stack, functional=functional).gradient(view, view.take(w), x, y)
        assert torch.allclose(found, Task(small).gradient(full(small), view.take(w), x, y), rtol=1e-13, atol=1e-15)


# ---------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_is_its_formula(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    output = torch.randn(7, classes, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (7,), generator=g)
    p = output.exp() / output.exp().sum(1, keepdim=True)
    by_hand = -sum(float(p[i, k].log()) for i, k in enumerate(labels.tolist())) / 7
    assert float(cross_entropy(output, labels)) == pytest.approx(by_hand, rel=1e-14)


@pytest.mark.parametrize("loss", [cross_entropy, lambda o, y: ((o - f.one_hot(y, o.shape[1])) ** 2).mean()])
@FORMS
def test_any_loss_can_be_brought(loss: Callable[[Tensor, Tensor], Tensor], functional: bool) -> None:
    stack = stack_of("salf-mlp")
    w, (x, y) = weights_of(stack), batch_of(stack)
    net = stack.load(w)
    loss(net(x), y).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    found = Task(stack, loss, functional).gradient(full(stack), w, x, y)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
