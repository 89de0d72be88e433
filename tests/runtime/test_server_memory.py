"""The server's memory: what it holds at a moment is a closed form, and a fleet that does not have it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from lanterne.algorithms import CSEFSL, PSL, FedAvg, SplitFedV1, SplitFedV2
from lanterne.errors import FleetError
from lanterne.experiment import Objects, parse_config, prepare
from lanterne.fleet import Device, Fleet, Server
from lanterne.runtime import Loop, Simulator, restore, snapshot
from lanterne.runtime.server_memory import ServerMemory
from lanterne.testing import simulate, tiny_problem, uneven_fleet

CLIENTS, AT, BATCH, PLENTY = 4, 1, 4, 1e12
DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002)


def memory_of(make: Callable[..., Any], server: Server, rounds: int = 1, **options: Any) -> tuple[ServerMemory, Any]:
    problem = tiny_problem(CLIENTS)
    fleet = Fleet([DEVICE] * CLIENTS, server=server)
    _, simulator = simulate(lambda s: make(stack=s, cut=AT, lr=0.1, **options), problem, fleet, rounds)
    assert simulator.clock.memory is not None
    return simulator.clock.memory, simulator


class Sizes:
    """Of the tiny problem's upper half in bytes: its weights, what a pass over a batch takes, what a client sends."""

    def __init__(self, simulator: Simulator) -> None:
        problem = tiny_problem(CLIENTS)
        costs = simulator.pricing.costs()
        self.half = 8 * (problem.stack.size - problem.stack.edges[AT])
        outputs = [0, *(c.output for c in costs[AT:])]
        self.working = BATCH * max(sum(c.saved for c in costs[AT:]), *map(sum, pairwise(outputs)))
        self.sent = BATCH * (costs[AT - 1].output + 8)
        # As on a device: its state, the weights of the blocks that it touches, and their gradients.
        self.at_work = 3 * self.half + self.working + self.sent


@pytest.mark.parametrize(("momentum", "copies"), [(0.0, 0), (0.5, 1)])
def test_psl_holds_one_half_and_the_activations_of_everybody(momentum: float, copies: int) -> None:
    memory, simulator = memory_of(PSL, Server(1e5, memory=PLENTY), momentum=momentum)
    s = Sizes(simulator)
    assert memory.peak == (3 + copies) * s.half + CLIENTS * (s.working + s.sent)
    assert memory.held == (1 + copies) * s.half


def test_v1_holds_a_half_for_each_client_and_the_activations_of_those_at_work() -> None:
    """One machine a replica: everybody at once. With c machines: c at work, the others wait, or keep what they have."""
    memory, simulator = memory_of(SplitFedV1, Server(1e5, memory=PLENTY))
    s = Sizes(simulator)
    assert memory.peak == CLIENTS * s.at_work
    for machines in (1, 2, 3):
        memory, _ = memory_of(SplitFedV1, Server(1e5, machines, PLENTY))
        # When a machine begins with a client, so many have been served, and the rest wait.
        turns = [min(machines, CLIENTS - done) for done in range(0, CLIENTS, machines)]
        moments = []
        for turn, working in enumerate(turns):
            done = turn * machines
            moments.append(done * s.half + working * s.at_work + (CLIENTS - done - working) * s.sent)
            moments.append(done * s.half + s.at_work + (CLIENTS - done - 1) * s.sent)
        assert memory.peak >= max(moments)
        assert memory.peak <= CLIENTS * s.at_work
        if machines == 1:
            assert memory.peak == max(moments)
        assert memory.held == CLIENTS * s.half


def test_pooled_activations_are_as_many_as_those_of_replicas_but_halves_are_one() -> None:
    pooled, simulator = memory_of(PSL, Server(1e5, memory=PLENTY))
    apart, _ = memory_of(SplitFedV1, Server(1e5, memory=PLENTY))
    assert apart.peak - pooled.peak == 3 * (CLIENTS - 1) * Sizes(simulator).half


@pytest.mark.parametrize("make", [SplitFedV2, CSEFSL])
def test_smashed_data_that_wait_for_their_turn_are_held(make: Any) -> None:
    """A slow server with one half: everybody else's smashed data are there before it has served the first."""
    memory, simulator = memory_of(make, Server(1e2, memory=PLENTY))
    s = Sizes(simulator)
    assert memory.peak == s.at_work + (CLIENTS - 1) * s.sent
    assert memory.held == s.half


