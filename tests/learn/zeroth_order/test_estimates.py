"""What an estimate is: exact on a quadratic, on average the slope, and the same wherever it is computed."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lanterne.errors import ConfigError, ModelError
from lanterne.learn import Optimiser, Task
from lanterne.learn.noise import derived
from lanterne.learn.zeroth_order import (
    Group,
    Perturbed,
    Probes,
    Segment,
    direction,
    estimate,
    factor,
    group_of,
    replay,
    slope,
    through,
)
from lanterne.models import LayerStack, full, prefix, suffix
from learn.zeroth_order.tools import KINDS, estimates, key, linear, numbers, squares, total, u_of

DIFFERENCES = ("forward", "central")


def mlp() -> LayerStack:
    return LayerStack(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (6,))


def batch() -> tuple[Tensor, Tensor]:
    return numbers(7, 6), torch.arange(7) % 3


@pytest.mark.parametrize(("kind", "difference"), list(product(KINDS, DIFFERENCES)))
def test_scalars_are_the_differences_of_the_loss(kind: Any, difference: Any) -> None:
    group, w, (x, y), mu = linear(9, squares), numbers(9), (numbers(5, 9), numbers(5)), 0.3
    found = estimate(group, w, x, y, key(1), Probes(kind, difference, 3, mu))
    f = lambda v: squares((x @ v)[:, None], y)  # noqa: E731
    for p in range(3):
        one = torch.zeros(3, dtype=torch.float64)
        one[p] = 3
        u = slope(group, key(1), one, Probes(kind, difference, 3, mu), w.dtype) / factor(kind, 9)
        high, low = f(w + mu * u), f(w - mu * u)
        expected = (high - low) / (2 * mu) if difference == "central" else (high - f(w)) / mu
        assert float(found.scalars[p]) == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize(("kind", "difference"), list(product(KINDS, DIFFERENCES)))
def test_h7_e1_moments_for_a_linear_loss(kind: Any, difference: Any) -> None:
    """E1, H7: the mean is the gradient within 3 sigma; the second moment is d (Gaussian: d + 2) times its square."""
    d, n = 40, 40_000
    group, a = linear(d, total, functional=True), numbers(d)
    g = estimates(group, numbers(d), a[None], torch.zeros(1), Probes(kind, difference, radius=0.1), n, kind)
    times = d + 2 if kind == "gaussian" else d
    assert float(g.square().sum(1).mean() / a.square().sum()) == pytest.approx(times, rel=0.03)
    along = g @ a / a.square().sum()
    assert abs(float(along.mean()) - 1) < 3 * float(along.std()) / n**0.5
    spread = float((g - a).square().sum(1).mean())
    error = float((g.mean(0) - a).square().sum())
    assert abs(n * error / spread - 1) < 3 * (2 / d) ** 0.5


@pytest.mark.verify
@pytest.mark.parametrize("kind", KINDS)
def test_e1_moments_at_the_size_of_the_specification(kind: Any) -> None:
    d, n = 200, 100_000
    group, a = linear(d, total, functional=True), numbers(d)
    g = estimates(group, numbers(d), a[None], torch.zeros(1), Probes(kind, radius=0.1), n, kind)
    times = d + 2 if kind == "gaussian" else d
    assert float(g.square().sum(1).mean() / a.square().sum()) == pytest.approx(times, rel=0.01)
    error, spread = (g.mean(0) - a).square().sum(), (g - a).square().sum(1).mean()
    assert abs(float(n * error / spread) - 1) < 3 * (2 / d) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_one_sided_differences_see_the_curvature_and_central_ones_do_not(kind: Any) -> None:
    """On a quadratic the two differ by mu/2 u'Hu for each probe."""
    group, w, (x, y), mu = linear(9, squares), numbers(9), (numbers(5, 9), numbers(5)), 0.3
    one, two = (float(estimate(group, w, x, y, key(3), Probes(kind, d, radius=mu)).scalars) for d in DIFFERENCES)
    u = u_of(group, key(3), kind)
    assert one - two == pytest.approx(mu / 2 * float((x @ u).square().sum()), rel=1e-9)
    assert two == pytest.approx(float(u @ (x.T @ (x @ w - y))), rel=1e-9)


