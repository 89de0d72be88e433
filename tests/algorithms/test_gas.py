"""GAS against an event loop, and by numbers 16, 20, 21, 23 and 24 of section 9 of the specification."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.gas_by_hand import BATCH, CLASSES, EDGE, WIDTH, event_loop
from algorithms.overheard import overhear
from lanterne.algorithms import GAS, PSL
from lanterne.errors import ModelError
from lanterne.experiment.checkpoint import decode, encode, state_classes
from lanterne.fleet import Device, Fleet, Server
from lanterne.models import LayerStack
from lanterne.protocol import Dispatch, Gather, Reply, Request
from lanterne.runtime import Loop, Simulator, restore, snapshot
from lanterne.testing import simulate, tiny_cnn, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002, overhead=0.003)
VERSIONS = 6
BASE: dict[str, Any] = {
    "lr": 0.2,
    "momentum": 0.0,
    "local_steps": 3,
    "activation_buffer": 4,
    "model_buffer": 3,
    "weights": "samples",
    "generated": None,
    "covariance": "diagonal",
    "weighting": "linear",
    "growth": 2.0,
    "logit_adjustment": True,
    "decay": False,
}


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one model, one upload": {"activation_buffer": 1, "model_buffer": 1},
    "nothing generated": {"generated": 0},
    "many generated": {"generated": 20},
    "momentum": {"momentum": 0.9, "lr": 0.05},
    "equal": {"weights": "equal"},
    "full": {"covariance": "full", "generated": 9},
    "constant": {"weighting": "constant", "generated": 9},
    "polynomial": {"weighting": "polynomial", "generated": 9},
    "exponential": {"weighting": "exponential", "generated": 9},
    "not adjusted": {"logit_adjustment": False},
    "decay": {"decay": True},
}


@pytest.mark.parametrize("case", CASES)
def test_gas_is_the_event_loop(case: str) -> None:
    """With every knob; and each of them matters: without it the event loop ends elsewhere."""
    options = BASE | CASES[case]
    problem = tiny_problem()
    found, simulator = simulate(lambda s: GAS(stack=s, **options), problem, uneven_fleet(), VERSIONS)
    expected = event_loop(problem, simulator.timeline, options, VERSIONS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for name in CASES[case]:
        other = event_loop(problem, simulator.timeline, options | {name: BASE[name]}, VERSIONS)
        assert not torch.allclose(found, other, rtol=0, atol=1e-7), name


# ---------------------------------------------------------------------------------------------------- 16
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
def test_16_a_buffer_of_one_client_without_generation_is_psl_of_one_client(steps: int, stack: LayerStack) -> None:
    problem, fleet = tiny_problem(1, stack=stack), Fleet([DEVICE])
    alone = {"activation_buffer": 1, "model_buffer": 1, "generated": 0, "logit_adjustment": False}
    psl, _ = simulate(lambda s: PSL(stack=s, lr=0.3, local_steps=steps), problem, fleet, 4)
    gas, _ = simulate(lambda s: GAS(stack=s, lr=0.3, local_steps=steps, **alone), problem, fleet, 4)
    assert torch.equal(gas, psl[0])
    for other in ({"generated": None}, {"logit_adjustment": True}, {"activation_buffer": 2}):
        changed = alone | other
        apart, _ = simulate(lambda s, o=changed: GAS(stack=s, lr=0.3, local_steps=steps, **o), problem, fleet, 4)
        assert not torch.allclose(apart, psl[0], rtol=0, atol=1e-6), other


def lanes(fleet: Fleet, kind: type[Any], rounds: int, **options: Any) -> dict[Any, list[tuple[Any, ...]]]:
    """What each client did and when."""
    problem = tiny_problem(len(fleet))
    _, simulator = simulate(lambda s: kind(stack=s, lr=0.1, local_steps=2, **options), problem, fleet, rounds)
    found: dict[Any, list[tuple[Any, ...]]] = {}
    for r in simulator.timeline:
        found.setdefault(r["client"], []).append((r["handler"], r["start"], r["computed"], r["arrived"]))
    return {c: sorted(rows, key=lambda row: row[3]) for c, rows in found.items()}


def test_16_no_client_ever_waits_for_another() -> None:
    """A client's lane is the same whoever else there is, and it never rests; under PSL neither is so."""
    fleet = uneven_fleet(4)
    slow = replace(fleet, devices=[fleet.devices[0], *(replace(d, flops=d.flops / 50) for d in fleet.devices[1:])])
    for kind, options in ((GAS, {"activation_buffer": 3, "model_buffer": 2}), (PSL, {})):
        mine, others = (lanes(f, kind, 4, **options)[0] for f in (fleet, slow))
        n = min(len(mine), len(others))
        assert n >= 4
        same = np.allclose([row[1:] for row in mine[:n]], [row[1:] for row in others[:n]], rtol=0, atol=1e-12)
        # What it begins, it begins when the one before has arrived at the other end.
        rests = [after[1] - before[3] for before, after in pairwise(others)]
        assert same == (kind is GAS)
        assert (max(rests) < 1e-12) == (kind is GAS)


