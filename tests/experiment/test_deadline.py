"""The deadline of an experiment: over the whole fleet, however large, and whoever happens to be there at the start."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lanterne.algorithms import Drop, FedAvg, Salf
from lanterne.data import Streams
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment import parse_config
from lanterne.experiment.deadline import resolve_deadline
from lanterne.fleet import Device, Fleet, Loaded, preset
from lanterne.learn import Task
from lanterne.models import LayerStack, block_costs, initial_weights
from lanterne.models.zoo import build
from lanterne.protocol import All, Pass, Request, exchange
from lanterne.runtime import Loop, Simulator
from lanterne.runtime.cohort import SimulatedCohort

MANY = 1500
STACK: LayerStack = build("salf-mlp", (1, 8, 8), 10)
W = initial_weights(STACK, 0, torch.float64)


def resolved(asked: float | str | None, fleet: Fleet, **algorithms: Any) -> float:
    training = {} if asked is None else {"deadline": asked}
    config = parse_config({"algorithms": ["drop"], "training": training})
    streams = Streams([np.arange(8)] * len(fleet), 8, 0)
    return resolve_deadline(config, algorithms or {"drop": Drop(stack=STACK)}, STACK, fleet, streams, W)


def seconds_of(fleet: Fleet, algorithm: Any) -> np.ndarray[Any, Any]:
    """Expected seconds of every client, as an algorithm itself would be told them."""
    streams = Streams([np.arange(8)] * len(fleet), 8, 0)
    executor = Loop(Task(STACK), torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64))
    cohort = SimulatedCohort(Simulator(algorithm, fleet, executor, streams, dtype=torch.float64))
    effect = next(algorithm.round(algorithm.init(W), cohort))
    executor.close()
    return np.array([cohort.seconds(request) for request in effect.requests])


def ascending(clients: int) -> Fleet:
    """A fleet in which each client is slower than the one before it."""
    return Fleet([Device(flops=1e9 / (1 + c), up=1e6, latency=0.01) for c in range(clients)])


class Asked(Salf):
    """SALF that keeps a record of how many clients it could ask, once for each time that it is asked itself."""

    record: ClassVar[list[int]] = []

    def round(self, state: Any, cohort: Any) -> Any:
        self.record.append(len(cohort.clients))
        return super().round(state, cohort)


class OfficeOnly(FedAvg):
    """FedAvg that invites the devices of one class."""

    def round(self, state: Any, cohort: Any) -> Any:
        n = len(self.stack)
        passes = [Pass("forward", 0, n), Pass("backward", 0, n)]
        clients = [c for c in cohort.clients if cohort.facts(c).tier == "office"]
        requests = [Request(c, "train", {"w": state.w}, batches=range(1), passes=passes) for c in clients]
        if requests:
            yield from exchange(requests, All())
        return state


def test_the_quantile_is_over_every_client_of_a_big_fleet() -> None:
    fleet = ascending(MANY)
    times = seconds_of(fleet, Drop(stack=STACK))
    assert len(times) == MANY
    assert resolved("q0.9", fleet) == np.quantile(times, 0.9, method="higher")
    # The wrong variant: the first thousand stand for all.
    assert resolved("q0.9", fleet) != np.quantile(times[:1000], 0.9, method="higher")


def test_a_method_may_ask_clients_beyond_the_first_thousand() -> None:
    """Cut to its first thousand devices, this fleet would have nobody whom the method asks."""
    office = Device(flops=9e8, up=1e6, latency=0.01, tier="office")
    fleet = Fleet([Device(flops=1e9, up=1e6, latency=0.01)] * 1200 + [office] * 3)
    times = seconds_of(fleet, Drop(stack=STACK))
    assert resolved(None, fleet, office=OfficeOnly(stack=STACK)) == times.max() == times[-1] > times[0]
    with pytest.raises(ConfigError, match="asks nobody"):
        resolved(None, Fleet(fleet.devices[:1200]), office=OfficeOnly(stack=STACK))


@pytest.mark.parametrize("method", [Drop, Salf])
def test_somebody_beyond_the_first_thousand_may_be_the_only_one_in_time(method: Any) -> None:
    slow, fast = Device(flops=1e3), Device(flops=1e9)
    fleet = Fleet([slow] * 1200 + [fast])
    assert resolved(0.01, fleet, one=method(stack=STACK)) == 0.01
    with pytest.raises(FleetError, match=r"by the deadline of 0\.01 s, so 'one' would never learn"):
        resolved(0.01, Fleet([slow] * 1200), one=method(stack=STACK))


@pytest.mark.parametrize("asked", [None, 0.5, "q0.5", math.inf])
def test_each_method_is_asked_once_and_sees_the_whole_fleet(asked: float | str | None) -> None:
    Asked.record.clear()
    resolved(asked, preset("stragglers").build(MANY, 1, len(STACK)), one=Asked(stack=STACK), other=FedAvg(stack=STACK))
    assert Asked.record == [MANY]


@pytest.mark.parametrize("asked", [None, "q0.9"])
@pytest.mark.parametrize("clients", [10, MANY])
def test_who_is_away_at_the_start_does_not_matter(clients: int, asked: str | None) -> None:
    fleet = ascending(clients)
    away = replace(fleet, devices=[replace(d, available=((5.0, 10.0),), period=10.0) for d in fleet.devices])
    assert resolved(asked, away, one=Salf(stack=STACK)) == resolved(asked, fleet, one=Salf(stack=STACK))


def test_clients_that_share_a_device_count_as_many() -> None:
    """The wrong variant takes the quantile over kinds: two kinds, and the slow one would be the median."""
    slow, fast = Device(flops=1e7), Device(flops=1e9)
    times = seconds_of(Fleet([slow, fast]), Drop(stack=STACK))
    assert resolved("q0.5", Fleet([slow] + [fast] * 9)) == times[1] < times[0]
    assert resolved("q0.5", Fleet([slow] * 9 + [fast])) == times[0]


def test_a_pace_counts_at_its_mean_and_a_stragglers_does_not_count_beside_others() -> None:
    plain, loaded = Device(flops=1e8), Device(flops=1e8, pace=Loaded(10.0))
    steady, mean = seconds_of(Fleet([plain, loaded]), Drop(stack=STACK))
    assert mean > 2 * steady
    waits = FedAvg(stack=STACK)
    straggler = replace(loaded, tier="straggler")
    assert resolved(None, Fleet([plain, straggler]), fedavg=waits) == steady
    assert resolved(None, Fleet([straggler] * 3), fedavg=waits) == mean
    assert resolved(None, Fleet([loaded] * 3), fedavg=waits) == mean


def test_whose_requests_carry_the_deadline_has_to_reach_a_layer_only() -> None:
    """SALF's clients are cut off and send what they have; whoever is dropped has to finish."""
    fleet = Fleet([Device(flops=1e8)] * 3)
    whole = float(seconds_of(fleet, Drop(stack=STACK))[0])
    assert resolved(0.8 * whole, fleet, salf=Salf(stack=STACK)) == 0.8 * whole
    assert resolved(None, fleet, salf=Salf(stack=STACK, deadline=0.8 * whole)) > whole * (1 - 1e-9)
    for method in (Drop(stack=STACK), Drop(stack=STACK, deadline=0.8 * whole)):
        with pytest.raises(FleetError, match="Nobody finishes its work"):
            resolved(0.8 * whole, fleet, drop=method)
    with pytest.raises(FleetError, match="Nobody reaches a single layer"):
        resolved(0.01 * whole, fleet, salf=Salf(stack=STACK))


