"""A deadline for each round, which SALF and Drop share; ADEL-FL makes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.special import gammaincc

from lanterne.algorithms import Drop, Salf
from lanterne.experiment.deadline import first_job
from lanterne.fleet import adel_deadlines, empty_layers, preset, round_weights
from lanterne.runtime import Loop, Simulator
from lanterne.testing import simulate, tiny_mlp, tiny_problem, uneven_fleet

LAYERS = 3
METHODS = [Drop, Salf]


@pytest.mark.parametrize("kind", METHODS)
def test_one_deadline_for_all_rounds_and_the_same_for_each_are_one(kind: Any) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    runs = []
    for deadline in (0.03, (0.03,), (0.03, 0.03, 0.03, 0.03), (0.03, 0.03, 0.04)):
        make = lambda s, d=deadline: kind(stack=s, lr=0.3, deadline=d)  # noqa: E731
        w, simulator = simulate(make, problem, fleet, 4)
        runs.append((w, simulator.timeline, simulator.ledger))
    assert all(torch.equal(w, runs[0][0]) for w, _, _ in runs[:3])
    assert all(rest == list(runs[0][1:]) for _, *rest in runs[:3])
    assert not torch.equal(runs[3][0], runs[0][0])


@pytest.mark.parametrize("kind", METHODS)
def test_17_each_round_lasts_its_own_deadline_and_the_last_holds_on(kind: Any) -> None:
    problem = tiny_problem()
    fleet = preset("stragglers", share=1.0, load="constant", slowdown=1e6).build(6, 1, LAYERS)
    algorithm, executor = kind(stack=problem.stack, deadline=[0.25, 1.0, 0.5]), Loop(problem.task, problem.data.x,
                                                                                    problem.data.y)  # fmt: skip
    simulator = Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)
    state, ends = algorithm.init(problem.w), []
    for _ in range(5):
        state = simulator.round(algorithm, state)
        ends.append(simulator.now)
    executor.close()
    assert ends == [0.25, 1.25, 1.75, 2.25, 2.75]


def test_p_is_that_of_the_rounds_own_deadline() -> None:
    problem, seen, deadlines = tiny_problem(), [], (0.5, 3.0, 1.0)
    fleet = preset("exponential-layers", mean=1.0).build(6, 1, LAYERS)

    class Told(Salf):
        def _empty_chance(self, *given: Any) -> list[float]:
            seen.append(super()._empty_chance(*given))
            return seen[-1]

    simulate(lambda s: Told(stack=s, deadline=deadlines), problem, fleet, 3)
    for p, deadline in zip(seen, deadlines, strict=True):
        assert p == pytest.approx([gammaincc(LAYERS - l, deadline) ** 6 for l in range(LAYERS)])  # noqa: E741


def test_adels_deadlines_are_kept_by_both_and_equal_ones_are_that_deadline() -> None:
    """Where all rounds count the same, ADEL-FL is SALF with the budget's share as its deadline."""
    problem, rounds = tiny_problem(), 6
    fleet = preset("exponential-layers", mean=1.0).build(6, 1, LAYERS)
    job = first_job(Salf(stack=problem.stack, deadline=1e9), problem.stack, fleet, problem.streams, problem.w)
    chances = empty_layers(fleet, job, LAYERS)
    even = adel_deadlines(chances, round_weights([1.0] * rounds, 0.0), 12.0)
    assert even == pytest.approx([2.0] * rounds, rel=2e-3)
    growing = adel_deadlines(chances, round_weights([0.5] * rounds), 12.0)
    for kind in METHODS:
        constant, a = simulate(lambda s, k=kind: k(stack=s, lr=0.3, deadline=2.0), problem, fleet, rounds)
        scheduled, b = simulate(lambda s, k=kind: k(stack=s, lr=0.3, deadline=even), problem, fleet, rounds)
        assert torch.allclose(scheduled, constant, rtol=0, atol=2e-3)
        assert [r["units"] for r in a.timeline] == [r["units"] for r in b.timeline]
        other, c = simulate(lambda s, k=kind: k(stack=s, lr=0.3, deadline=growing), problem, fleet, rounds)
        assert not torch.allclose(other, constant, rtol=0, atol=2e-3) or kind is Drop
        assert c.now <= 12.0 * (1 + 1e-9)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, True, "soon", [], [1.0, 0.0], [1.0, math.nan], [[1.0]], None])
def test_what_is_no_deadline_is_refused(kind: Any, wrong: Any) -> None:
    with pytest.raises(ValidationError, match="Give seconds above 0"):
        kind(stack=tiny_mlp(), deadline=wrong)
    assert kind(stack=tiny_mlp(), deadline=2).deadline == 2.0
    assert kind(stack=tiny_mlp(), deadline=[1, math.inf]).deadline == (1.0, math.inf)
