"""FSL-SAGE by section 4.6 of the specification, and by numbers 17 to 24 of its section 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from algorithms.by_hand import samples
from lanterne.algorithms import CSEFSL, FSLSAGE, SplitFedV1
from lanterne.algorithms.fsl_sage import State
from lanterne.budget import Units
from lanterne.fleet import Device, Fleet, Server
from lanterne.models import full, suffix
from lanterne.protocol import Inbox, Local
from lanterne.runtime import Loop, Simulator
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet
from lanterne.testing.conformance import Audit
from lanterne.testing.problems import tiny_mlp

EDGE = tiny_mlp().edges[1]
CLIENTS, LR, STEPS, ROUNDS = 4, 0.3, 3, 5
DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002)
#: Two uploads in a round, of four samples each: the buffer overflows in the second round, the last batch of an epoch is
#: ragged.
OPTIONS = {"interval": 2, "align_every": 2, "buffer": 14, "align_epochs": 4, "align_batch": 5, "align_lr": 0.05}


def make(**options: Any) -> Any:
    return lambda s: FSLSAGE(**{"stack": s, "lr": LR, "local_steps": STEPS, **OPTIONS, **options})


def run(
    devices: Sequence[Device] = (DEVICE,) * CLIENTS, rounds: int = ROUNDS, server: Server | None = None, **options: Any
) -> tuple[Tensor, Simulator, Problem]:
    problem = tiny_problem(CLIENTS)
    return *simulate(make(**options), problem, Fleet(list(devices), server=server or Server()), rounds), problem


class ByHand:
    """The user's modules and plain autograd; the order within a batch and the scale of the gradients can be wrong."""

    def __init__(self, problem: Problem, order: str = "right", scale: str = "sums", mean_heads: bool = False) -> None:
        algorithm = make()(problem.stack)
        self.problem, self.order, self.scale, self.mean_heads = problem, order, scale, mean_heads
        self.w, theta = problem.w, algorithm.init(problem.w).head
        self.heads = [algorithm.networks["head"].load(theta) for _ in range(CLIENTS)]
        self.adams = [torch.optim.Adam(head.parameters(), lr=OPTIONS["align_lr"]) for head in self.heads]
        self.buffers: list[tuple[Tensor, Tensor]] = [(torch.empty(0, 5).double(), torch.empty(0).long())] * CLIENTS

    def nets(self, low: Tensor) -> tuple[nn.Sequential, nn.Sequential]:
        net = list(self.problem.stack.load(torch.cat([low, self.server])))
        return nn.Sequential(*net[:2]), nn.Sequential(*net[2:])

    def run(self, rounds: int, clients: Sequence[int] = range(CLIENTS)) -> Tensor:
        weights = samples(self.problem)
        for round in range(rounds):
            lows, self.server = dict.fromkeys(clients, self.w[:EDGE]), self.w[EDGE:]
            for k in range(STEPS):
                for c in clients:
                    lows[c] = self.batch(c, round, k, lows[c])
            total = sum(weights[c] for c in clients)
            self.w = torch.cat([sum(weights[c] * lows[c] for c in clients) / total, self.server])
            if self.mean_heads:
                for group in zip(*(head.parameters() for head in self.heads), strict=True):
                    mean = torch.stack([p.detach() for p in group]).mean(0)
                    for p in group:
                        p.data = mean.clone()
        return self.w

    def batch(self, c: int, round: int, k: int, low: Tensor) -> Tensor:
        step = STEPS * round + k
        (rows,) = self.problem.streams.rows(c, range(step, step + 1))
        x, y = self.problem.data.x[rows], self.problem.data.y[rows]
        lower, _ = self.nets(low)
        smashed = lower(x)
        after = [low]

        def server() -> None:
            if k % OPTIONS["interval"] == 0:
                upper = self.nets(low)[1]
                loss = cross_entropy(upper(smashed.detach()), y)
                g = torch.autograd.grad(loss, list(upper.parameters()))
                self.server = self.server - LR * torch.cat([one.reshape(-1) for one in g])

        def store() -> None:
            if k % OPTIONS["interval"] == 0:
                kept = self.buffers[c]
                joined = torch.cat([kept[0], smashed.detach()]), torch.cat([kept[1], y])
                self.buffers[c] = joined[0][-OPTIONS["buffer"] :], joined[1][-OPTIONS["buffer"] :]

        def align() -> None:
            if k == 0 and round % OPTIONS["align_every"] == 0 and len(self.buffers[c][0]):
                self.align(c, self.nets(low)[1])

        def client() -> None:
            s = smashed.detach().requires_grad_()
            (up,) = torch.autograd.grad(cross_entropy(self.heads[c](s), y), [s])
            g = torch.autograd.grad(smashed, list(lower.parameters()), up)
            after[0] = low - LR * torch.cat([one.reshape(-1) for one in g])

        orders = {
            "right": [server, store, align, client],
            "the client steps first": [client, server, store, align],
            "the client steps before the alignment": [server, store, client, align],
            "alignment before the server's step": [store, align, server, client],
            "alignment before the buffer": [server, align, store, client],
        }
        for part in orders[self.order]:
            part()
        return after[0]

    def align(self, c: int, upper: nn.Sequential) -> None:
        rows, labels = (t.clone() for t in self.buffers[c])
        rows.requires_grad_()
        mean = self.scale == "means"
        reduce = "mean" if mean else "sum"
        (wanted,) = torch.autograd.grad(cross_entropy(upper(rows), labels, reduction=reduce), [rows])
        pieces = -(-len(rows) // OPTIONS["align_batch"])
        for _ in range(OPTIONS["align_epochs"]):
            for s, y, g in zip(*(t.detach().tensor_split(pieces) for t in (rows, labels, wanted)), strict=True):
                s = s.clone().requires_grad_()
                loss = cross_entropy(self.heads[c](s), y, reduction=reduce)
                (found,) = torch.autograd.grad(loss, [s], create_graph=True)
                self.adams[c].zero_grad()
                (found - g).square().sum().backward()
                self.adams[c].step()


def test_fsl_sage_by_hand() -> None:
    """Section 4.6, items 1 to 4 and 7 to 9: every round of it, and the heads that are left."""
    found, simulator, problem = run()
    hand = ByHand(problem)
    assert torch.allclose(found, hand.run(ROUNDS), rtol=0, atol=1e-12)
    states = simulator.numerics.states
    for c, head in enumerate(hand.heads):
        theta = torch.cat([p.detach().reshape(-1) for p in head.parameters()])
        assert torch.allclose(states["server", 1 + c]["aux"], theta, rtol=0, atol=1e-12)
        assert torch.equal(states["server", 1 + c]["aux"], states[c]["aux"])
        assert torch.allclose(states["server", 1 + c]["smashed"], hand.buffers[c][0], rtol=0, atol=1e-12)
    assert not torch.equal(states[0]["aux"], states[1]["aux"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "the client steps first"},
        {"order": "the client steps before the alignment"},
        {"order": "alignment before the server's step"},
        {"order": "alignment before the buffer"},
        {"scale": "means"},
        {"mean_heads": True},
    ],
    ids=str,
)
def test_no_other_order_nor_scale_is_the_same(wrong: dict[str, Any]) -> None:
    """Items 4, 7 and 8: the test by hand would notice each."""
    problem = tiny_problem(CLIENTS)
    right, other = (ByHand(problem, **options).run(3) for options in ({}, wrong))
    assert float((right - other).abs().max()) > 1e-4


