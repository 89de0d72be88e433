"""How many are invited: a knob that every method has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from algorithms.overheard import overhear
from lanterne.algorithms import Drop, FedAvg, FedBuff, FedNova, FedOpt, FedProx, Salf, Scaffold
from lanterne.testing import simulate, tiny_problem, uneven_fleet

INVITING: dict[str, Callable[..., Any]] = {
    "fedavg": lambda s, **o: FedAvg(stack=s, lr=0.3, **o),
    "drop": lambda s, **o: Drop(stack=s, lr=0.3, deadline=0.04, **o),
    "drop, code": lambda s, **o: Drop(stack=s, lr=0.3, deadline=0.04, rule="code", **o),
    "fedprox": lambda s, **o: FedProx(stack=s, lr=0.3, local_steps=2, mu=0.1, **o),
    "fednova": lambda s, **o: FedNova(stack=s, lr=0.3, samples_per_step=4.0, **o),
    "scaffold": lambda s, **o: Scaffold(stack=s, lr=0.3, local_steps=2, **o),
    "fedopt": lambda s, **o: FedOpt(stack=s, lr=0.3, server="momentum", **o),
    "salf": lambda s, **o: Salf(stack=s, lr=0.3, deadline=0.03, **o),
    "salf, code": lambda s, **o: Salf(stack=s, lr=0.3, deadline=0.03, rule="code", **o),
    "salf, ht": lambda s, **o: Salf(stack=s, lr=0.3, deadline=0.03, rule="ht", **o),
}


@pytest.mark.parametrize("cohort", [1, 2, 5])
def test_so_many_are_invited_and_the_same_by_every_method(cohort: int) -> None:
    problem, fleet, invited = tiny_problem(), uneven_fleet(), {}
    for name, make in INVITING.items():
        rounds, simulator = overhear(lambda s, m=make: m(s, cohort=cohort), problem, fleet, 12, seed=3)
        invited[name] = [h.invited for h in rounds]
        assert all(len(set(them)) == len(them) == cohort for them in invited[name])
        assert len({tuple(them) for them in invited[name]}) > 1  # drawn anew each round
        assert {c for them in invited[name] for c in them} == set(range(6))  # nobody is left out for good
        assert len(simulator.timeline) == 12 * cohort
    assert all(them == invited["fedavg"] for them in invited.values())


@pytest.mark.parametrize("name", INVITING)
def test_all_are_invited_by_default(name: str) -> None:
    for options in ({}, {"cohort": None}, {"cohort": 6}, {"cohort": 100}):
        rounds, _ = overhear(lambda s, o=options: INVITING[name](s, **o), tiny_problem(), uneven_fleet(), 3)
        assert [h.invited for h in rounds] == [list(range(6))] * 3


@pytest.mark.parametrize("name", ["fedavg", "drop", "fedprox", "fednova", "scaffold", "fedopt", "salf"])
def test_the_round_is_that_of_the_invited_alone(name: str) -> None:
    problem, fleet, make = tiny_problem(), uneven_fleet(), INVITING[name]
    rounds, _ = overhear(lambda s: make(s, cohort=2), problem, fleet, 1, seed=3)
    gone = [d if c in rounds[0].invited else replace(d, dropout=1.0) for c, d in enumerate(fleet.devices)]
    alone, _ = simulate(lambda s: make(s), problem, replace(fleet, devices=gone), 1)
    everybody, _ = simulate(lambda s: make(s), problem, fleet, 1)
    assert torch.equal(rounds[0].state.w, alone)
    assert not torch.equal(alone, everybody)


@pytest.mark.parametrize("cohort", [1, 2, 4, 6, None])
def test_fedbuff_keeps_so_many_at_work(cohort: int | None) -> None:
    _, simulator = simulate(lambda s: FedBuff(stack=s, buffer=2, cohort=cohort), tiny_problem(), uneven_fleet(), 25)
    times = [(r["sent"], r["arrived"]) for r in [*simulator.timeline, *simulator.clock.under_way()]]
    last = max(r["arrived"] for r in simulator.timeline)
    at_work = [sum(sent <= t < arrived for sent, arrived in times) for t, _ in times if t < last]
    assert set(at_work) == {6 if cohort is None else cohort}
    assert {r["client"] for r in simulator.timeline} == set(range(6))
