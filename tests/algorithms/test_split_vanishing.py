"""A client that vanishes between forward and backward: what it sent is there, what it is sent never reaches it.

The moment is exact. On the virtual clock the device goes away when its first reply has arrived, to the bit, and is back
when the round has ended; on the real clock it is gone while it works on its second request.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import gradient, samples
from algorithms.split_methods import QUICK, QUICK_THROUGHOUT, SPLIT, WITHOUT_BARRIERS, make
from lanterne.fleet import Fleet, Server
from lanterne.protocol import judged
from lanterne.runtime import InProcess, Loop, Simulator
from lanterne.testing import Problem, tiny_problem, uneven_fleet

CLIENTS, STEPS, EDGE = 4, 2, 35
METHODS = pytest.mark.parametrize("name", list(SPLIT))


class Played(NamedTuple):
    """A few rounds: what is judged after each, the simulator, and when each round ended."""

    models: list[Tensor]
    simulator: Simulator
    ends: list[float]

    def of(self, client: int, round: int) -> list[dict[str, Any]]:
        return [r for r in self.simulator.timeline if r["client"] == client and r["round"] == round]


def play(name: str, fleet: Fleet, rounds: int, problem: Problem | None = None, **options: Any) -> Played:
    problem = problem or tiny_problem(CLIENTS)
    algorithm = make(name, problem.stack, **{"local_steps": STEPS, **options})
    executor = Loop(problem.task, problem.data.x, problem.data.y)
    simulator = Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)
    state, models, ends = algorithm.init(problem.w), [], []
    for _ in range(rounds):
        state = simulator.round(algorithm, state)
        models.append(simulator.models(algorithm, state))
        ends.append(simulator.now)
    executor.close()
    return Played(models, simulator, ends)


def calm() -> Fleet:
    return replace(uneven_fleet(CLIENTS), server=Server(flops=1e5))


def with_device(fleet: Fleet, **changes: Any) -> Fleet:
    return replace(fleet, devices=[replace(fleet.devices[0], **changes), *fleet.devices[1:]])


def vanishing(name: str, rounds: int = 3, **options: Any) -> tuple[Played, float]:
    """Client 0 goes away at the moment at which its first reply is there, and comes back when the round has ended."""
    first = play(name, calm(), 1, **options).of(0, 1)[0]
    gone = with_device(calm(), available=((0.0, first["arrived"]),))
    back = play(name, gone, 1, **options).ends[0]
    fleet = with_device(calm(), available=((0.0, first["arrived"]), (back, math.inf)))
    return play(name, fleet, rounds, **options), first["arrived"]


@METHODS
def test_the_round_ends_and_the_client_is_asked_again(name: str) -> None:
    """Its upload arrived, all that came after it is lost at once, and in the next round it works like everybody."""
    played, moment = vanishing(name)
    first, *after = played.of(0, 1)
    assert (first["outcome"], first["arrived"]) == ("complete", moment)
    assert all(r["outcome"] == "lost" for r in after)
    assert played.ends[0] < 10
    assert name in WITHOUT_BARRIERS or not played.simulator.clock.running
    later = [r["outcome"] for round in (2, 3) for r in played.of(0, round)]
    assert later
    assert set(later) == {"complete"}
    assert all(bool(torch.isfinite(w).all()) for w in played.models)


@pytest.mark.parametrize("name", [n for n in SPLIT if n not in WITHOUT_BARRIERS])
def test_nobody_waits_for_it_longer_than_it_takes_to_notice(name: str) -> None:
    """The round is not longer than with the client, but for the seconds until the loss is noticed."""
    whole = play(name, calm(), 1).ends[0]
    moment = play(name, calm(), 1).of(0, 1)[0]["arrived"]
    for detection in (0.0, 5.0):
        fleet = replace(with_device(calm(), available=((0.0, moment),)), detection=detection)
        assert play(name, fleet, 1).ends[0] <= whole + STEPS * detection + 1e-9


@pytest.mark.parametrize("name", [n for n in ("splitfed_v1", "locsplitfed") if n in SPLIT])
def test_it_is_in_neither_average(name: str) -> None:
    """Both averages are over the same clients: those of a round to which it never came, weights renormalised."""
    played, _ = vanishing(name)
    without = play(name, with_device(calm(), dropout=1.0), 1)
    assert torch.equal(played.models[0], without.models[0])
    assert not torch.equal(played.models[0], play(name, calm(), 1).models[0])


@pytest.mark.parametrize("name", [n for n in ("splitfed_v2", "cse_fsl") if n in SPLIT])
def test_one_server_half_keeps_its_step_and_the_average_is_of_the_others(name: str) -> None:
    played, _ = vanishing(name)
    without, everybody = play(name, with_device(calm(), dropout=1.0), 1), play(name, calm(), 1)
    if name == "cse_fsl":  # a client's half depends on nobody there
        assert torch.equal(played.models[0][:EDGE], without.models[0][:EDGE])
    assert not torch.equal(played.models[0][:EDGE], everybody.models[0][:EDGE])
    for other in (without, everybody):
        assert not torch.equal(played.models[0][EDGE:], other.models[0][EDGE:])


@pytest.mark.parametrize("name", [n for n in ("psl", "sglr") if n in SPLIT])
def test_the_server_has_stepped_and_the_client_has_not(name: str) -> None:
    """With one batch a round: the server's step took its smashed data in; its own half is the one that it had."""
    options = {"local_steps": 1} | ({"phi": 0.0} if name == "sglr" else {})
    played, _ = vanishing(name, **options)
    everybody = play(name, calm(), 1, **options)
    assert torch.equal(played.models[0][:, EDGE:], everybody.models[0][:, EDGE:])
    assert torch.equal(played.models[0][1:], everybody.models[0][1:])
    start = tiny_problem(CLIENTS).w
    assert torch.equal(played.models[0][0, :EDGE], start[:EDGE])
    assert not torch.equal(everybody.models[0][0, :EDGE], start[:EDGE])