def test_the_buffer_keeps_the_newest_rows() -> None:
    """First in, first out, with a cap in samples; nothing is dropped below it."""
    method: FSLSAGE = make(buffer=5)(tiny_mlp())
    nothing = Local(torch.empty(0), torch.empty(0), torch.tensor(0), Units(None))
    state: dict[str, Tensor] = {}
    for first, held in ((0, [0, 1]), (2, [0, 1, 2, 3]), (4, [1, 2, 3, 4, 5]), (6, [3, 4, 5, 6, 7])):
        sent = torch.arange(first, first + 2)
        inbox = Inbox({"smashed": sent[:, None].double(), "labels": sent}, {})
        state, _ = method.store(None, state, inbox, nothing)  # type: ignore[arg-type]
        assert state["labels"].tolist() == held
        assert state["smashed"][:, 0].tolist() == held


def test_17_a_head_that_is_the_servers_half_gives_the_true_gradient() -> None:
    """Then the clients do what those of split learning do that are sent the gradient."""

    class Knows(FSLSAGE):
        def init(self, w: Tensor) -> State:
            return State(w, w[EDGE:])

    problem, fleet = tiny_problem(CLIENTS), Fleet([DEVICE] * CLIENTS)
    still = {"lr": LR, "local_steps": STEPS, "server_lr": 1e-300}  # so that the server's half stays what the heads are
    found, simulator = simulate(
        lambda s: Knows(stack=s, **still, **{**OPTIONS, "align_lr": 1e-3}, head="copied:blocks=2"), problem, fleet, 3
    )
    expected, _ = simulate(lambda s: SplitFedV1(stack=s, **still), problem, fleet, 3)
    pooled, _ = simulate(lambda s: FSLSAGE(stack=s, **still, **OPTIONS), problem, fleet, 3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.allclose(simulator.numerics.states[0]["aux"], problem.w[EDGE:], rtol=0, atol=1e-12)
    assert not torch.allclose(pooled, expected, rtol=0, atol=1e-3)


def test_17_and_23_what_crosses_the_links() -> None:
    """Item 5: no gradient comes down and no head goes up; a head comes down where it is aligned; labels count."""
    _, simulator, problem = run(rounds=3, align_every=2)
    books, costs = simulator.ledger.total.bytes, simulator.pricing.costs()
    head = make()(problem.stack).networks["head"]
    sent = CLIENTS * 3 * 2 * problem.batch
    assert dict(books) == {
        "model_down": CLIENTS * 3 * 8 * EDGE,
        "model_up": CLIENTS * 3 * 8 * EDGE,
        "aux_down": CLIENTS * 2 * 8 * head.size,
        "act_up": sent * costs[0].output,
        "labels_up": sent * 8,
    }


def test_18_a_slow_network_changes_times_alone() -> None:
    """With equal devices, whose smashed data arrive in the same order however long they take."""
    quick, slow = replace(DEVICE, latency=0.0, up=1e9, down=1e9), replace(DEVICE, latency=0.02, up=3e3, down=5e3)
    (one, fast, _), (other, late, _) = (run([device] * CLIENTS) for device in (quick, slow))
    assert torch.equal(one, other)
    assert late.now > 2 * fast.now


def test_18_between_alignments_clients_do_not_depend_on_the_server() -> None:
    """One alignment, of equal numbers, and then a server that learns at another rate."""
    (one, _, _), (other, _, _) = (run(rounds=1, interval=9, align_every=9, server_lr=lr) for lr in (0.1, 0.2))
    assert not torch.equal(one[:EDGE], other[:EDGE])
    problem, halves = tiny_problem(CLIENTS), []
    for lr in (0.1, 0.2):
        first, second = (make(interval=1, align_every=9, server_lr=rate)(problem.stack) for rate in (0.1, lr))
        simulator = fresh(first, problem)
        state = simulator.round(first, first.init(problem.w))
        simulator.pricing.handlers = simulator.numerics.handlers = second.handlers
        for _ in range(2):
            state = simulator.round(second, state)
        halves.append(state.w)
    assert torch.equal(halves[0][:EDGE], halves[1][:EDGE])
    assert not torch.equal(halves[0][EDGE:], halves[1][EDGE:])


def test_19_an_alignment_costs_the_server_its_products() -> None:
    """By hand: one product forward, one for the gradient of the input, three to differentiate that once more."""
    server = Server(flops=1e4)
    _, simulator, problem = run(rounds=3, server=server)
    head, upper = 2 * 5 * 3, 2 * (5 * 4 + 4 * 3)
    for round, rows in ((1, problem.batch), (3, OPTIONS["buffer"])):
        fits = [r for r in simulator.timeline if r["handler"] == "align" and r["round"] == round]
        assert len(fits) == CLIENTS
        for fit in fits:
            flops = rows * (2 * upper + OPTIONS["align_epochs"] * 5 * head)
            assert fit["arrived"] - fit["start"] == pytest.approx(flops / server.flops, rel=1e-9)
    assert not [r for r in simulator.timeline if r["handler"] == "align" and r["round"] == 2]


def test_19_a_client_neither_computes_nor_holds_gradients_of_its_head() -> None:
    """Its parameters count once in memory, those of the blocks twice; a product there and one back for each layer."""
    _, simulator, problem = run(rounds=1, head="copied:blocks=2")
    method: FSLSAGE = make(head="copied:blocks=2")(problem.stack)
    batch = method.batches(0, range(2), {}, 0.0)[1]
    head, lower, upper = method.networks["head"].size, 2 * 6 * 5, 2 * (5 * 4 + 4 * 3)
    assert simulator.pricing.memory(batch.passes, 0).static == 8 * (2 * EDGE + head)
    assert simulator.pricing.work(batch.passes).total == problem.batch * (2 * lower + 2 * upper)


def test_19_clients_wait_for_the_server_at_an_alignment_alone() -> None:
    """Item 11: round 2, without one, takes the clients as long as ever, however slow the server."""
    spans: dict[int, list[float]] = {1: [], 2: []}
    for flops in (1e9, 2e3):
        _, simulator, _ = run(rounds=2, server=Server(flops=flops))
        for round, found in spans.items():
            calls = [r for r in simulator.timeline if r["round"] == round and isinstance(r["client"], int)]
            found.append(max(r["arrived"] for r in calls) - min(r["sent"] for r in calls))
    assert spans[1][1] > 2 * spans[1][0]
    assert spans[2][1] == pytest.approx(spans[2][0], rel=1e-9)


def test_19_alignments_of_one_machine_queue() -> None:
    """By default each client's alignment has a machine; with one for all the last waits for all others."""
    server = Server(flops=1e4)
    ends = []
    for machines in (None, 1):
        _, simulator, _ = run(rounds=1, server=replace(server, machines=machines))
        ends.append(max(r["arrived"] for r in simulator.timeline if r["handler"] == "align"))
    fit = 4 * (2 * 64 + OPTIONS["align_epochs"] * 150) / server.flops
    assert ends[1] - ends[0] >= 2 * fit


def test_20_a_deadline_that_nobody_misses_changes_nothing() -> None:
    fleet = [replace(DEVICE, flops=DEVICE.flops / (1 + c)) for c in (2, 0, 3, 1)]
    (free, one, _), (bound, other, _) = run(fleet), run(fleet, round_deadline=1e6)
    assert torch.equal(free, bound)
    assert one.now == other.now


def test_20_who_misses_every_deadline_is_in_no_average() -> None:
    late, gone = ([replace(DEVICE, **odd), *[DEVICE] * (CLIENTS - 1)] for odd in ({"flops": 50.0}, {"dropout": 1.0}))
    (found, simulator, _), (expected, _, _) = (run(fleet, round_deadline=0.5) for fleet in (late, gone))
    assert torch.equal(found, expected)
    assert simulator.now == pytest.approx(0.5 * ROUNDS)
    everybody, _, _ = run(round_deadline=0.5)
    assert not torch.equal(found, everybody)


def test_21_the_average_is_over_those_who_handed_in() -> None:
    found, _, problem = run([*[DEVICE] * (CLIENTS - 1), replace(DEVICE, dropout=1.0)])
    expected = ByHand(problem).run(ROUNDS, range(CLIENTS - 1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_client_is_aligned_when_it_first_comes_and_every_l_rounds_of_its_own() -> None:
    """Two of four are invited: who was not there in round 1 has no head, and is given one when it comes."""
    _, simulator, _ = run(rounds=12, cohort=2, align_every=3)
    clients = [r for r in simulator.timeline if r["handler"] in ("ahead", "local", "go_on")]
    for c in range(CLIENTS):
        there = sorted({r["round"] for r in clients if r["client"] == c})
        aligned, expected = sorted({r["round"] for r in clients if r["client"] == c and r["handler"] == "ahead"}), []
        for round in there:
            if not expected or round - expected[-1] >= 3:
                expected.append(round)
        assert aligned == expected
        assert len(expected) > 1


@pytest.mark.parametrize(("flops", "machines"), [(1e3, None), (1e4, None), (1e3, 1)])
def test_a_round_that_ends_before_its_alignments(flops: float, machines: int | None) -> None:
    """The server has stepped and stored, and the next alignment's price counts what is stored; no client has a head."""
    problem, fleet = tiny_problem(CLIENTS), Fleet([DEVICE] * CLIENTS, server=Server(flops, machines))
    algorithm = make(round_deadline=0.3)(problem.stack)
    for executor in (Loop, Audit):
        runner = executor(problem.task, problem.data.x, problem.data.y)
        simulator = Simulator(algorithm, fleet, runner, problem.streams, dtype=torch.float64)
        runner.simulator = simulator
        state = algorithm.init(problem.w)
        for round in (1, 2, 3):
            state = simulator.round(algorithm, state)
            assert state.aligned == {}
            held = min(round * problem.batch, OPTIONS["buffer"])
            for c in range(CLIENTS):
                assert len(simulator.numerics.states["server", 1 + c]["labels"]) == state.rows[c] == held
                assert "aux" not in simulator.numerics.states["server", 1 + c]
        assert torch.equal(state.w[:EDGE], problem.w[:EDGE])
        assert not torch.equal(state.w[EDGE:], problem.w[EDGE:])
        begun = [r["outcome"] for r in simulator.timeline if r["handler"] == "align"]
        assert set(begun) == ({"cancelled"} if flops == 1e4 else set())
        runner.close()


def fresh(algorithm: FSLSAGE, problem: Problem, fleet: Fleet | None = None) -> Simulator:
    executor = Loop(problem.task, problem.data.x, problem.data.y)
    fleet = fleet or Fleet([DEVICE] * CLIENTS)
    return Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)


def test_an_alignment_brings_the_gradients_nearer() -> None:
    """What it is for: on the buffer, and with the server's half, that it has seen."""
    _, simulator, problem = run(rounds=1, align_epochs=200, align_lr=0.01)
    algorithm = make()(problem.stack)
    head, start = algorithm.networks["head"], algorithm.init(problem.w).head
    upper, task = suffix(problem.stack, 1), problem.task
    for c in range(CLIENTS):
        held = simulator.numerics.states["server", 1 + c]
        s, y = held["smashed"][:4], held["labels"][:4]
        _, true = task.gradient_with_input(upper, problem.w[EDGE:], s, y)
        gaps = [
            float((task.on(head).gradient_with_input(full(head), theta, s, y)[1] - true).norm())
            for theta in (start, held["aux"])
        ]
        assert gaps[1] < 0.5 * gaps[0]


def test_a_head_by_which_clients_step_does_not_step_itself() -> None:
    """Unlike CSE-FSL's: between alignments it stays to the bit."""
    problem, algorithm = tiny_problem(CLIENTS), make(align_every=5)(tiny_mlp())
    simulator, state, heads = fresh(algorithm, problem, uneven_fleet(CLIENTS)), algorithm.init(problem.w), []
    for _ in range(3):
        state = simulator.round(algorithm, state)
        heads.append(simulator.numerics.states[2]["aux"])
    assert torch.equal(heads[0], heads[2])
    cse, _ = simulate(lambda s: CSEFSL(stack=s, lr=LR, local_steps=STEPS), problem, Fleet([DEVICE] * CLIENTS), 3)
    assert not torch.equal(cse[:EDGE], state.w[:EDGE])
