"""ADEL-FL's deadlines against closed forms, brute force and a general solver, and what the theory says of them."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import gammaincc

from lanterne.errors import FleetError
from lanterne.fleet import Device, ExponentialLayers, Fleet, Job, Loaded, Work, adel, preset
from lanterne.fleet.adel import adel_deadlines, empty_layers, round_weights, share_out, variance
from lanterne.fleet.device import Floats

LAYERS, USERS = 6, 20
WORK = Work((1.0,) * 2 * LAYERS, (False,) * LAYERS + (True,) * LAYERS, (True,) + (False,) * (2 * LAYERS - 1))
JOB = Job(0, WORK, lambda _: 0)


def exponential(seconds: float, mean: float = 1.0, users: int = USERS) -> Floats:
    """`p` of the theory: nobody of U gets through so many layers of exponential time by the deadline."""
    return np.array([gammaincc(k, seconds / mean) ** users for k in range(1, LAYERS + 1)])


def objective(deadlines: Any, weights: Floats, chances: Any = exponential) -> float:
    return float(sum(c * variance(chances(float(T))) for c, T in zip(weights, deadlines, strict=True)))


# ---------------------------------------------------------------------------------------------------- p
@pytest.mark.parametrize("mean", [0.5, 2.0])
def test_p_of_the_exponential_fleet_is_the_closed_form(mean: float) -> None:
    fleet = preset("exponential-layers", mean=mean).build(USERS, 1, LAYERS)
    for T in (0.3, 1.0, 7.0, math.inf):
        assert empty_layers(fleet, JOB, LAYERS)(T) == pytest.approx(exponential(T, mean), rel=1e-9, abs=1e-300)
        assert empty_layers(fleet, JOB, LAYERS, 5)(T) == pytest.approx(exponential(T, mean, 5), rel=1e-9, abs=1e-300)


def test_p_counts_every_device_its_losses_and_the_first_step_only() -> None:
    devices = [Device(flops=f, dropout=0.25, failure=0.5, pace=Loaded(4.0)) for f in (6.0, 6.0, 3.0)]
    twice = Work(WORK.flops * 2, WORK.backward * 2, WORK.starts * 2)
    q = np.array([[min(max((1 - unit / f / 3.0) / 0.75, 0.0), 1.0) for unit in range(7, 13)] for f in (6.0, 6.0, 3.0)])
    expected = np.prod(1 - 0.375 * q, axis=0)
    for work in (WORK, twice):
        found = empty_layers(Fleet(devices), JOB._replace(work=work), LAYERS)(3.0)
        assert found == pytest.approx(expected, rel=1e-12)
    drawn = empty_layers(Fleet(devices), JOB, LAYERS, 2)(3.0)
    assert drawn == pytest.approx((1 - 0.375 * q).mean(0) ** 2, rel=1e-12)
    exact = sum(np.prod(np.delete(1 - 0.375 * q, out, 0), axis=0) for out in range(3)) / 3
    assert (drawn >= exact - 1e-15).all()
    assert drawn == pytest.approx(exact, rel=0.02)


def test_a_hundred_devices_stand_for_all_of_a_large_fleet() -> None:
    """The chance that nobody reaches a layer is that of a thousand clients, not of the hundred that were looked at."""
    fleet = preset("exponential-layers", mean=1.0).build(1000, 1, LAYERS)
    for T in (0.05, 0.2):
        assert empty_layers(fleet, JOB, LAYERS)(T) == pytest.approx(exponential(T, users=1000), rel=1e-6, abs=1e-300)


def test_a_large_fleet_is_as_its_hundred() -> None:
    small, large = (preset("exponential-layers").build(n, 1, LAYERS) for n in (100, 250_000))
    assert empty_layers(large, JOB, LAYERS, 20)(2.0) == pytest.approx(empty_layers(small, JOB, LAYERS, 20)(2.0))


# ---------------------------------------------------------------------------------------------------- weights
@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=8), st.floats(0, 0.5))
def test_weights_are_the_products_of_the_bound(steps: list[float], rho: float) -> None:
    literal = [e**2 * math.prod(1 - rho * later for later in steps[t + 1 :]) for t, e in enumerate(steps)]
    assert round_weights(steps, rho) == pytest.approx(literal, rel=1e-12)


def test_weights_of_the_paper_s_decaying_steps_have_a_closed_form() -> None:
    rho, gamma, rounds = 0.3, 8 / 0.3, 40
    steps = [1 / (rho * (t + gamma - 1)) for t in range(1, rounds + 1)]
    closed = [1 / (rho**2 * (t + gamma - 1) * (rounds + gamma - 1)) for t in range(1, rounds + 1)]
    assert round_weights(steps, rho) == pytest.approx(closed, rel=1e-12)


# ---------------------------------------------------------------------------------------------------- the optimiser
@given(
    st.lists(st.integers(0, 20), min_size=3, max_size=7),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=4),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_sharing_out_is_brute_force(falls: list[int], weights: list[float], more: int) -> None:
    """All allocations of whole seconds: with a convex cost at whole seconds the best of them is the optimum."""
    cost = np.cumsum([0.0, *(-float(f) for f in sorted(falls, reverse=True))]) + 200.0
    seconds = np.arange(1.0, len(cost) + 1)
    budget = len(weights) + more
    best = min(
        sum(c * cost[int(T) - 1] for c, T in zip(weights, chosen, strict=True))
        for chosen in product(seconds, repeat=len(weights))
        if sum(chosen) <= budget
    )
    found = share_out(seconds, cost, np.array(weights), budget)
    assert found.sum() <= budget * (1 + 1e-12)
    got = sum(c * np.interp(T, seconds, cost) for c, T in zip(weights, found, strict=True))
    assert got == pytest.approx(best, rel=1e-12)


@given(st.lists(st.floats(0, 20), min_size=2, max_size=12), st.integers(1, 4), st.floats(0, 20))
def test_a_cost_that_is_not_convex_is_shared_out_on_its_hull(cost: list[float], rounds: int, more: float) -> None:
    seconds, table = np.arange(1.0, len(cost) + 1), np.array(cost)
    found = share_out(seconds, table, np.ones(rounds), rounds + more)
    assert (found >= 1).all()
    assert (found <= len(cost)).all()
    assert found.sum() <= (rounds + more) * (1 + 1e-12)
    between = (found % 1 > 1e-9) & (found % 1 < 1 - 1e-9)
    assert between.sum() <= 1  # at most one round ends within a segment of the hull


SCHEDULES = {
    "constant": [0.5] * 12,
    "of the theory": [1 / (0.3 * (t + 8 / 0.3 - 1)) for t in range(1, 13)],
    "of their code": [0.5 / (t + 1) for t in range(1, 13)],
}


@pytest.mark.parametrize("per_round", [1.5, 3.0, 4.0])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_deadlines_are_those_of_a_general_solver(schedule: str, per_round: float) -> None:
    weights, budget = round_weights(SCHEDULES[schedule]), 12 * per_round
    found = np.array(adel_deadlines(exponential, weights, budget))
    start = np.full(12, per_round)
    solved = minimize(
        objective, start, (weights,), "SLSQP", bounds=[(0.2, None)] * 12,
        constraints={"type": "ineq", "fun": lambda T: budget - T.sum()}, options={"maxiter": 300, "ftol": 1e-11},
    )  # fmt: skip
    assert objective(found, weights) <= solved.fun * (1 + 2e-5)
    assert found == pytest.approx(solved.x, rel=0.02)
    # The wrong variants: all rounds alike, in the opposite order, or half of the budget.
    for wrong in (start, found[::-1], found / 2):
        assert objective(wrong, weights) > objective(found, weights) * (1 + 1e-5)


def test_two_rounds_by_brute_force() -> None:
    weights = np.array([1.0, 4.0])
    found = adel_deadlines(exponential, weights, 5.0)
    first = min(np.linspace(0.3, 4.7, 20_001), key=lambda T: objective((T, 5.0 - T), weights))
    assert found == pytest.approx((first, 5.0 - first), rel=2e-3)


# ---------------------------------------------------------------------------------------------------- properties
def test_deadlines_follow_the_weights_and_use_the_budget() -> None:
    for schedule, direction in (("constant", 1), ("of the theory", -1), ("of their code", -1)):
        found = np.array(adel_deadlines(exponential, round_weights(SCHEDULES[schedule]), 48.0))
        assert found.sum() == pytest.approx(48.0, rel=1e-9)
        assert (direction * np.diff(found) > 0).all()  # their first results are called decaying deadlines
    assert adel_deadlines(exponential, np.ones(12), 48.0) == pytest.approx([4.0] * 12, rel=2e-3)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.floats(0.5, 10), st.floats(1.1, 4))
@settings(deadline=None, max_examples=25)
def test_more_time_is_never_worse_and_clocks_may_be_scaled(weights: list[float], per: float, more: float) -> None:
    c, budget = np.array(weights), per * len(weights)
    found = adel_deadlines(exponential, c, budget)
    assert sum(found) <= budget * (1 + 1e-9)
    assert objective(found, c) <= objective([per] * len(c), c) * (1 + 1e-6)
    assert objective(adel_deadlines(exponential, c, more * budget), c) <= objective(found, c) * (1 + 1e-6)
    scaled = adel_deadlines(lambda T: exponential(T, 8.0), c, 8.0 * budget)
    assert scaled == pytest.approx([8.0 * T for T in found], rel=1e-2)


def test_where_somebody_is_certain_rounds_are_as_short_as_that_allows() -> None:
    """The bound knows no more than whether anybody reaches a layer: the rest of the budget would bring nothing."""
    fleet = Fleet([Device(flops=4.0), *[Device(flops=0.1)] * 9])
    found = adel_deadlines(empty_layers(fleet, JOB, LAYERS), round_weights([0.5] * 4), 1000.0)
    assert found == pytest.approx([3.0] * 4, rel=0.03)
    assert all(T >= 3.0 for T in found)


def test_a_fleet_that_takes_no_time_needs_none() -> None:
    fleet = Fleet([Device(flops=math.inf)] * 3)
    assert sum(adel_deadlines(empty_layers(fleet, JOB, LAYERS), np.ones(5), 1.0)) < 1e-9


# ---------------------------------------------------------------------------------------------------- errors
def test_a_budget_that_is_too_small_is_refused_with_one_that_is_not() -> None:
    fleet = Fleet([Device(flops=4.0), Device(flops=1.0)])
    chances = empty_layers(fleet, JOB, LAYERS)
    with pytest.raises(FleetError, match=r"leaves 2.9 s for each of 10 rounds.*Give at least (\S+) s") as caught:
        adel_deadlines(chances, np.ones(10), 29.0)
    enough = enough_for(chances, np.ones(10))
    assert f"at least {enough:.3g} s" in str(caught.value)
    assert 30 <= enough < 32
    assert min(adel_deadlines(chances, np.ones(10), enough)) >= 3.0


def test_more_than_enough_is_enough() -> None:
    chances, weights = empty_layers(Fleet([Device(flops=4.0), Device(flops=1.0)]), JOB, LAYERS), np.ones(10)
    refused = []
    for budget in np.linspace(30.0, enough_for(chances, weights), 60):
        try:
            assert 30 <= sum(adel_deadlines(chances, weights, budget)) <= budget * (1 + 1e-9)
            refused.append(False)
        except FleetError:
            refused.append(True)
    assert refused == sorted(refused, reverse=True)
    assert not refused[-1]
    exact = empty_layers(Fleet([Device(flops=3.0)]), JOB, LAYERS)
    assert adel_deadlines(exact, weights, 40.0) == (4.0,) * 10  # 4 s are tried, and a finer table must keep them


def enough_for(chances: Any, weights: Floats) -> float:
    """What the error says is enough."""
    with pytest.raises(FleetError, match="Give at least") as caught:
        adel_deadlines(chances, weights, 1e-3)
    return float(str(caught.value).split("at least ")[1].split(" s")[0])


def test_a_fleet_that_never_answers_is_refused() -> None:
    for device in (Device(dropout=1.0), Device(failure=1.0, pace=ExponentialLayers(1.0))):
        with pytest.raises(FleetError, match="nobody in this fleet can ever be heard"):
            adel_deadlines(empty_layers(Fleet([device]), JOB, LAYERS), np.ones(3), 10.0)


@pytest.mark.parametrize("variant", ["no hull", "flattest first", "every round gets the same"])
def test_wrong_ways_to_share_out_are_noticed(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant == "no hull":
        monkeypatch.setattr(adel, "_right_of", lambda *_: False)
        with pytest.raises(AssertionError):
            steps_cost_is_shared_out()
        return
    order = {"flattest first": lambda s, c, w, b: share_out(s, c, 1 / w, b),
             "every round gets the same": lambda s, c, w, b: share_out(s, c, np.ones_like(w), b)}[variant]  # fmt: skip
    monkeypatch.setattr(adel, "share_out", order)
    with pytest.raises(AssertionError):
        test_deadlines_are_those_of_a_general_solver("of their code", 4.0)


def steps_cost_is_shared_out() -> None:
    """A cost that falls in one step at 10 s: two rounds of 10 s are worth it, and 4 s of another are not."""
    seconds = np.arange(1.0, 21.0)
    cost = np.where(seconds < 10, 100.0 - 0.1 * seconds, 6.0 - 0.1 * seconds)
    found = share_out(seconds, cost, np.ones(3), 24.0)
    assert sorted(np.round(found, 6)) == [1.0, 10.0, 13.0] or sorted(np.round(found, 6)) == [4.0, 10.0, 10.0]


def test_a_step_is_worth_its_whole_length() -> None:
    steps_cost_is_shared_out()