def test_t4_many_small_steps_are_one_step_along_the_mean_of_their_probes() -> None:
    """T4: d_s = 200, tau = 8: the relative gap falls as eta does; published 0.239, 0.0244, 0.00244, 0.000245."""
    d, tau = 200, 8
    group, x, y = linear(d, squares), numbers(60, d) / math.sqrt(d), numbers(60)
    gaps = {}
    for seed, eta in product(range(5), (1e-2, 1e-3, 1e-4, 1e-5)):
        w0, probes, sgd = numbers(d, seed=seed), Probes("sphere", "central", radius=1e-3), Optimiser(lr=eta)
        keys = [derived(key("T4", seed), i) for i in range(tau)]
        steps = one = w0
        for k in keys:
            steps, _ = replay(group, steps, k, estimate(group, steps, x, y, k, probes).scalars, probes, sgd)
            one, _ = replay(group, one, k, estimate(group, w0, x, y, k, probes).scalars, probes, sgd)
        gaps.setdefault(eta, []).append(float((steps - one).norm() / (one - w0).norm()))
    means = [sum(found) / 5 for found in gaps.values()]
    for found, published in zip(means, (0.239, 0.0244, 0.00244, 0.000245), strict=True):
        assert published / 2 < found < published * 2, means
    assert all(9 < a / b < 11 for a, b in pairwise(means[1:])), means


@pytest.mark.parametrize(("kind", "difference"), list(product(("gaussian", "rademacher"), DIFFERENCES)))
def test_t2_both_halves_perturbed_together_are_the_whole_model(kind: Any, difference: Any) -> None:
    """T2: joint feedback is full-model SPSA on the concatenated parameters, bit for bit."""
    stack, (x, y) = mlp(), batch()
    task, w, probes = Task(stack), numbers(stack.size), Probes(kind, difference, radius=1e-2)
    whole = group_of(task, full(stack))
    client, server = group_of(task, prefix(stack, 1)), group_of(task, suffix(stack, 1))
    w_c, w_s = w[: client.size], w[client.size :]

    def joint(shift: float) -> Tensor:
        output = x
        for half, part in ((client, w_c), (server, w_s)):
            u = direction(half, kind, key(5), 0, w.dtype)
            [output] = through(half, [Perturbed(half, 0, part, u if shift else None, shift)], output)
        return task.loss(output, y)

    mu = probes.radius
    scalar = (joint(mu) - joint(-mu)) / (2 * mu) if difference == "central" else (joint(mu) - joint(0.0)) / mu
    found = estimate(whole, w, x, y, key(5), probes)
    assert torch.equal(found.scalars, scalar[None])
    sgd = Optimiser(lr=0.1)
    after = [replay(h, v, key(5), scalar[None], probes, sgd)[0] for h, v in ((client, w_c), (server, w_s))]
    assert torch.equal(torch.cat(after), replay(whole, w, key(5), found.scalars, probes, sgd)[0])


def test_an_auxiliary_head_behind_a_half_is_one_group() -> None:
    """HERON's client: the base pass gives the smashed data, and half and head move together."""
    stack, (x, y) = mlp(), batch()
    head = LayerStack(nn.Sequential(nn.Linear(5, 3)), (5,))
    task = Task(stack)
    group = Group((Segment(task, prefix(stack, 1)), Segment(task.on(head), full(head))))
    w, probes = numbers(group.size), Probes("rademacher", radius=1e-2)
    found = estimate(group, w, x, y, key(6), probes)
    half = prefix(stack, 1)

    def f(v: Tensor) -> Tensor:
        return task.loss(task.on(head).predict(full(head), v[half.size :], task.predict(half, v[: half.size], x)), y)

    assert found.output is not None
    assert torch.equal(found.output, task.predict(half, w[: half.size], x))
    assert torch.equal(found.loss, f(w))
    u = u_of(group, key(6), "rademacher")
    assert float(found.scalars) == pytest.approx(float((f(w + 1e-2 * u) - f(w)) / 1e-2), rel=1e-9)
    central = Probes("rademacher", "central", 2, 1e-2)
    assert central.evaluations() == 4
    assert estimate(group, w, x, y, key(6), central).output is None
    with_base = estimate(group, w, x, y, key(6), central, base=True)
    assert central.evaluations(base=True) == 5
    assert with_base.output is not None
    assert torch.equal(with_base.output, found.output)
    assert torch.equal(with_base.loss, found.loss)


