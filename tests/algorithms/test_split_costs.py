"""What split methods cost and when they end, by the numbers of section 9 of the specification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from typing import Any

import pytest
import torch

from lanterne.algorithms import CSEFSL, PSL, FedAvg, LocSplitFed, Scaffold, SequentialSL, SplitFedV1, SplitFedV2
from lanterne.fleet import Device, Fleet, Server
from lanterne.protocol import Dispatch, Gather, Pass
from lanterne.runtime import Simulator
from lanterne.split import client_part
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
    """Section 6: of each client and epoch iff `n_i q < |w_s|`, in bytes and without labels, by both methods' books."""
    problem, fleet, found = tiny_problem(CLIENTS), Fleet([DEVICE] * CLIENTS, server=SERVER), set()
    for at, steps in product((1, 2), (1, 2, 4, 8)):
        split, federated = (
            simulate(lambda s, m=method: m(stack=s), problem, fleet, 1)[1].ledger  # type: ignore[misc]
            for method in (partial(SplitFedV1, cut=at, local_steps=steps), partial(FedAvg, local_steps=steps))
        )
        _, simulator, _ = once("psl", fleet)
        q = simulator.pricing.costs()[at - 1].output
        upper = 8 * (problem.stack.size - problem.stack.edges[at])
        for client in range(CLIENTS):
            less = sum(split[client].bytes.values()) - split[client].bytes["labels_up"]
            more = sum(federated[client].bytes.values())
            assert (less < more) == (steps * BATCH * q < upper), (at, steps, client)
            found.add(less < more)
    assert found == {True, False}


def test_23_what_each_method_moves() -> None:
    """Section 6: PSL moves no weights once everybody has begun, SL only hands over, local losses have no gradient."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    cut = {"act_up", "labels_up"}
    moved = {
        "sl": {*cut, "grad_down", "handoff"},
        "psl": {*cut, "grad_down"},
        "splitfed_v1": {*cut, "grad_down", "model_down", "model_up"},
        "splitfed_v2": {*cut, "grad_down", "model_down", "model_up"},
        "locsplitfed": {*cut, "model_down", "model_up", "aux_down", "aux_up"},
        "cse_fsl": {*cut, "model_down", "model_up", "aux_down", "aux_up"},
    }
    for name, expected in moved.items():
        books = [rounds(name, fleet, n).ledger.total.bytes for n in (1, 2)]
        assert set(books[1] - books[0]) == expected, name


def rounds(name: str, fleet: Fleet, n: int, **options: Any) -> Simulator:
    problem = tiny_problem(len(fleet))
    kind = {**METHODS, "locsplitfed": LocSplitFed, "cse_fsl": CSEFSL}[name]
    return simulate(lambda s: kind(stack=s, cut=AT, lr=0.1, local_steps=STEPS, **options), problem, fleet, n)[1]


@pytest.mark.parametrize("machines", [None, 1])
def test_23_memory_held_across_the_cut_has_closed_forms(machines: int | None) -> None:
    """A client keeps what its forward pass saved; the server holds one upload in SL, and everybody's where all work."""
    fleet = Fleet([DEVICE] * CLIENTS, server=replace(SERVER, machines=machines))
    for name in METHODS:
        simulator = rounds(name, fleet, 2)
        p, books = Prices(tiny_problem(CLIENTS), simulator), simulator.ledger
        kept = BATCH * sum(c.saved for c in simulator.pricing.costs()[:AT])
        assert [books[c].held for c in range(CLIENTS)] == [kept] * CLIENTS, name
        assert books.total.held == kept > 0
        upload = p.smashed + p.labels
        assert books.unserved.peak == (upload if name == "sl" else CLIENTS * upload), name
        assert books.unserved.now == 0


def test_23_a_quorum_bounds_what_the_server_holds() -> None:
    """Two fast clients are served and gone before the slow ones arrive, whose uploads nobody waits for."""
    fleet = Fleet([replace(DEVICE, flops=DEVICE.flops / (1 + 99 * (c > 1))) for c in range(CLIENTS)], server=SERVER)
    simulator = rounds("psl", fleet, 2, quorum=2)
    p = Prices(tiny_problem(CLIENTS), simulator)
    assert simulator.ledger.unserved.peak == 2 * (p.smashed + p.labels)
    assert simulator.ledger.unserved.now == 0