def test_16_the_answer_does_not_wait_for_the_servers_step() -> None:
    """The gradient goes down before the server works on its buffer, also from the upload that fills it."""
    fleet = replace(uneven_fleet(), server=Server(flops=1e6))
    _, simulator = simulate(lambda s: GAS(stack=s, activation_buffer=1, model_buffer=2), tiny_problem(), fleet, 2)
    served = [r for r in simulator.timeline if r["client"] == "server:0" and r["handler"] != "begin"]
    kinds = [r["handler"] for r in sorted(served, key=lambda r: r["start"])]
    assert len(kinds) > 8
    assert kinds == (["answer", "step"] * len(kinds))[: len(kinds)]
    answers = {r["arrived"] for r in served if r["handler"] == "answer"}
    assert {r["start"] for r in simulator.timeline if r["handler"] == "backward"} <= answers


# ---------------------------------------------------------------------------------------------------- 20 and 21
def test_20_with_all_in_both_buffers_it_is_synchronous() -> None:
    """On equal devices all uploads come at once: PSL's server, and the mean of PSL's clients."""
    problem, fleet = tiny_problem(4), Fleet([DEVICE] * 4)
    options: dict[str, Any] = {"generated": 0, "logit_adjustment": False, "weights": "equal", "local_steps": 3}
    psl, _ = simulate(lambda s: PSL(stack=s, lr=0.3, local_steps=3, weights="equal"), problem, fleet, 1)
    gas, _ = simulate(lambda s: GAS(stack=s, lr=0.3, activation_buffer=4, model_buffer=4, **options), problem, fleet, 1)
    assert torch.allclose(gas, psl.mean(0), rtol=0, atol=1e-12)
    half, _ = simulate(
        lambda s: GAS(stack=s, lr=0.3, activation_buffer=2, model_buffer=4, **options), problem, fleet, 1
    )
    assert not torch.allclose(half, psl.mean(0), rtol=0, atol=1e-6)


def test_20_who_is_always_lost_might_as_well_not_be_there() -> None:
    fleet = uneven_fleet()
    options: dict[str, Any] = {"activation_buffer": 3, "model_buffer": 2, "local_steps": 2}
    found = []
    for device in (replace(fleet.devices[2], dropout=1.0), replace(fleet.devices[2], memory=1.0), fleet.devices[2]):
        devices = [*fleet.devices[:2], device, *fleet.devices[3:]]
        w, _ = simulate(lambda s: GAS(stack=s, **options), tiny_problem(), replace(fleet, devices=devices), 5)
        found.append(w)
    lost, refused, everybody = found
    assert torch.equal(lost, refused)
    assert not torch.equal(lost, everybody)


