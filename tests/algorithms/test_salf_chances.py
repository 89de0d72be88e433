"""Who reaches which layer on the clock, and with what probability: invariants 10 and 11 of the specification."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import gammaincc
from torch import nn

from algorithms.overheard import Round, alike, moved, overhear, shares
from lanterne.algorithms import Salf
from lanterne.fleet import Device, Draw, ExponentialLayers, Fleet, Job, Work, preset, reach
from lanterne.models import LayerStack
from lanterne.protocol import Pass, Request
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet

LAYERS = 3


# ---------------------------------------------------------------------------------------------------- 10
class Coins(Salf):
    """Wrong: each layer that was reached is sent or not by a coin of its own."""

    def train(self, task, state, inbox, local):
        state, sent = super().train(task, state, inbox, local)
        return state, sent | {"delta": sent["delta"] * by_block(task.stack, sent["delta"], local.key)}


class LastOnly(Salf):
    """Wrong: of the layers reached only the last, the one nearest the input, is sent."""

    def train(self, task, state, inbox, local):
        state, sent = super().train(task, state, inbox, local)
        kept = sent["delta"].clone()
        start = task.stack.size - len(kept)
        kept[next((e for e in task.stack.edges if e > start), start) - start :] = 0.0
        return state, sent | {"delta": kept}


def by_block(stack: LayerStack, delta: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """0 or 1 for each block that a delta covers, as bits of a key."""
    start = stack.size - len(delta)
    blocks = [(b, stack.edges[b + 1] - e) for b, e in enumerate(stack.edges[:-1]) if e >= start]
    bits = [((key >> (7 * b + 3)) & 1).to(delta.dtype).expand(size) for b, size in blocks]
    return torch.cat(bits) if bits else torch.ones_like(delta)


def contributors(heard: Round, stack: LayerStack) -> list[set[int]]:
    """`S_l`, of each layer: whose delta moves it."""
    return [{u for u, delta in deltas.items() if bool(delta.any())} for deltas in heard.deltas(stack)]


FLEETS: dict[str, tuple[Fleet, float]] = {
    "exponential layers": (preset("exponential-layers", mean=0.5).build(6, 3, LAYERS), 1.0),
    "uniform depth": (preset("uniform-depth", share=0.8, minimum=0).build(6, 4, LAYERS), 1.0),
    "uneven devices and links": (uneven_fleet(), 0.025),
    "some are lost": (preset("exponential-layers", mean=0.4, dropout=0.3).build(6, 5, LAYERS), 1.0),
}


@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize(("salf", "right"), [(Salf, True), (Coins, False), (LastOnly, False)])
def test_10_contributors_are_nested(name: str, salf: type[Salf], right: bool) -> None:
    problem, (fleet, deadline) = tiny_problem(), FLEETS[name]
    rounds, _ = overhear(lambda s: salf(stack=s, lr=0.3, deadline=deadline), problem, fleet, 8)
    found = [contributors(heard, problem.stack) for heard in rounds]
    nested = [all(a <= b for a, b in pairwise(sets)) for sets in found]
    assert all(nested) == right
    assert all(len(sets[-1]) == max(map(len, sets)) for sets in found) == right
    proper = [set() < a < b for sets in found for a, b in pairwise(sets)]
    assert any(proper) or not right


@pytest.mark.parametrize("name", ["exponential layers", "uniform depth"])
@pytest.mark.parametrize(("salf", "right"), [(Salf, True), (Coins, False), (LastOnly, False)])
def test_10_contributors_are_those_whom_the_clock_lets_through(name: str, salf: type[Salf], right: bool) -> None:
    """`S_l = {u : the backward of layer l ends by T}`, from the devices' own times, and no layer moves without one."""
    problem, (fleet, deadline) = tiny_problem(), FLEETS[name]
    rounds, simulator = overhear(lambda s: salf(stack=s, lr=0.3, deadline=deadline), problem, fleet, 8)
    work = simulator.pricing.work([Pass("forward", 0, LAYERS), Pass("backward", 0, LAYERS)])
    kept = []
    for t, heard in enumerate(rounds):
        times = {u: fleet.devices[u].finished(work, Draw(fleet.seed, u, t, t)) for u in range(6)}
        in_time = [{u for u in times if times[u][2 * LAYERS - 1 - b] <= deadline} for b in range(LAYERS)]
        kept.append(contributors(heard, problem.stack) == in_time)
        edges = problem.stack.edges
        for b, there in enumerate(in_time):
            block = slice(edges[b], edges[b + 1])
            assert there or torch.equal(heard.state.w[block], heard.w[block])
    assert all(kept) == right