def test_in_psl_it_goes_on_from_where_it_was_by_hand() -> None:
    """Two rounds of plain autograd: the next step of its half is the gradient of the next batch at the old half."""
    played, _ = vanishing("psl", 2, local_steps=1)
    problem, lr = tiny_problem(CLIENTS), 0.3
    weights, halves, server = samples(problem), [problem.w[:EDGE]] * CLIENTS, problem.w[EDGE:]
    for step in range(2):
        g = [gradient(problem, torch.cat([halves[c], server]), c, step) for c in range(CLIENTS)]
        server = server - lr * sum(weights[c] * g[c][EDGE:] for c in range(CLIENTS)) / sum(weights.values())
        halves = [h if (step, c) == (0, 0) else h - lr * g[c][:EDGE] for c, h in enumerate(halves)]
    expected = torch.stack([torch.cat([half, server]) for half in halves])
    assert torch.allclose(played.models[1], expected, rtol=0, atol=1e-12)


def test_in_sl_the_ring_goes_on_with_the_half_that_was_handed_in_last() -> None:
    """Client 0 is first: the next begins with the weights of the start, and a server that has stepped once."""
    played, _ = vanishing("sl", 1)
    problem, lr = tiny_problem(CLIENTS), 0.3
    low, server = problem.w[:EDGE], problem.w[EDGE:]
    server = server - lr * gradient(problem, torch.cat([low, server]), 0, 0)[EDGE:]
    for client in range(1, CLIENTS):
        for step in range(STEPS):
            g = gradient(problem, torch.cat([low, server]), client, step)
            low, server = low - lr * g[:EDGE], server - lr * g[EDGE:]
    assert torch.allclose(played.models[0], torch.cat([low, server]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("quorum", [{"quorum": CLIENTS}, {"cut_deadline": 1e6}], ids=["quorum", "deadline"])
@pytest.mark.parametrize("name", [n for n in ("psl", "sglr", "splitfed_v2") if n in SPLIT])
def test_a_quorum_that_cannot_be_met_any_more_ends(name: str, quorum: dict[str, Any]) -> None:
    """Second batch: one of four is gone, and four are asked for. The others' smashed data are served all the same."""
    played, _ = vanishing(name, 2, **quorum)
    assert played.ends[0] < 10
    served = [r for r in played.simulator.timeline if r["handler"].startswith("serve") and r["round"] == 1]
    assert len(served) == (STEPS if name != "splitfed_v2" else STEPS * CLIENTS - 1)


def test_with_a_deadline_at_the_cut_the_server_waits_for_the_lost_no_longer() -> None:
    """Everybody is lost or there: the server goes on before the deadline."""
    played, _ = vanishing("psl", 1, cut_deadline=100.0)
    assert played.ends[0] < 10


@METHODS
def test_everybody_vanishes(name: str) -> None:
    """Nobody hands anything in: the round ends, nobody's half has moved, and everybody is back in the next one."""
    devices = list(calm().devices)
    for c in range(CLIENTS):  # one after the other: who vanishes may change when the next one is asked
        moment = play(name, replace(calm(), devices=devices), 1).of(c, 1)[0]["arrived"]
        devices[c] = replace(devices[c], available=((0.0, moment),))
    end = play(name, replace(calm(), devices=devices), 1).ends[0]
    there = [replace(d, available=(*(d.available or ()), (end + 1.0, math.inf))) for d in devices]
    played = play(name, replace(calm(), devices=there), 2)
    start = tiny_problem(CLIENTS).w
    first, second = (w.reshape(-1, len(start))[:, :EDGE] for w in played.models)
    assert torch.equal(first, start[:EDGE].expand_as(first))
    assert not torch.equal(second, start[:EDGE].expand_as(second))


# ---------------------------------------------------------------------------------------------------- the real clock
class Leaving(Loop):
    """Client 0 leaves while it works on its second request."""

    gone: set[int]
    asked = 0

    def one(self, job: Any) -> Any:
        result = super().one(job)
        if job.to == 0:
            self.asked += 1
            if self.asked == 2:
                self.gone.add(0)
        return result


@METHODS
def test_the_same_on_the_real_clock(name: str) -> None:
    """The round ends there too, and two rounds later the models are those of the virtual clock."""
    problem, gone = tiny_problem(CLIENTS), set[int]()
    algorithm = make(name, problem.stack, local_steps=STEPS)
    executor = Leaving(problem.task, problem.data.x, problem.data.y)
    executor.gone = gone
    runtime = InProcess(algorithm, executor, problem.streams, gone=gone)
    state, found = algorithm.init(problem.w), []
    try:
        for _ in range(2):
            state = runtime.round(algorithm, state)
            found.append(judged(algorithm, state, runtime.states))
            gone.clear()
    finally:
        runtime.close()
        executor.close()
    assert executor.asked > 2
    played, _ = vanishing(name, 2)
    for mine, virtual in zip(found, played.models, strict=True):
        assert bool(torch.isfinite(mine).all())
        if name in QUICK_THROUGHOUT:
            continue
        if name in QUICK:
            mine, virtual = mine[..., :EDGE], virtual[..., :EDGE]
        assert torch.allclose(mine, virtual, rtol=0, atol=1e-10)