def test_23_under_a_u_the_server_keeps_its_own_forward_pass() -> None:
    """The body's saved tensors wait for the gradient from the tail, and with it come to the peak where that is more."""
    fleet, problem = Fleet([DEVICE] * CLIENTS, server=SERVER), tiny_problem(CLIENTS)
    _, simulator = simulate(lambda s: SplitFedV1(stack=s, cut=1, tail=2, lr=0.1), problem, fleet, 1)
    costs = simulator.pricing.costs()
    assert simulator.ledger.unserved.peak == CLIENTS * BATCH * max(costs[0].output, costs[1].saved + costs[1].output)
    assert simulator.ledger.unserved.now == 0


class Forgetful(PSL):
    """A server that asks for everybody's smashed data and does nothing with them."""

    def round(self, state: Any, cohort: Any) -> Any:
        half = {"w": client_part(self.stack, self.place, state.w)}
        ups = [self.halves.exchange(c, ("server", 0), 0, self.place, client_half=half).forward for c in cohort.clients]
        yield Dispatch(ups)
        yield Gather(of=ups)
        return replace(state, round=state.round + 1)


def test_23_what_the_server_never_works_on_is_given_up_at_the_end_of_the_round() -> None:
    problem, fleet = tiny_problem(CLIENTS), Fleet([DEVICE] * CLIENTS, server=SERVER)
    _, simulator = simulate(lambda s: Forgetful(stack=s, cut=AT), problem, fleet, 2)
    p = Prices(problem, simulator)
    assert simulator.ledger.unserved.peak == CLIENTS * (p.smashed + p.labels)
    assert simulator.ledger.unserved.now == 0


def test_samples_enter_with_the_first_block_of_the_model() -> None:
    """After how many units each forward pass from the first block has ended; heads, tails and backward are none."""
    problem = tiny_problem(CLIENTS)
    _, simulator = simulate(lambda s: LocSplitFed(stack=s, cut=AT), problem, Fleet([DEVICE] * CLIENTS), 1)
    forwards = simulator.pricing.forwards
    assert forwards([Pass("forward", 0, 3), Pass("backward", 0, 3)] * 2) == (3, 9)
    assert forwards([Pass("forward", 0, 1), Pass("forward", 0, 1, network="head"), Pass("backward", 0, 1)]) == (1,)
    assert forwards([Pass("forward", 2, 3), Pass("backward", 2, 3)]) == ()
    assert forwards([Pass("backward", 0, 1)]) == ()


def test_nothing_is_held_where_nobody_waits() -> None:
    """Local losses go forward and backward in one: a client keeps nothing for later, the server holds what comes."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    for name in ("locsplitfed", "cse_fsl"):
        books = rounds(name, fleet, 1).ledger
        assert books.total.held == 0 < books.unserved.peak


def test_samples_are_those_that_went_forward() -> None:
    """Every method sees the same samples in a round, in one request a batch or three, with a head or without."""
    fleet = Fleet([DEVICE] * CLIENTS, server=SERVER)
    for name in (*METHODS, "locsplitfed", "cse_fsl"):
        books = rounds(name, fleet, 3).ledger
        assert [books[c].samples for c in range(CLIENTS)] == [3 * STEPS * BATCH] * CLIENTS, name
        assert books.total.samples == 3 * CLIENTS * STEPS * BATCH
    u = rounds("splitfed_v1", fleet, 3, tail=2)
    assert u.ledger.total.samples == 3 * CLIENTS * STEPS * BATCH
    problem = tiny_problem(CLIENTS)
    for kind, options in ((FedAvg, {}), (Scaffold, {"control": "gradient"}), (Scaffold, {"control": "path"})):
        _, simulator = simulate(lambda s, k=kind, o=options: k(stack=s, local_steps=STEPS, **o), problem, fleet, 3)  # type: ignore[misc]
        assert simulator.ledger.total.samples == 3 * CLIENTS * STEPS * BATCH


def test_samples_whose_forward_pass_was_cut_off_do_not_count() -> None:
    """The sleeper never gets through its first block by the deadline at the cut, the others do, and are counted."""
    fleet = Fleet([replace(DEVICE, flops=1e2), *[DEVICE] * (CLIENTS - 1)], server=SERVER)
    books = rounds("psl", fleet, 2, cut_deadline=2.0).ledger
    assert books[0].samples == 0 == books[0].held
    assert books.total.samples == 2 * (CLIENTS - 1) * STEPS * BATCH


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