def test_there_is_exactly_enough_or_a_byte_too_little() -> None:
    for make in (PSL, SplitFedV1, SplitFedV2):
        memory, _ = memory_of(make, Server(1e5, 2, PLENTY))
        enough, _ = memory_of(make, Server(1e5, 2, memory.peak))
        assert enough.peak == memory.peak
        with pytest.raises(FleetError, match=rf"has {memory.peak - 1} bytes of memory, but 'serve.* to {memory.peak}:"):
            memory_of(make, Server(1e5, 2, memory.peak - 1))


def test_methods_without_a_servers_half_need_none() -> None:
    problem = tiny_problem(CLIENTS)
    fleet = Fleet([DEVICE] * CLIENTS, server=Server(memory=1.0))
    w, _ = simulate(lambda s: FedAvg(stack=s, lr=0.1), problem, fleet, 1)
    assert not torch.equal(w, problem.w)


def test_it_changes_nothing_but_what_is_refused() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    bounded = replace(fleet, server=Server(memory=PLENTY))
    for make in (PSL, SplitFedV1, SplitFedV2, CSEFSL):
        (a, one), (b, other) = (
            simulate(lambda s, m=make: m(stack=s, lr=0.1, cut=AT), problem, f, 3) for f in (fleet, bounded)
        )
        assert torch.equal(a, b)
        assert one.timeline == other.timeline
        assert one.ledger == other.ledger


def test_a_cancelled_replica_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a deadline that cuts the round off while replicas work, nothing of their passes stays, at once."""
    monkeypatch.setattr(ServerMemory, "between_rounds", lambda *_: None)
    problem = tiny_problem(CLIENTS)
    fleet = Fleet([DEVICE] * CLIENTS, server=Server(5e2, memory=PLENTY))
    _, simulator = simulate(lambda s: SplitFedV1(stack=s, cut=AT, lr=0.1, round_deadline=0.5), problem, fleet, 1)
    ends = [r["client"] for r in simulator.timeline if r["outcome"] == "cancelled"]
    assert any(str(client).startswith("server") for client in ends)
    memory = simulator.clock.memory
    assert memory is not None
    assert memory.passes == {}


def test_a_restored_simulator_holds_as_much() -> None:
    problem, found = tiny_problem(CLIENTS), []
    fleet = Fleet([DEVICE] * CLIENTS, server=Server(1e4, 2, PLENTY))
    algorithm = SplitFedV1(stack=problem.stack, cut=AT, lr=0.1, momentum=0.5, keep_optimiser=True)

    def fresh() -> Simulator:
        executor = Loop(problem.task, problem.data.x, problem.data.y)
        return Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)

    simulator = fresh()
    state = simulator.round(algorithm, algorithm.init(problem.w))
    other = fresh()
    restore(other, snapshot(simulator))
    for each in (simulator, other):
        memory = each.clock.memory
        assert memory is not None
        memory.peak = 0
        before = memory.held
        each.round(algorithm, state)
        found.append((before, memory.peak, memory.held))
    assert found[0] == found[1]
    assert found[0][0] == 2 * CLIENTS * Sizes(simulator).half


# -------------------------------------------------------------------------------------------------- before the run
def ready(memory: float, *labels: str, **changes: Any) -> Any:
    mapping = {
        "algorithms": list(labels),
        "data": {"clients": 4, "batch": 8, "partition": "iid"},
        "model": {"name": "mlp:widths=32-16"},
        "fleet": {"kind": "uniform", "server_memory": memory, "server_flops": 1e9},
    }
    return prepare(parse_config({**mapping, **changes}), Objects())


def test_a_round_is_rehearsed_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method that does not fit is named, nothing has been computed, and the others are not to blame."""
    monkeypatch.setattr(Loop, "run", lambda *_: pytest.fail("numbers were computed"))
    assert ready(1e9, "psl", "splitfed_v1", "cse_fsl")
    with pytest.raises(FleetError, match=r"^splitfed_v1: The server has 20000 bytes .*'serve' in round 1 .*server_mem"):
        ready(20000, "fedavg", "psl", "splitfed_v1")
    assert ready(20000, "fedavg", "psl")
