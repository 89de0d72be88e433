"""FedAsync: invariant 19 of the specification, and an event loop of twenty lines as its oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lanterne.algorithms import FedAsync, FedAvg, FedBuff
from lanterne.fleet import Device, Fleet
from lanterne.learn import local_sgd
from lanterne.models import full
from lanterne.testing import Problem, simulate, tiny_mlp, tiny_problem, uneven_fleet


def trained(problem: Problem, client: int, first: int, w: Tensor, rho: float = 0.0, steps: int = 2) -> Tensor:
    """Plain local steps with a proximal term, written out."""
    start = w
    for step in range(first, first + steps):
        rows = torch.from_numpy(problem.streams.rows(client, range(step, step + 1)))[0]
        g = problem.task.gradient(full(problem.stack), w, problem.data.x[rows], problem.data.y[rows])
        w = w - 0.3 * (g + rho * (w - start))
    return w


# ---------------------------------------------------------------------------------------------------- 19
@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_19_one_client_with_alpha_1_replaces_the_model(staleness: Any) -> None:
    problem, fleet = tiny_problem(1), Fleet([Device(flops=1e5)])
    options: dict[str, Any] = {"lr": 0.3, "local_steps": 2, "momentum": 0.5}

    def make(s: Any) -> FedAsync:
        return FedAsync(stack=s, alpha=1.0, staleness=staleness, proximal=0.0, **options)

    found, _ = simulate(make, problem, fleet, 5)
    w = problem.w
    for version in range(5):
        rows = torch.from_numpy(problem.streams.rows(0, range(2 * version, 2 * version + 2)))
        x, y = problem.data.x[rows], problem.data.y[rows]
        w, _ = local_sgd(problem.task, full(problem.stack), w, x, y, 0.3, 0.5)
    assert torch.equal(found, w)
    fedavg, _ = simulate(lambda s: FedAvg(stack=s, **options), problem, fleet, 5)
    assert torch.allclose(found, fedavg, rtol=0, atol=1e-14)
    half, _ = simulate(lambda s: FedAsync(stack=s, alpha=0.5, proximal=0.0, **options), problem, fleet, 5)
    assert not torch.allclose(half, w, rtol=0, atol=1e-3)


def test_19_one_client_is_fedbuff_of_one_arrival_with_alpha_as_the_server_step() -> None:
    problem, fleet = tiny_problem(1), Fleet([Device(flops=1e5)])
    expected, _ = simulate(lambda s: FedBuff(stack=s, lr=0.3, buffer=1, server_lr=0.6), problem, fleet, 6)
    found, _ = simulate(lambda s: FedAsync(stack=s, lr=0.3, alpha=0.6, proximal=0.0), problem, fleet, 6)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


WRONG = ["", "one version too old", "hinge without its 1", "mixes the difference", "no proximal term", "newest model"]


def event_loop(problem: Problem, durations: dict[int, float], versions: int, wrong: str, **o: Any) -> Tensor:
    """Clients finish one by one; the model of each is mixed in, and it starts again from the result."""

    def s(age: int) -> float:
        age += wrong == "one version too old"
        if o["staleness"] == "polynomial":
            return float((age + 1) ** -0.5)
        if o["staleness"] == "hinge" and age > 1:
            return 1 / (3 * (age - 1) + (wrong != "hinge without its 1"))
        return 1.0

    w, version, step = problem.w, 0, dict.fromkeys(range(6), 0)
    rho = 0.0 if wrong == "no proximal term" else 0.4
    at_work = {c: (durations[c], w, version) for c in range(6)}
    while version < versions:
        c = min(at_work, key=lambda c: (at_work[c][0], c))
        now, start, began = at_work.pop(c)
        model = trained(problem, c, step[c], w if wrong == "newest model" else start, rho)
        step[c] += 2
        age = version - began
        if o["most"] is None or age <= o["most"]:
            a = 0.6 * s(age)
            w = w + a * (model - start) if wrong == "mixes the difference" else (1 - a) * w + a * model
            version += 1
        at_work[c] = (now + durations[c], w, version)
    return w


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_19_fedasync_is_the_event_loop(staleness: Any, most: int | None, wrong: str) -> None:
    problem, fleet, versions = tiny_problem(), uneven_fleet(), 30
    options: dict[str, Any] = {"staleness": staleness, "max_staleness": most, "hinge_slope": 3.0, "hinge_start": 1}

    def make(s: Any) -> FedAsync:
        return FedAsync(stack=s, lr=0.3, local_steps=2, proximal=0.4, **options)

    found, simulator = simulate(make, problem, fleet, versions)
    durations = {r["client"]: r["arrived"] - r["sent"] for r in simulator.timeline}
    durations |= dict.fromkeys(set(range(6)) - set(durations), math.inf)
    expected = event_loop(problem, durations, versions, wrong, staleness=staleness, most=most)
    harmless = (staleness == "constant" and wrong == "one version too old") or (
        staleness != "hinge" and wrong == "hinge without its 1"
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-13) == (not wrong or harmless)
    assert len({r["client"] for r in simulator.timeline}) == 6


def test_a_model_that_is_too_stale_changes_nothing() -> None:
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5 if c else 1.5e4) for c in range(6)])
    make = lambda s: FedAsync(stack=s, lr=0.3, cohort=6, max_staleness=5)  # noqa: E731
    _, simulator = simulate(make, problem, fleet, 45)
    assert [r for r in simulator.timeline if r["client"] == 0]  # it arrived
    found, other = simulate(make, problem, Fleet([Device(flops=1e-3), *fleet.devices[1:]]), 45)
    kept, _ = simulate(make, problem, fleet, 45)
    assert torch.equal(found, kept)  # as if it had never answered
    assert not [r for r in other.timeline if r["client"] == 0]
    heard, _ = simulate(lambda s: FedAsync(stack=s, lr=0.3, cohort=6), problem, fleet, 45)
    assert not torch.equal(heard, kept)


# ---------------------------------------------------------------------------------------------------- weights
@given(st.integers(0, 100), st.floats(0, 2), st.floats(0.1, 20), st.integers(0, 8))
def test_weights_start_at_alpha_and_never_grow(age: int, exponent: float, slope: float, start: int) -> None:
    stack: Any = tiny_mlp()
    values: dict[str, Any] = {"staleness_exponent": exponent, "hinge_slope": slope, "hinge_start": start}
    for staleness in ("constant", "polynomial", "hinge"):
        method = FedAsync(stack=stack, alpha=0.9, staleness=staleness, **values)  # type: ignore[arg-type]
        assert method.mixing(0) == 0.9
        assert 0 < method.mixing(age + 1) <= method.mixing(age) <= 0.9
    assert FedAsync(stack=stack, staleness="hinge", **values).mixing(start) == 0.6
    assert FedAsync(stack=stack, staleness="hinge", **values).mixing(start + 1) == pytest.approx(0.6 / (slope + 1))
    assert FedAsync(stack=stack, staleness="constant", **values).mixing(age) == 0.6


def test_the_proximal_term_draws_back_from_the_second_step_on() -> None:
    problem, fleet = tiny_problem(1), Fleet([Device(flops=1e5)])
    for steps in (1, 2, 5):
        runs = {}
        for rho in (0.0, 0.4):
            make = lambda s, r=rho, k=steps: FedAsync(stack=s, lr=0.3, local_steps=k, alpha=1.0, proximal=r)  # noqa: E731
            runs[rho], _ = simulate(make, problem, fleet, 1)
            assert torch.allclose(runs[rho], trained(problem, 0, 0, problem.w, rho, steps), rtol=0, atol=1e-14)
        far, near = (float((runs[rho] - problem.w).norm()) for rho in (0.0, 0.4))
        assert near < far if steps > 1 else near == pytest.approx(far, abs=1e-14)


@pytest.mark.parametrize("keep", [False, True])
def test_momentum_acts_on_the_proximal_term_too(keep: bool) -> None:
    problem, fleet, view = tiny_problem(1), Fleet([Device(flops=1e5)]), full(tiny_mlp())
    options: dict[str, Any] = {"alpha": 1.0, "proximal": 0.4, "momentum": 0.5, "keep_momentum": keep}
    found, simulator = simulate(lambda s: FedAsync(stack=s, lr=0.3, local_steps=3, **options), problem, fleet, 2)
    start = w = problem.w
    m = torch.zeros_like(w)
    for step in range(6):
        if step == 3:
            start, m = w, m if keep else torch.zeros_like(m)
        rows = torch.from_numpy(problem.streams.rows(0, range(step, step + 1)))[0]
        m = 0.5 * m + problem.task.gradient(view, w, problem.data.x[rows], problem.data.y[rows]) + 0.4 * (w - start)
        w = w - 0.3 * m
    assert torch.allclose(found, w, rtol=0, atol=1e-13)
    # Parameters, gradients, the model that is drawn back to, and the velocity, be it the optimiser's or the client's.
    assert simulator.ledger[0].static == 4 * 8 * problem.stack.size
    _, plain = simulate(lambda s: FedAsync(stack=s, proximal=0.0), problem, fleet, 1)
    assert plain.ledger[0].static == 2 * 8 * problem.stack.size


def test_so_many_are_at_work_as_was_asked_for() -> None:
    for cohort, expected in ((None, 6), (1, 1), (4, 4), (9, 6)):
        make = lambda s, n=cohort: FedAsync(stack=s, cohort=n)  # noqa: E731
        _, simulator = simulate(make, tiny_problem(), uneven_fleet(), 8)
        begun = [(r["sent"], 1) for r in simulator.timeline] + [(c.sent, 1) for c in simulator.calls.values()]
        ended = [(r["arrived"], -1) for r in simulator.timeline]
        at_work, most = 0, 0
        for _, change in sorted(begun + ended):
            at_work += change
            most = max(most, at_work)
        assert most == expected


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 0}, {"alpha": 1.1}, {"staleness": "exponential"}, {"proximal": -1}, {"hinge_slope": 0}, {"mu": 1}],
)
def test_impossible_hyperparameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FedAsync(stack=tiny_mlp(), **wrong)
