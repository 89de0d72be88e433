"""What split methods cost and when they end, by the numbers of section 9 of the specification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch

from lanterne.algorithms import PSL, SequentialSL, SplitFedV1, SplitFedV2
from lanterne.fleet import Device, Fleet, Server
from lanterne.runtime import Simulator
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet

CLIENTS, STEPS, AT, BATCH = 4, 2, 1, 4
DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002, overhead=0.003)
SERVER = Server(flops=1e5)
#: Methods whose server replies to each client by itself.
METHODS: dict[str, Any] = {"sl": SequentialSL, "psl": PSL, "splitfed_v1": SplitFedV1, "splitfed_v2": SplitFedV2}


class Prices:
    """Seconds and bytes of one batch of the tiny problem, from its blocks alone."""

    def __init__(
        self, problem: Problem, simulator: Simulator, device: Device = DEVICE, server: Server = SERVER
    ) -> None:
        costs = simulator.pricing.costs()
        lower, upper = costs[:AT], costs[AT:]
        self.smashed = BATCH * lower[-1].output
        self.labels = BATCH * 8
        self.half = 8 * problem.stack.edges[AT]
        latency, size = device.latency, problem.batch
        self.take = latency + self.half / device.down
        self.forward = device.overhead + sum(c.forward for c in lower) * size / device.flops
        self.up = latency + (self.smashed + self.labels) / device.up
        back = [c.weight_gradient for c in lower] + [c.input_gradient for c in lower[1:]]
        self.down = latency + self.smashed / device.down
        self.backward = sum(back) * size / device.flops
        through = sum(c.forward + c.weight_gradient + c.input_gradient for c in upper)
        self.serve = through * size / server.flops
        self.hand_in = latency + self.half / device.up


def once(name: str, fleet: Fleet, steps: int = STEPS, **options: Any) -> tuple[torch.Tensor, Simulator, Problem]:
    problem = tiny_problem(len(fleet))
    found = simulate(lambda s: METHODS[name](stack=s, cut=AT, lr=0.1, local_steps=steps, **options), problem, fleet, 1)
    return *found, problem


def test_19_constant_speeds_give_closed_forms() -> None:
    """Sections 2.7 and 4: sums for sequential split learning, maxima for the parallel ones, a queue for V2."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    for name in METHODS:
        _, simulator, problem = once(name, fleet)
        p = Prices(problem, simulator)
        batch = p.forward + p.up + p.serve + p.down + p.backward
        if name == "sl":
            # A visit's first message brings the half; what follows needs none.
            expected = CLIENTS * (p.take + STEPS * batch + p.hand_in)
        elif name == "psl":
            expected = p.take + STEPS * (batch + (CLIENTS - 1) * p.serve)
        elif name == "splitfed_v1":
            expected = p.take + STEPS * batch + p.hand_in
        else:
            ends = [queue(p, orders) for orders in product(permutations(range(CLIENTS)), repeat=STEPS)]
            assert min(abs(simulator.now / end - 1) for end in ends) < 1e-12
            assert max(ends) > min(ends) * (1 + 1e-6)
            continue
        assert simulator.now == pytest.approx(expected, rel=1e-12), name


def queue(p: Prices, orders: Iterable[Sequence[int]]) -> float:
    """When a round of V2 ends whose server serves one client after the other, batch by batch in these orders."""
    ready, free, served = dict.fromkeys(range(CLIENTS), p.take + p.forward + p.up), 0.0, 0.0
    for order in orders:
        for client in order:
            free = served = max(free, ready[client]) + p.serve
            ready[client] = served + p.down + p.backward + p.forward + p.up
    return max(ready.values()) - p.forward - p.up + p.hand_in


@pytest.mark.parametrize("name", ["psl", "splitfed_v1"])
def test_19_one_slow_client_sets_the_pace(name: str) -> None:
    """k times slower at computing: a synchronous round is longer by just what its own computation is."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    slow = replace(fleet, devices=[replace(DEVICE, flops=DEVICE.flops / 7), *fleet.devices[1:]])
    _, before, problem = once(name, fleet)
    _, after, _ = once(name, slow)
    p = Prices(problem, before)
    assert after.now - before.now == pytest.approx(6 * STEPS * (p.forward - DEVICE.overhead + p.backward), rel=1e-9)


def test_19_replicas_may_share_a_machine() -> None:
    """V1's server is as many machines as the fleet says: with one, the last client of a batch waits for all others."""
    free = Fleet([DEVICE] * CLIENTS, server=SERVER)
    times = []
    for machines in (None, 2, 1):
        _, simulator, problem = once("splitfed_v1", replace(free, server=replace(SERVER, machines=machines)), 1)
        times.append(simulator.now)
    p = Prices(problem, simulator)
    assert times[1] - times[0] == pytest.approx(p.serve, rel=1e-9)
    assert times[2] - times[0] == pytest.approx(3 * p.serve, rel=1e-9)


@pytest.mark.parametrize("name", ["psl", "splitfed_v2"])
def test_20_a_quorum_of_all_and_no_deadline_is_the_synchronous_mode(name: str) -> None:
    fleet = uneven_fleet()
    w, plain, _ = once(name, fleet)
    same, other, _ = once(name, fleet, quorum=6)
    late, third, _ = once(name, fleet, cut_deadline=1e6)
    assert torch.equal(w, same)
    assert torch.equal(w, late)
    if name == "psl":  # V2 without a rule serves the first in its order before the last has arrived
        assert plain.now == other.now == third.now