def test_21_the_average_of_equal_models_is_that_model_and_no_model_changes_nothing() -> None:
    """The weights in a buffer sum to 1, whosever models are in it."""
    problem = tiny_problem(same=True)
    for buffer in (1, 2, 3, 5, 6):
        options: dict[str, Any] = {"model_buffer": buffer, "activation_buffer": 10_000}
        w, _ = simulate(lambda s, o=options: GAS(stack=s, lr=0.3, **o), problem, uneven_fleet(), 1)
        one, _ = simulate(lambda s: GAS(stack=s, lr=0.3, model_buffer=1), problem, uneven_fleet(), 1)
        assert torch.allclose(w[:EDGE], one[:EDGE], rtol=0, atol=1e-15)
        assert torch.equal(w[EDGE:], problem.w[EDGE:])
    nobody = uneven_fleet(dropout=1.0)
    w, _ = simulate(lambda s: GAS(stack=s, lr=0.3, model_buffer=1), problem, nobody, 3)
    assert torch.equal(w, problem.w)


class Fickle:
    """A cohort and a world of two clients that upload, and go away before they hand in."""

    population, key, round, clients = 2, 0, 0, (0, 1)

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def sample(self, n: int | None, key: int) -> tuple[int, ...]:
        return self.clients

    def replies(self) -> list[Reply]:
        """One upload, and that nobody who was to hand in has."""
        up = next(q for q in self.asked if q.handler == "forward")
        back = [q for q in self.asked if q.handler == "backward"]
        self.asked = [q for q in self.asked if q.handler == "forward" and q is not up]
        arrays = {"smashed": torch.ones(BATCH, WIDTH), "labels": torch.zeros(BATCH, dtype=torch.int64)}
        return [*(Reply(q, 0.0, "lost", {}) for q in back), Reply(up, 0.0, "complete", arrays)]


def test_21_a_round_ends_when_visits_only_break_off() -> None:
    problem, world = tiny_problem(2), Fickle()
    gas = GAS(stack=problem.stack)
    program: Any = gas.round(gas.init(problem.w), world)  # type: ignore[arg-type]
    effect = next(program)
    ended = None
    for _ in range(100):
        if isinstance(effect, Dispatch):
            world.asked += effect.requests
        try:
            effect = program.send(world.replies() if isinstance(effect, Gather) else None)
        except StopIteration as stop:
            ended = stop.value
            break
    assert ended is not None
    assert ended.version == 0


# ---------------------------------------------------------------------------------------------------- costs
def test_23_bytes_are_those_of_the_closed_form() -> None:
    """Everything costs: smashed data, labels, gradients, and the client's half both ways."""
    clients, steps = 4, 3
    problem, fleet = tiny_problem(clients), Fleet([DEVICE] * clients)
    _, simulator = simulate(
        lambda s: GAS(stack=s, local_steps=steps, activation_buffer=2, model_buffer=clients), problem, fleet, 1
    )
    smashed = BATCH * simulator.pricing.costs()[0].output
    assert smashed == BATCH * WIDTH * 8
    assert dict(simulator.ledger.total.bytes) == {
        "model_down": clients * 8 * EDGE,
        "act_up": clients * steps * smashed,
        "labels_up": clients * steps * BATCH * 8,
        "grad_down": clients * steps * smashed,
        "model_up": clients * 8 * EDGE,
    }


def test_23_a_batch_takes_the_time_of_all_its_samples_on_its_own_link() -> None:
    problem, fleet = tiny_problem(2), Fleet([DEVICE, replace(DEVICE, flops=1e3, up=1e3)])
    _, simulator = simulate(lambda s: GAS(stack=s, activation_buffer=9, model_buffer=2), problem, fleet, 2)
    cost = simulator.pricing.costs()[0]
    for r in simulator.timeline:
        if r["client"] in (0, 1) and r["outcome"] == "complete":
            device = fleet.devices[r["client"]]
            work = cost.forward if r["handler"] == "forward" else cost.weight_gradient
            overhead = device.overhead if r["handler"] == "forward" else 0.0
            seconds = overhead + work * BATCH / device.flops
            assert r["computed"] - r["downloaded"] == pytest.approx(seconds, rel=1e-9)
            if r["handler"] == "forward":
                sent = device.latency + BATCH * (WIDTH * 8 + 8) / device.up
                assert r["arrived"] - r["computed"] == pytest.approx(sent, rel=1e-9)


