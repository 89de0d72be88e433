"""Who can be reached, found by arrays, is who would be found one by one; and it makes no difference to a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lanterne.fleet import Classes, Device, Fleet, Windows
from lanterne.runtime import Simulator
from lanterne.runtime.cohort import sample
from lanterne.testing import simulate, tiny_problem, uneven_fleet
from runtime.laboratory import METHODS

WINDOWS = [((0.0, 0.4),), ((0.1, 0.3), (0.35, 0.7)), ()]


def fleets(**changes: Any) -> dict[str, Fleet]:
    """The same devices one by one, and in columns."""
    plain = uneven_fleet(6, dropout=0.2, period=0.7, **changes)
    listed = [replace(d, available=WINDOWS[c % 3]) for c, d in enumerate(plain.devices)]
    columns = {name: np.array([getattr(d, name) for d in listed]) for name in ("flops", "down", "up", "latency")}
    flat = np.array([pair for own in WINDOWS for pair in own])
    windows = Windows(flat[:, 0], flat[:, 1], np.array([0, 1, 3, 3]), np.full(3, 0.7))
    lazy = Classes(np.zeros(6, dtype=np.uint8), [Device(dropout=0.2, **changes)], columns, windows)
    return {"listed": replace(plain, devices=listed, rejoin=0.3), "lazy": replace(plain, devices=lazy, rejoin=0.3)}


def reachable(simulator: Simulator) -> list[int]:
    """One by one."""
    clock, devices = simulator.clock, simulator.fleet.devices
    return [c for c in range(len(devices)) if clock.away.get(c, 0.0) <= clock.now and devices[c].online(clock.now)]


class Observed:
    """An algorithm whose rounds begin with a look at who can be reached."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm, self.seen = algorithm, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def round(self, state: Any, cohort: Any) -> Any:
        found = cohort.clients
        assert isinstance(found, Sequence)
        assert all(type(c) is int for c in found)
        self.seen.append((list(found), reachable(cohort._simulator)))
        return self.algorithm.round(state, cohort)


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "salf"])
def test_a_run_is_the_same_whatever_holds_the_devices(name: str) -> None:
    runs = {}
    for kind, fleet in fleets().items():
        made: list[Observed] = []
        make = lambda stack, made=made: made.append(Observed(METHODS[name](stack))) or made[-1]  # noqa: E731
        w, simulator = simulate(make, tiny_problem(), fleet, 12)
        assert all(found == one_by_one for found, one_by_one in made[-1].seen)
        runs[kind] = (w, simulator.timeline, simulator.now, made[-1].seen)
    assert torch.equal(runs["listed"][0], runs["lazy"][0])
    assert runs["listed"][1:] == runs["lazy"][1:]
    sizes = {len(found) for found, _ in runs["lazy"][3]}
    assert len(sizes) > 1  # some were away, in some rounds


def test_time_passes_until_the_first_of_those_who_are_away_is_back() -> None:
    for fleet in fleets().values():
        _, simulator = simulate(METHODS["fedavg"], tiny_problem(), fleet, 1)
        clock = simulator.clock
        clock.now, clock.away = 0.75, {0: 0.8, 3: 0.81}  # in the second period; 1 and 4 come at 0.8, 2 and 5 never
        assert list(clock.reachable()) == []
        clock.wait_for_somebody()
        assert clock.now == pytest.approx(0.8)
        assert 0 in clock.reachable()
        clock.now, clock.away = (
            1.3,
            {1: 1.35, 4: 1.5},
        )  # 1 and 4 are there by their times, but lost; 0 and 3 come at 1.4
        clock.wait_for_somebody()
        assert clock.now == 1.35
        assert list(clock.reachable()) == [1]


def test_a_sample_of_many_costs_what_is_sampled() -> None:
    """Eight bytes for each of those who can be reached, and numbers as they are in a list."""
    there = np.arange(0, 1_000_000, 2).data
    assert sys.getsizeof(there) < 1000
    assert there.nbytes == 4_000_000
    chosen = sample(there, 100, 5)
    assert all(type(c) is int for c in chosen)
    assert chosen == sample(there.tolist(), 100, 5)
    assert sample(there[:3], None, 0) == (0, 2, 4)