@pytest.mark.parametrize(("name", "rule"), [("psl", "cut_deadline"), ("splitfed_v1", "round_deadline")])
def test_20_who_always_misses_the_deadline_might_as_well_not_be_there(name: str, rule: str) -> None:
    """The others' models are those of a fleet in which the sleeper is always lost."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    never = replace(fleet, devices=[replace(DEVICE, flops=1e2), *fleet.devices[1:]])
    gone = replace(fleet, devices=[replace(DEVICE, dropout=1.0), *fleet.devices[1:]])
    late, _, _ = once(name, never, **{rule: 2.0})
    lost, _, _ = once(name, gone, **{rule: 2.0})
    everybody, _, _ = once(name, fleet, **{rule: 2.0})
    assert torch.equal(late, lost)
    assert late.shape != everybody.shape or not torch.equal(late, everybody)


def test_21_shares_are_those_of_the_arrivals() -> None:
    """With a quorum of two the server's step is the weighted mean over two, not a part of one over four."""
    fleet = Fleet([replace(DEVICE, flops=DEVICE.flops / (1 + 9 * (c > 1))) for c in range(CLIENTS)], server=SERVER)
    found, _, problem = once("psl", fleet, 1, quorum=2)
    pair = replace(problem, rows=problem.rows[:2])
    alone, _ = simulate(lambda s: PSL(stack=s, cut=AT, lr=0.1), pair, Fleet([DEVICE] * 2, server=SERVER), 1)
    edge = problem.stack.edges[AT]
    assert torch.equal(found[0, edge:], alone[0, edge:])
    assert len(found) == 2


def test_23_bytes_are_those_of_the_closed_forms() -> None:
    """Smashed data and gradients of every batch, labels, and weights as each method moves them."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    for name in METHODS:
        _, simulator, problem = once(name, fleet)
        p, books = Prices(problem, simulator), simulator.ledger.total.bytes
        batches = CLIENTS * STEPS
        expected = {
            "act_up": batches * p.smashed,
            "labels_up": batches * p.labels,
            "grad_down": batches * p.smashed,
        }
        if name == "sl":
            expected["handoff"] = 2 * CLIENTS * p.half
        else:
            expected["model_down"] = CLIENTS * p.half
        if name.startswith("splitfed"):
            expected["model_up"] = CLIENTS * p.half
        assert dict(books) == expected, name


def test_23_labels_stay_at_home_under_a_u() -> None:
    """The body's output comes down and its gradient goes up instead."""
    fleet, problem = Fleet([DEVICE] * CLIENTS, server=SERVER), tiny_problem(CLIENTS)
    _, simulator = simulate(lambda s: SplitFedV1(stack=s, cut=1, tail=2, lr=0.1, local_steps=STEPS), problem, fleet, 1)
    books, costs, edges = simulator.ledger.total.bytes, simulator.pricing.costs(), problem.stack.edges
    head, body = (CLIENTS * STEPS * BATCH * costs[b].output for b in (0, 1))
    home = 8 * (edges[1] + edges[3] - edges[2])
    assert dict(books) == {
        "act_up": head,
        "grad_down": head,
        "act_down": body,
        "grad_up": body,
        "model_down": CLIENTS * home,
        "model_up": CLIENTS * home,
    }


def test_23_split_learning_sends_less_than_federated_learning_for_few_samples() -> None:
    """Section 6: for each client and epoch iff `n_i q < |w_s|`, all counted in bytes and without labels."""
    problem = tiny_problem(CLIENTS)
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    for at in (1, 2):
        for steps in (1, 2, 4, 8):
            _, simulator = simulate(
                lambda s, a=at, k=steps: SplitFedV1(stack=s, cut=a, local_steps=k), problem, fleet, 1
            )
            books = simulator.ledger.total.bytes
            split = sum(books.values()) - books["labels_up"]
            federated = CLIENTS * 2 * 8 * problem.stack.size
            q = simulator.pricing.costs()[at - 1].output
            upper = 8 * (problem.stack.size - problem.stack.edges[at])
            assert (split < federated) == (steps * BATCH * q < upper), (at, steps)


def test_memory_is_held_across_the_cut() -> None:
    """A client that cannot keep what its backward pass needs is refused at the forward pass, before it waits."""
    problem, fleet = tiny_problem(CLIENTS), Fleet([DEVICE] * CLIENTS, server=SERVER)
    _, simulator = simulate(lambda s: SplitFedV1(stack=s, cut=2, lr=0.1), problem, fleet, 1)
    held = simulator.ledger[0]
    kept = sum(c.saved for c in simulator.pricing.costs()[:2]) * BATCH
    assert held.working == kept
    small = replace(fleet, devices=[replace(DEVICE, memory=float(held.static + held.working - 1)), *fleet.devices[1:]])
    _, other = simulate(lambda s: SplitFedV1(stack=s, cut=2, lr=0.1), problem, small, 1)
    assert next(r["outcome"] for r in other.timeline if r["client"] == 0) == "refused"