def test_where_everybody_straggles_it_is_what_the_slowest_needs_on_average() -> None:
    """The full speed of a varying straggler is never reached, so such a deadline would be met by nobody."""
    fleet = preset("stragglers", share=1.0).build(12, 0, len(STACK))
    expected = max(float(seconds_of(fleet, make(stack=STACK)).max()) for make in (Drop, Salf))
    assert resolved(None, fleet, drop=Drop(stack=STACK), salf=Salf(stack=STACK)) == pytest.approx(expected, rel=1e-9)


def test_a_fleet_in_which_nobody_has_the_memory_is_refused_before_the_run() -> None:
    waits = FedAvg(stack=STACK)
    need = 2 * STACK.size * 8 + 8 * sum(c.saved for c in block_costs(STACK, torch.float64))
    enough = Fleet([Device(memory=100.0), Device(memory=float(need))])
    assert resolved(None, enough, fedavg=waits) > 0
    little = Fleet([Device(memory=100.0), Device(memory=need - 1.0)])
    with pytest.raises(
        FleetError, match=rf"No device has the memory for 'fedavg': its first request needs {need} bytes"
    ):
        resolved(None, little, fedavg=waits)
    with pytest.raises(FleetError, match=rf"needs {need + 8 * STACK.size} bytes"):
        resolved(None, enough, fedavg=replace(waits, momentum=0.5))
