"""FedNova against FedAvg, against explicit vectors a_u, and on a line where FedAvg ends in the wrong place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from algorithms.by_hand import Line, gradient, samples, whole_steps
from algorithms.overheard import alike, overhear
from lanterne.algorithms import FedAvg, FedNova
from lanterne.fleet import Device, Fleet
from lanterne.testing import Problem, simulate, tiny_mlp, tiny_problem, uneven_fleet

BLOCKS, ROUNDS, LR = 3, 4, 0.3


def coefficients(steps: int, rho: float) -> list[float]:
    """a_u: how often the i-th gradient stands in the sum of velocities, counted out."""
    counts = [0.0] * steps
    for now in range(steps):  # the velocity after step `now` holds the gradient of step i with weight rho^(now - i)
        for i in range(now + 1):
            counts[i] += rho ** (now - i)
    return counts


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_the_norm_is_that_of_the_coefficients(steps: int, rho: float) -> None:
    assert FedNova(stack=tiny_mlp(), momentum=rho).norm(steps) == pytest.approx(sum(coefficients(steps, rho)), rel=1e-9)


@pytest.mark.parametrize("options", [{"local_steps": 3}, {"local_steps": 2, "cohort": 3, "weights": "equal"}], ids=str)
def test_with_equal_steps_it_is_fedavg(options: Any) -> None:
    """To the bit without momentum; with it |a_u| is not a whole number and is rounded."""
    problem, fleet = tiny_problem(), uneven_fleet(dropout=0.1)
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=LR, **options), problem, fleet, ROUNDS)
    found, _ = simulate(lambda s: FedNova(stack=s, lr=LR, **options), problem, fleet, ROUNDS)
    assert torch.equal(found, expected)
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=LR, momentum=0.5, **options), problem, fleet, ROUNDS)
    found, _ = simulate(lambda s: FedNova(stack=s, lr=LR, momentum=0.5, **options), problem, fleet, ROUNDS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- the paper's rule
def normalised(problem: Problem, w: Tensor, spans: Mapping[int, range], rho: float, variant: str = "right") -> Tensor:
    """A round in which client u takes the steps `spans[u]`: d_u, tau_eff and the step as they stand."""
    n, directions, norms = samples(problem), {}, {}
    for u, span in spans.items():
        v, velocity, gradients = w, torch.zeros_like(w), []
        for step in span:
            gradients.append(gradient(problem, v, u, step))
            velocity = rho * velocity + gradients[-1]
            v = v - LR * velocity
        a = [1.0] * len(span) if variant == "momentum forgotten" else coefficients(len(span), rho)
        norms[u] = sum(a)
        summed = sum(c * g for c, g in zip(coefficients(len(span), rho), gradients, strict=True))
        directions[u] = summed / (1.0 if variant == "not normalised" else norms[u])
    weight = {u: 1.0 if variant == "equal weights" else n[u] for u in spans}
    p = {u: weight[u] / sum(weight.values()) for u in spans}
    effective = {
        "not normalised": 1.0,
        "the most steps": max(norms.values()),
        "unweighted steps": sum(norms.values()) / len(norms),
    }.get(variant, sum(p[u] * norms[u] for u in spans))
    return w - effective * sum(p[u] * LR * directions[u] for u in spans)


WRONG = ["momentum forgotten", "not normalised", "equal weights", "the most steps", "unweighted steps"]


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("per_step", [2.0, 3.0, 7.5])
def test_steps_in_proportion_to_samples(per_step: float, rho: float) -> None:
    """tau_u = floor(n_u / (B / E)), and FedAvg would weigh those with more steps more."""
    problem = tiny_problem()
    rounds, _ = overhear(
        lambda s: FedNova(stack=s, lr=LR, samples_per_step=per_step, momentum=rho), problem, uneven_fleet(), ROUNDS
    )
    tau = {u: max(1, int(n // per_step)) for u, n in samples(problem).items()}
    assert len(set(tau.values())) > 1 or per_step > 7
    w = problem.w
    for t, heard in enumerate(rounds):
        assert {q.to: len(q.batches) for q in heard.requests} == tau
        spans = {u: range(t * tau[u], (t + 1) * tau[u]) for u in tau}
        expected = normalised(problem, w, spans, rho)
        assert alike(heard.state.w, expected)
        for variant in WRONG:
            same = variant == "momentum forgotten" and (rho == 0 or set(tau.values()) == {1})
            same |= set(tau.values()) == {1} and variant != "equal weights"
            assert alike(heard.state.w, normalised(problem, w, spans, rho, variant)) == same, variant
        w = heard.state.w


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("deadline", [0.02, 0.025, 0.035])
def test_steps_that_the_clock_allows(deadline: float, rho: float) -> None:
    """Who is cut off counts by its direction too; who has finished no step has none."""
    problem, k = tiny_problem(), 3
    make = lambda s: FedNova(stack=s, lr=LR, local_steps=k, deadline=deadline, momentum=rho)  # noqa: E731
    rounds, simulator = overhear(make, problem, uneven_fleet(), ROUNDS)
    w, seen = problem.w, set()
    for t, heard in enumerate(rounds):
        steps = whole_steps(simulator, t + 1, BLOCKS)
        seen |= set(steps.values())
        assert {r.request.to: int(r["steps"]) for r in heard.replies} == steps
        spans = {u: range(t * k, t * k + count) for u, count in steps.items() if count}
        assert alike(heard.state.w, normalised(problem, w, spans, rho))
        assert not alike(heard.state.w, normalised(problem, w, spans, rho, "not normalised"))
        w = heard.state.w
    assert len(seen) > 1
    assert all(r["units"] % (2 * BLOCKS) == 0 for r in simulator.timeline)  # an interrupted step is no work


def test_nobody_with_a_step_changes_nothing() -> None:
    problem = tiny_problem()
    for deadline, moves in ((0.014, False), (0.016, True)):
        make = lambda s, d=deadline: FedNova(stack=s, lr=LR, local_steps=3, deadline=d)  # noqa: E731
        found, simulator = simulate(make, problem, uneven_fleet(), 3)
        assert torch.equal(found, problem.w) != moves
        assert {r["outcome"] for r in simulator.timeline} == {"partial"}


def test_memory_holds_the_velocity() -> None:
    problem, found = tiny_problem(), {}
    for rho in (0.0, 0.5):
        _, simulator = simulate(lambda s, m=rho: FedNova(stack=s, momentum=m), problem, uneven_fleet(), 1)
        found[rho] = simulator.ledger.total.static
    assert found[0.5] == found[0.0] + 8 * problem.stack.size


# ---------------------------------------------------------------------------------------------------- Theorem 1
H, A, N = [1.0, 2.0, 1.0], [0.0, 1.0, 4.0], [1, 2, 9]


def limit(lr: float, *, normalised: bool) -> float:
    """Where w stays, when client u takes n_u steps: the zero of sum_u p_u (1 - (1 - lr h_u)^n_u) (w - a_u) [/ n_u]."""
    pulls = [n * (1.0 - (1.0 - lr * h) ** n) / (n if normalised else 1) for h, n in zip(H, N, strict=True)]
    return sum(pull * a for pull, a in zip(pulls, A, strict=True)) / sum(pulls)


def test_fedavg_ends_at_a_mismatched_optimum_and_fednova_does_not() -> None:
    """With unequal steps FedAvg minimises sum_u p_u tau_u f_u, however small the steps; FedNova sum_u p_u f_u."""
    line, fleet = Line(H, A, N), Fleet([Device() for _ in range(3)])
    options: dict[str, Any] = {"lr": 0.05, "samples_per_step": 1.0}  # a row per step
    nova = line.limit(lambda s: FedNova(stack=s, **options), fleet, 120)
    average = line.limit(lambda s: _Unnormalised(stack=s, **options), fleet, 120)
    assert nova == pytest.approx(limit(0.05, normalised=True), abs=1e-9)
    assert average == pytest.approx(limit(0.05, normalised=False), abs=1e-9)
    assert limit(1e-5, normalised=True) == pytest.approx(line.optimum(N), abs=1e-3)
    assert limit(1e-5, normalised=False) == pytest.approx(line.optimum([n * n for n in N]), abs=1e-3)
    assert abs(line.optimum(N) - line.optimum([n * n for n in N])) > 0.2


class _Unnormalised(FedNova):
    """FedAvg with FedNova's steps."""

    def norm(self, steps: int) -> float:
        return 1.0


@pytest.mark.parametrize("wrong", [{"samples_per_step": 0.0}, {"momentum": 1.0}, {"deadline": -1.0}, {"mu": 0.1}])
def test_hyperparameters_are_checked(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        FedNova(stack=tiny_mlp(), **wrong)