# ---------------------------------------------------------------------------------------------------- 11
def chain(layers: int) -> LayerStack:
    """So many linear layers, of three parameters each way."""
    with torch.device("meta"):
        return LayerStack(nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers))), (3,))


def empty_chance(fleet: Fleet, layers: int, deadline: float, salf: type[Salf] = Salf) -> list[float]:
    """The p of a round, as the round itself found and used it."""
    problem, seen = tiny_problem(len(fleet), stack=chain(layers)), []

    class Told(salf):
        def _empty_chance(self, *about: Any) -> list[float]:
            seen.append(super()._empty_chance(*about))
            return seen[-1]

    make = lambda s: Told(stack=s, deadline=deadline, factor_cap=1e300)  # noqa: E731
    (heard,), _ = overhear(make, problem, fleet, 1)
    (p,) = seen
    uses = moved(problem.stack, heard, lambda b, u, there: shares(problem, there)[u] / (1 - p[b]))
    assert alike(heard.state.w, uses)
    return p


def alike_users(users: int, ratio: float) -> Fleet:
    """The fleet of section 2.4 with this T/m, for a deadline of 1."""
    return preset("exponential-layers", mean=1 / ratio).build(users, 1, LAYERS)


class OneUser(Salf):
    """Wrong: the chance that one of them does not come instead of all."""

    def _empty_chance(self, state: Any, cohort: Any, requests: Any) -> list[float]:
        return super()._empty_chance(state, cohort, requests[:1])


class Twice(Salf):
    """Wrong: the first is asked for everybody, and one too many."""

    def _empty_chance(self, state: Any, cohort: Any, requests: Any) -> list[float]:
        return super()._empty_chance(state, cohort, [requests[0], *requests])


@pytest.mark.parametrize(
    ("layers", "ratio", "q", "p"),
    [
        (3, 1.0, (0.080301, 0.264241, 0.632121), (8.116e-2, 1.005e-4, 9.4e-14)),
        (6, 3.0, (0.083918, 0.184737, 0.352768, 0.576810, 0.800852, 0.950213), (7.212e-2, 2.182e-3, 2.147e-6)),
        (
            8,
            4.0,
            (0.051134, 0.110674, 0.214870, 0.371163, 0.566530, 0.761897, 0.908422, 0.981684),
            (2.071e-1, 2.964e-2, 7.051e-4),
        ),
    ],
)
def test_11_fixtures_of_section_2_4(layers: int, ratio: float, q: tuple[float, ...], p: tuple[float, ...]) -> None:
    """q from the clock model of a device, p of thirty of them from a round."""
    work = Work((1.0,) * (2 * layers), (False,) * layers + (True,) * layers, (True,) + (False,) * (2 * layers - 1))
    job = Job(0, work, lambda _: 0, deadline=2.0 * ratio)
    found = reach(Device(pace=ExponentialLayers(2.0)), job)[layers:][::-1].tolist()
    assert found == pytest.approx(q, abs=6e-7)
    found = empty_chance(alike_users(30, ratio), layers, 1.0)
    assert found[: len(p)] == pytest.approx(p, rel=6e-4, abs=5e-15)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_11_p_falls_with_every_user(ratio: float) -> None:
    """`p_l = Q(L + 1 - l, T/m)^U`, of the round itself."""
    law = [float(gammaincc(LAYERS - b, ratio)) for b in range(LAYERS)]
    p = {users: empty_chance(alike_users(users, ratio), LAYERS, 1.0) for users in (1, 7, 8)}
    for users, found in p.items():
        assert found == pytest.approx([x**users for x in law], rel=1e-9)
    assert all(a > b > c for a, b, c in zip(*(p[users] for users in (1, 7, 8)), strict=True))
    assert all(found == sorted(found, reverse=True) for found in p.values())
    for wrong in (OneUser, Twice):
        found = empty_chance(alike_users(7, ratio), LAYERS, 1.0, wrong)
        assert found != pytest.approx([x**7 for x in law], rel=1e-3)


