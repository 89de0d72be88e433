"""SGLR by number 15 of section 9 of the specification, and its two tricks by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import gradient, samples
from algorithms.overheard import Overheard
from lanterne.algorithms import PSL, SGLR
from lanterne.testing import simulate, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

EDGE = tiny_mlp().edges[1]


def run(kind: type[Any], rounds: int = 1, *, same: bool = False, **options: Any) -> Tensor:
    problem = tiny_problem(same=same)
    return simulate(lambda s: kind(stack=s, lr=0.3, weights="equal", **options), problem, uneven_fleet(), rounds)[0]


def moved(**options: Any) -> Tensor:
    """How far the clients' halves move in one batch, `[clients, half]`."""
    return (run(SGLR, **options) - tiny_problem().w)[:, :EDGE]


@pytest.mark.parametrize("phi", [0.0, 1 / 6])
def test_15_with_nobody_or_one_active_it_is_psl(phi: float) -> None:
    plain = run(PSL, 3, cut_gradient="pooled", local_steps=2)
    assert torch.equal(run(SGLR, 3, alpha=0.0, phi=phi, local_steps=2), plain)
    assert not torch.allclose(run(SGLR, 3, alpha=0.0, phi=2 / 6, local_steps=2), plain, atol=1e-4)


def test_15_the_server_steps_c_to_the_alpha_times_as_far() -> None:
    start = tiny_problem().w[EDGE:]
    for alpha in (0.0, 0.5, 1.0, 2.0):
        found = run(SGLR, alpha=alpha, phi=0.5)[0, EDGE:]
        plain = run(PSL)[0, EDGE:]
        assert torch.allclose(found - start, 6**alpha * (plain - start), rtol=1e-12, atol=0)


def test_15_a_sum_is_as_many_means_as_there_are_active_clients() -> None:
    mean, total = moved(phi=4 / 6), moved(phi=4 / 6, reduce="sum")
    own = moved(phi=0.0)
    active = [c for c in range(6) if not torch.equal(mean[c], own[c])]
    assert len(active) == 4
    for c in range(6):
        assert torch.allclose(total[c], (4.0 if c in active else 1.0) * mean[c], rtol=0, atol=1e-14)


def test_15_averaging_equal_gradients_changes_nothing() -> None:
    for average in ("position", "rows"):
        one, other = (run(SGLR, same=True, phi=phi, average=average) for phi in (0.0, 1.0))
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


def test_the_averaged_gradient_by_hand() -> None:
    """All active: everybody goes back with the mean of all cut gradients, row by row, or with that of all rows."""
    problem = tiny_problem()
    task, stack, w = problem.task, problem.stack, problem.w
    low, high = stack.span(0, 1), stack.span(1, 3)
    batches = [problem.streams.rows(c, range(1))[0] for c in range(6)]
    xs = [problem.data.x[rows] for rows in batches]
    smashed = [task.predict(low, w[:EDGE], x) for x in xs]
    ups = [
        task.gradient_with_input(high, w[EDGE:], s, problem.data.y[rows])[1] / 6
        for s, rows in zip(smashed, batches, strict=True)
    ]
    shared = torch.stack(ups).mean(0)
    for average, up in (("position", shared), ("rows", shared.mean(0, keepdim=True).expand_as(shared))):
        found = moved(phi=1.0, average=average)
        for c, x in enumerate(xs):
            assert torch.allclose(found[c], -0.3 * task.pullback(low, w[:EDGE], x, up), rtol=0, atol=1e-13)


def test_without_averaging_each_goes_back_with_its_own() -> None:
    found, problem = moved(phi=0.0), tiny_problem()
    for c in samples(problem):
        assert torch.allclose(found[c], -0.3 / 6 * gradient(problem, problem.w, c, 0)[:EDGE], rtol=0, atol=1e-13)


def test_who_is_active_is_drawn_for_every_batch() -> None:
    """Half of the clients, in an order of its own for each batch."""
    problem = tiny_problem()
    heard = Overheard(SGLR(stack=problem.stack, lr=0.3, phi=0.5, local_steps=6))
    simulate(lambda _: heard, problem, uneven_fleet(), 1)
    active = [
        tuple(q.arrays["active"].nonzero().flatten().tolist())
        for q in heard.rounds[0].requests
        if q.handler == "serve_all"
    ]
    assert [len(chosen) for chosen in active] == [3] * 6
    assert len(set(active)) > 1