@pytest.mark.parametrize(("covariance", "products"), [("diagonal", 0), ("full", 1)])
def test_23_the_servers_time_is_that_of_its_products(covariance: str, products: int) -> None:
    """Of an answer, of a step on the buffer and all rows that are drawn, and of full covariances for every label."""
    flops, rows = 1e6, 7
    fleet = replace(uneven_fleet(), server=Server(flops=flops))
    _, simulator = simulate(
        lambda s: GAS(stack=s, activation_buffer=2, model_buffer=2, generated=rows, covariance=covariance),
        tiny_problem(), fleet, 2,
    )  # fmt: skip
    upper = simulator.pricing.costs()[1:]
    forward, back = sum(c.forward for c in upper), sum(c.weight_gradient + c.input_gradient for c in upper)
    square = 2 * WIDTH**2 * CLASSES * products
    expected = {
        "begin": 0.0,
        "answer": BATCH * (forward + back + square),
        "step": (2 * BATCH + CLASSES * rows) * (forward + back - upper[0].input_gradient) + rows * square,
    }
    for r in simulator.timeline:
        if r["client"] == "server:0":
            assert r["arrived"] - r["start"] == pytest.approx(expected[r["handler"]] / flops, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------------------------------------------- 24
@pytest.mark.parametrize("server", [math.inf, 3e4], ids=["quick server", "queue"])
@pytest.mark.parametrize("case", ["as it is", "momentum", "full"])
def test_24_a_restored_run_goes_on_to_the_bit(case: str, server: float) -> None:
    """Through a checkpoint, with uploads in the buffer, answers in the queue and clients in the middle of a visit."""
    problem, options = tiny_problem(), BASE | CASES[case]
    fleet = replace(uneven_fleet(dropout=0.05), server=Server(flops=server))
    algorithm = GAS(stack=problem.stack, **options)

    def fresh() -> Simulator:
        executor = Loop(problem.task, problem.data.x, problem.data.y)
        return Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)

    simulator, state, saved = fresh(), algorithm.init(problem.w), []
    for _ in range(9):
        state = simulator.round(algorithm, state)
        structure, tensors = encode({"state": state, "simulator": snapshot(simulator)})
        saved.append((json.dumps(structure), tensors, state))
    assert any(s.uploads for _, _, s in saved)
    assert any(s.count or s.busy for _, _, s in saved)
    for structure, tensors, before in saved[:-1]:
        there = decode(json.loads(structure), tensors, state_classes(before))
        other, again = fresh(), there["state"]
        restore(other, there["simulator"])
        while other.rounds < simulator.rounds:
            again = other.round(algorithm, again)
        assert torch.equal(algorithm.evaluated(again), algorithm.evaluated(state))
        assert (again.version, again.uploads, again.steps, again.busy, again.batches) == (
            state.version, state.uploads, state.steps, state.busy, state.batches,
        )  # fmt: skip
        assert other.now == simulator.now
        assert other.ledger.total == simulator.ledger.total
        mine, theirs = other.numerics.states, simulator.numerics.states
        assert {a: set(held) for a, held in mine.items()} == {a: set(held) for a, held in theirs.items()}
        for address, held in theirs.items():
            for name, value in held.items():
                assert torch.equal(mine[address][name], value), (address, name)