def test_11_unlike_users_count_with_their_own_chances() -> None:
    means = (0.2, 0.5, 1.0, 1.0, 3.0, 9.0)
    found = empty_chance(Fleet([Device(pace=ExponentialLayers(m)) for m in means]), LAYERS, 1.0)
    law = [np.prod([gammaincc(LAYERS - b, 1 / m) for m in means]) for b in range(LAYERS)]
    assert found == pytest.approx(law, rel=1e-9)


def test_11_p_falls_with_the_deadline_and_vanishes() -> None:
    fleet, before = preset("exponential-layers").build(7, 1, LAYERS), [1.0] * LAYERS
    for deadline in (0.1, 1.0, 4.0, 20.0):
        found = empty_chance(fleet, LAYERS, deadline)
        assert all(now < then for now, then in zip(found, before, strict=True))
        before = found
    assert 0.0 <= max(empty_chance(fleet, LAYERS, 80.0)) < 1e-100


def test_11_deadline_zero_changes_nothing() -> None:
    problem = tiny_problem()
    found, simulator = simulate(lambda s: Salf(stack=s, lr=0.3, deadline=1e-9), problem, uneven_fleet(), 3)
    assert torch.equal(found, problem.w)
    assert all(r["units"] == 0 for r in simulator.timeline)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mean", [0.5, 2.0])
def test_p_and_q_of_the_clock_belong_to_their_layers(steps: int, mean: float) -> None:
    """Of layer l the clock's q is P[Poisson(T/m) >= L + 1 - l] in the first local step, p the product over users."""
    problem, deadline = tiny_problem(), 1.0
    fleet = preset("exponential-layers", mean=mean).build(6, 1, LAYERS)
    seen: list[tuple[list[float], list[float]]] = []

    class Told(Salf):
        def round(self, state, cohort):
            passes = [Pass("forward", 0, LAYERS), Pass("backward", 0, LAYERS)] * steps
            requests = [
                Request(c, "train", {"w": state.w}, batches=range(steps), passes=passes, deadline=deadline)
                for c in cohort.clients
            ]
            seen.append((self._empty_chance(state, cohort, requests), self._clock(cohort, requests[2])))
            return (yield from super().round(state, cohort))

    simulate(lambda s: Told(stack=s, deadline=deadline, local_steps=steps), problem, fleet, 1)
    (p, q), law_q = seen[0], [1 - gammaincc(LAYERS - b, deadline / mean) for b in range(LAYERS)]
    assert q == pytest.approx(law_q, rel=1e-9)
    assert p == pytest.approx([(1 - x) ** 6 for x in law_q], rel=1e-9)
    assert p[0] > 1.5 * p[-1]  # the other way round would be noticed


def test_empirical_p_is_the_smoothed_share_of_empty_rounds() -> None:
    problem: Problem = tiny_problem()
    salf = Salf(stack=problem.stack, p="empirical", deadline=1.0)
    state = replace(salf.init(problem.w), round=8, empty=(4, 2, 0))
    assert salf._empty_chance(state, None, []) == [0.5, 0.3, 0.1]  # type: ignore[arg-type]