@pytest.mark.parametrize(("kind", "difference"), list(product(KINDS, DIFFERENCES)))
def test_transforms_equal_the_loop(kind: Any, difference: Any) -> None:
    """Several clients under vmap, and their probes in another, do what one does after the other."""
    stack, (x, y) = mlp(), batch()
    probes, adam = Probes(kind, difference, 3, 1e-2), Optimiser("adam", lr=0.01)
    view, mask = full(stack), [False, True, True, False, True, False]
    loop, stacked = (group_of(Task(stack, functional=inside), view, mask) for inside in (False, True))
    keys, w = derived(key(7), torch.arange(4)), numbers(4, stack.size)

    def step(group: Group, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = estimate(group, w, x, y, k, probes, base=True)
        assert found.output is not None
        after, slots = replay(group, w, k, found.scalars, probes, adam)
        after, slots = replay(group, after, k, found.scalars, probes, adam, slots)
        return found.scalars, found.output, after

    together = torch.func.vmap(lambda k, w: step(stacked, k, w))(keys, w)
    alone = [step(loop, k, v) for k, v in zip(keys, w, strict=True)]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(found, torch.stack(list(expected)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "restore"), list(product(KINDS, ("functional", "snapshot"))))
def test_shapes_follow_on_the_meta_device(kind: Any, restore: Any) -> None:
    stack, (x, y) = mlp(), batch()
    group, probes = group_of(Task(stack), full(stack)), Probes(kind, "forward", 2, restore=restore)
    w, k = torch.empty(stack.size, device="meta"), torch.empty((), dtype=torch.int64, device="meta")
    found = estimate(group, w, x.float().to("meta"), y.to("meta"), k, probes)
    assert found.scalars.is_meta
    assert found.scalars.shape == (2,)
    assert found.output is not None
    assert found.output.shape == (7, 3)
    after, slots = replay(group, w, k, found.scalars, probes, Optimiser("adam"))
    assert after.is_meta
    assert {name: value.shape for name, value in slots.items()} == {
        "m": (stack.size,), "v": (stack.size,), "t": ()
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_probes_whose_losses_are_not_finite_are_dropped(kind: Any) -> None:
    def cliff(output: Tensor, labels: Tensor) -> Tensor:
        return torch.where(output.sum() > labels.sum(), math.inf, output.sum())

    group, w, x = linear(9, cliff), torch.zeros(9).double(), torch.ones(1, 9).double()
    probes = Probes(kind, "forward", 8)
    found = estimate(group, w, x, torch.zeros(1), key(8), probes)
    fine = found.scalars.isfinite()
    assert int(found.dropped) == int((~fine).sum())
    assert 0 < int(found.dropped) < 8
    g = slope(group, key(8), found.scalars, probes, w.dtype)
    kept = torch.where(fine, found.scalars, 0) * (8 / int(fine.sum()))
    assert torch.allclose(g, slope(group, key(8), kept, probes, w.dtype), rtol=1e-12)
    assert bool(g.isfinite().all())
    broken = estimate(group, torch.full((9,), math.nan).double(), x, torch.zeros(1), key(8), probes)
    assert int(broken.dropped) == 8
    after, _ = replay(group, w, key(8), broken.scalars, probes, Optimiser(lr=1.0))
    assert torch.equal(after, w)


def test_what_is_masked_out_stays_and_does_not_count() -> None:
    stack, (x, y) = mlp(), batch()
    mask = [True, False, False, True, True, False]
    group = group_of(Task(stack), full(stack), mask)
    whole = group_of(Task(stack), full(stack))
    assert group.dimension == 30 + 4 + 12
    w = numbers(stack.size)
    u, all_of_u = u_of(group, key(9), "rademacher"), u_of(whole, key(9), "rademacher")
    trained = torch.cat([torch.full((n,), yes) for n, yes in zip(full(stack).sizes, mask, strict=True)])
    assert torch.equal(u, torch.where(trained, all_of_u, 0))
    assert float(u_of(group, key(9), "sphere").square().sum()) == pytest.approx(46)
    probes = Probes("unit-sphere", radius=1e-3)
    found = estimate(group, w, x, y, key(9), probes)
    for optimiser in (Optimiser(), Optimiser(momentum=0.9), Optimiser("adam")):
        after, slots = replay(group, w, key(9), found.scalars, probes, optimiser)
        again, _ = replay(group, after, key(9), found.scalars, probes, optimiser, slots)
        assert torch.equal(again == w, ~trained)
    with pytest.raises(ModelError, match="6"):
        group_of(Task(stack), full(stack), [True])
    with pytest.raises(ModelError, match="Nothing is trained"):
        group_of(Task(stack), full(stack), [False] * 6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"directions": "gauss"}, "gaussian"),
        ({"difference": "backward"}, "central"),
        ({"restore": "none"}, "functional"),
        ({"count": 0}, "1 or more"),
        ({"radius": 0.0}, "small number"),
        ({"radius": math.nan}, "small number"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Probes(**wrong)