# ---------------------------------------------------------------------------------------------------- what it asks
def test_as_many_are_at_work_as_may_be_and_they_change() -> None:
    heard, simulator = overhear(
        lambda s: GAS(stack=s, cohort=2, activation_buffer=2, model_buffer=2), tiny_problem(), uneven_fleet(), 20
    )
    assert all(len(r.state.busy) <= 2 for r in heard)
    visits = [q.to for r in heard for q in r.requests if q.handler == "forward" and "w" in q.arrays]
    assert set(visits) == set(range(6))
    assert len(simulator.timeline) > 0


def test_weights_of_rows_are_the_progress_itself_and_not_its_sum() -> None:
    """s = t E + e of each upload; a counter that is summed up would grow quadratically."""
    heard, _ = overhear(
        lambda s: GAS(stack=s, local_steps=3, activation_buffer=4, model_buffer=2), tiny_problem(), uneven_fleet(), 8
    )
    requests = [q for r in heard for q in r.requests]
    found = [round(float(q.arrays["log_weight"].exp()), 9) for q in requests if q.handler == "answer"]
    replies = [r.request for h in heard for r in h.replies if r.request.handler == "forward"]
    assert found == [3 * q.note[0] + q.batches.start - q.note[1] + 1 for q in replies]
    assert len(found) > 30 > max(found) > 20


def test_the_prior_is_that_of_the_labels_that_have_come() -> None:
    problem = tiny_problem()
    heard, _ = overhear(lambda s: GAS(stack=s, activation_buffer=4, model_buffer=2), problem, uneven_fleet(), 6)
    answers = [q for r in heard for q in r.requests if q.handler == "answer"]
    counts = sum(heard[-1].state.labels.values())
    assert int(counts.sum()) == BATCH * len(answers)
    for q in answers:
        assert float(q.arrays["prior"].sum()) == pytest.approx(1.0, abs=1e-12)
        assert (q.arrays["prior"][q.arrays["labels"]] > 0).all()


def test_what_cannot_be_done_is_said() -> None:
    with torch.device("meta"):
        wide = LayerStack(nn.Sequential(nn.Linear(4, 20_000), nn.ReLU(), nn.Linear(20_000, 10)), (4,))
        images = LayerStack(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)), (1, 8, 8))
    with pytest.raises(ModelError, match=r"20000 numbers for each of 10 labels take 29\.8 GiB.*'diagonal'"):
        GAS(stack=wide, covariance="full")
    assert GAS(stack=wide).networks == {}
    assert GAS(stack=wide, covariance="full", generated=0).networks == {}
    with pytest.raises(ModelError, match="2x4x4 numbers for a sample, not one per class"):
        GAS(stack=images)


@pytest.mark.parametrize("slower", [2, 5, 50])
def test_19_one_slow_client_costs_the_throughput_at_most_its_share(slower: int) -> None:
    """In the same time the others upload as often as without it; where all wait for all, everybody is as slow as it."""
    device = Device(flops=2e4, down=5e4, up=3e4, latency=0.002)

    def uploads(make: Any, flops: float) -> list[int]:
        fleet = Fleet([replace(device, flops=flops), device, device, device])
        _, simulator = simulate(make, tiny_problem(4), fleet, 30)
        there = [r["client"] for r in simulator.timeline if r["handler"] == "forward" and r["arrived"] <= 1.4]
        assert simulator.now > 1.4
        return [there.count(client) for client in range(4)]

    def gas(stack: Any) -> GAS:
        return GAS(stack=stack, lr=0.1, local_steps=2, activation_buffer=3, model_buffer=2, generated=0)

    def psl(stack: Any) -> PSL:
        return PSL(stack=stack, lr=0.1, local_steps=2)

    before, after = uploads(gas, device.flops), uploads(gas, device.flops / slower)
    assert before[1:] == after[1:]
    assert before[0] / slower - 1 <= after[0] < before[0]
    assert sum(after) >= 0.75 * sum(before)
    waiting = uploads(psl, device.flops / slower)
    assert max(waiting) - min(waiting) <= 1  # the slow one's last may be under way
    assert slower < 5 or sum(waiting) < 0.75 * sum(uploads(psl, device.flops))
