"""Who is late at the cut: dropped, or served a gradient when its smashed data come."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import gradient, samples
from algorithms.overheard import Overheard
from lanterne.algorithms import PSL, SGLR, SplitFedV2
from lanterne.budget import Units
from lanterne.fleet import Fleet, Server
from lanterne.protocol import Inbox, Local, Request
from lanterne.runtime import InProcess, Loop, Simulator
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

EDGE = tiny_mlp().edges[1]
KINDS: dict[str, Any] = {"psl": PSL, "sglr": SGLR, "splitfed_v2": SplitFedV2}
RULES: list[dict[str, Any]] = [{"quorum": 2}, {"cut_deadline": 0.006}, {"quorum": 3, "cut_deadline": 0.01}]


def run(kind: Any, rounds: int = 3, fleet: Fleet | None = None, **options: Any) -> tuple[Tensor, Simulator]:
    return simulate(lambda s: kind(stack=s, lr=0.3, **options), tiny_problem(), fleet or uneven_fleet(), rounds)


def overheard(rounds: int = 3, fleet: Fleet | None = None, **options: Any) -> tuple[Overheard, Tensor, Simulator]:
    """PSL's requests round by round, what it judges at the end, and the simulator."""
    problem = tiny_problem()
    heard = Overheard(PSL(stack=problem.stack, lr=0.3, late="serve", **options))
    heard.models = heard.algorithm.models  # type: ignore[attr-defined]
    found, simulator = simulate(lambda _: heard, problem, fleet or uneven_fleet(), rounds)
    return heard, found, simulator


def sent(heard: Overheard) -> list[Request]:
    return [q for round in heard.rounds for q in round.requests]


def sleeper(flops: float = 1e2, **changes: Any) -> Fleet:
    """Client 0 needs seconds for what the others do in milliseconds."""
    fleet = uneven_fleet()
    return replace(fleet, devices=[replace(fleet.devices[0], flops=flops, **changes), *fleet.devices[1:]])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rule", [{}, {"quorum": 6}, {"cut_deadline": 1e6}, {"quorum": 6, "cut_deadline": 1e6}])
def test_20_where_all_are_waited_for_nobody_is_late(name: str, rule: dict[str, Any]) -> None:
    options = {"local_steps": 3, "momentum": 0.5}
    (a, plain), (b, served) = run(KINDS[name], **options), run(KINDS[name], late="serve", **rule, **options)
    assert torch.equal(a, b)
    if name != "splitfed_v2" or not rule:  # V2 without a rule serves the first in its order before the last has arrived
        assert plain.now == served.now


@pytest.mark.parametrize("name", KINDS)
def test_20_who_always_misses_the_cut_might_as_well_not_be_there(name: str) -> None:
    options = {"local_steps": 3, "cut_deadline": 0.05}
    rounds = 1 if name == "splitfed_v2" else 3  # its order is drawn of those who can be reached: not who has been lost
    late, simulator = run(KINDS[name], rounds, sleeper(), **options)
    lost, _ = run(KINDS[name], rounds, sleeper(dropout=1.0), **options)
    assert torch.equal(late, lost)
    assert {r["outcome"] for r in simulator.timeline if r["client"] == 0} == {"cancelled"}
    everybody, _ = run(KINDS[name], rounds, local_steps=3)
    assert late.shape != everybody.shape or not torch.equal(late, everybody)


def test_20_the_servers_half_is_that_without_who_is_served_late() -> None:
    """Under `serve` too: the server never steps on what comes late, and nobody else notices."""
    options = {"local_steps": 3, "cut_deadline": 0.05}
    served, simulator = run(PSL, 9, sleeper(3e3), late="serve", **options)
    dropped, _ = run(PSL, 9, sleeper(), **options)
    assert torch.equal(served[1:], dropped)
    assert torch.equal(served[0, EDGE:], dropped[0, EDGE:])
    assert [r["handler"] for r in simulator.timeline].count("serve_late") >= 2
    assert not torch.allclose(served[0, :EDGE], tiny_problem().w[:EDGE], atol=1e-3)


def replayed(problem: Problem, requests: list[Request], lr: float = 0.3) -> tuple[dict[int, Tensor], Tensor, list[int]]:
    """Clients' halves, the server's, and how many versions old smashed data were that came late; by plain autograd."""
    halves, server, n = dict.fromkeys(range(6), problem.w[:EDGE]), problem.w[EDGE:], samples(problem)
    version, ages = 0, []
    for q in requests:
        if q.handler not in ("serve_all", "serve_late"):
            continue
        forwards = [q.arrays[f"smashed_{i}"].request for i in range(len(q.config["shares"]))]  # type: ignore[union-attr]
        gradients = {
            f.to: gradient(problem, torch.cat([halves[f.to], server]), f.to, f.batches.start) for f in forwards
        }
        assert q.note == version
        if q.handler == "serve_all":
            whole = sum(n[c] for c in gradients)
            server = server - lr * sum(n[c] / whole * g[EDGE:] for c, g in gradients.items())
            version += 1
        else:
            ages.append(version - forwards[0].note)
        for client, g in gradients.items():
            halves[client] = halves[client] - lr * g[:EDGE]
    return halves, server, ages


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounds", [(1, 8), (8, 1), (4, 2)])
def test_who_is_late_is_served_at_the_weights_of_now(rule: dict[str, Any], rounds: tuple[int, int]) -> None:
    """Its gradient is that at the server's current half, which stays; by hand, batches and rounds across."""
    problem = tiny_problem()
    heard, found, simulator = overheard(rounds[0], local_steps=rounds[1], **rule)
    halves, server, ages = replayed(problem, sent(heard))
    assert len(ages) > 4
    assert max(ages) > 0
    state = heard.rounds[-1].state
    under_way = {r["client"] for r in simulator.clock.under_way()} | {
        q.request.to for q in simulator.calls.values() if not q.ended
    }
    for client, model in zip(state.clients, found, strict=True):
        assert torch.allclose(model[EDGE:], server, rtol=0, atol=1e-12)
        if client not in under_way:  # the judge sees what a client holds, not what is on its way to it
            assert torch.allclose(model[:EDGE], halves[client], rtol=0, atol=1e-12), client


@pytest.mark.parametrize("rule", RULES)
def test_21_shares_sum_to_one_over_those_who_are_in_time(rule: dict[str, Any]) -> None:
    heard, _, _ = overheard(4, local_steps=3, **rule)
    shares = [q.config["shares"] for q in sent(heard) if q.handler == "serve_all"]
    assert {len(each) for each in shares} != {6}
    assert all(abs(sum(each) - 1) < 1e-12 for each in shares)
    if "cut_deadline" not in rule:  # nobody late counts for the quorum
        begun = Counter(q.batches.start for q in sent(heard) if q.handler == "forward")
        assert [len(each) for each in shares] == [min(rule["quorum"], begun[step]) for step in sorted(begun)]


@pytest.mark.parametrize("late", ["drop", "serve"])
def test_21_zero_arrivals_are_no_step_of_the_server(late: str) -> None:
    """Nobody is ever in time: the server keeps its bits. Dropped, clients do so too; served, they train against it."""
    found, _ = run(PSL, 20, cut_deadline=1e-3, late=late, local_steps=3, server_lr=0.7)
    start = tiny_problem().w
    assert torch.equal(found[:, EDGE:], start[EDGE:].expand(len(found), -1))
    assert torch.equal(found, start.expand_as(found)) == (late == "drop")


@pytest.mark.parametrize("name", ["psl", "splitfed_v2"])
@pytest.mark.parametrize("rule", RULES)
def test_nobody_is_sent_a_batch_while_it_is_at_work_on_another(name: str, rule: dict[str, Any]) -> None:
    """Nor is a late batch computed in vain, and nobody is forgotten."""
    _, simulator = run(KINDS[name], 4, late="serve", local_steps=6, **rule)
    sent_and_back = defaultdict(list)
    for r in simulator.timeline:
        if r["handler"] == "forward":
            sent_and_back[r["client"]].append((r["sent"], r["arrived"], r["outcome"]))
    assert set(sent_and_back) == set(range(6))
    for forwards in sent_and_back.values():
        forwards.sort()
        for (_, arrived, _), (following, _, _) in pairwise(forwards):
            assert arrived <= following
        if name == "psl":
            assert {outcome for _, _, outcome in forwards} == {"complete"}


def test_late_smashed_data_are_served_when_they_come() -> None:
    """Not when the batch of the others is over; and the timeline says at which version of the server."""
    _, simulator = run(PSL, 1, late="serve", quorum=2, local_steps=8)
    arrived = {r["arrived"]: r for r in simulator.timeline if r["handler"] == "forward"}
    late = [r for r in simulator.timeline if r["handler"] == "serve_late"]
    last = max(r["sent"] for r in simulator.timeline if r["handler"] == "serve_all")
    early = [r for r in late if r["sent"] <= last]  # the others come while the last are at work, and wait for that
    assert len(early) > 3
    assert all(r["sent"] in arrived for r in early)
    whose = {(arrived[r["sent"]]["client"], r["sent"]) for r in early}
    assert len(whose) == len(early)
    versions = [r["version"] for r in simulator.timeline if r["handler"] == "serve_all"]
    assert versions == list(range(8))
    ages = [r["version"] - arrived[r["sent"]]["version"] for r in early]
    assert min(ages) >= 1


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("late", ["drop", "serve"])
def test_a_deadline_ends_the_wait_though_nobody_sends_anything(name: str, late: str) -> None:
    """It is a timer: it does not need a message to be noticed."""
    fleet = replace(uneven_fleet(flops=1.0), server=Server())
    _, simulator = run(KINDS[name], 2, fleet, late=late, cut_deadline=0.25, local_steps=3)
    assert simulator.now == pytest.approx(2 * 3 * 0.25, rel=1e-12)


@pytest.mark.parametrize("late", ["drop", "serve"])
def test_a_deadline_ends_the_wait_on_the_real_clock(late: str) -> None:
    gate = threading.Event()

    class Held(Loop):
        def one(self, job: Any) -> Any:
            if job.to == 0:
                gate.wait(30)
            return super().one(job)

    problem = tiny_problem(1)
    algorithm = PSL(stack=problem.stack, late=late, cut_deadline=0.1, local_steps=2)
    executor = Held(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(algorithm, executor, problem.streams)
    begun = time.monotonic()
    state = runtime.round(algorithm, algorithm.init(problem.w))
    assert 0.2 <= time.monotonic() - begun < 10
    assert state.busy == ((0,) if late == "serve" else ())
    gate.set()
    runtime.close()
    executor.close()
    assert torch.equal(state.server, problem.w[EDGE:])


def test_v2_steps_on_what_comes_late_and_drops_it_at_the_end_of_the_round() -> None:
    """One upload, one step, whenever it comes: by hand, in the order in which the server has served."""
    problem, lr = tiny_problem(), 0.3
    heard = Overheard(SplitFedV2(stack=problem.stack, lr=lr, late="serve", quorum=2, local_steps=6))
    found, simulator = simulate(lambda _: heard, problem, sleeper(2e4), 1)
    halves, server, n, served = {}, problem.w[EDGE:], samples(problem), []
    for q in sent(heard):
        if q.handler == "serve":
            f = q.arrays["smashed"].request
            w = torch.cat([halves.get(f.to, problem.w[:EDGE]), server])
            g = gradient(problem, w, f.to, f.batches.start)
            halves[f.to], server = w[:EDGE] - lr * g[:EDGE], server - lr * g[EDGE:]
            served.append(f)
    mean = sum(n[c] * half for c, half in halves.items()) / sum(n[c] for c in halves)
    assert torch.allclose(found, torch.cat([mean, server]), rtol=0, atol=1e-12)
    steps = [f.batches.start for f in served]
    assert steps != sorted(steps)  # somebody's came after a later batch of others
    assert {r["outcome"] for r in simulator.timeline if r["handler"] == "forward"} == {"complete", "cancelled"}


def test_a_pooled_gradient_is_weighted_late_too() -> None:
    """As one of all that are invited: `delta_i g_i`; and the server's half keeps its bits."""
    problem, n = tiny_problem(), samples(tiny_problem())
    heard, _, _ = overheard(2, quorum=2, local_steps=4, cut_gradient="pooled")
    late = [q for q in sent(heard) if q.handler == "serve_late"]
    assert late
    for q in late:
        assert q.config["shares"] == (n[q.arrays["smashed_0"].request.to] / sum(n.values()),)  # type: ignore[union-attr]
    smashed = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inbox = Inbox({"smashed_0": smashed, "labels_0": problem.data.y[:4]}, {"cuts": (1,), "shares": (0.25,)})
    local = Local(smashed, smashed, torch.tensor(0), Units(None))
    found = {}
    for kind in ("per_client", "pooled"):
        server = PSL(stack=problem.stack, cut_gradient=kind)
        state, sent_back = server.serve_late(problem.task, {"w": problem.w[EDGE:]}, inbox, local)
        assert torch.equal(state["w"], problem.w[EDGE:])
        found[kind] = sent_back["gradient_0"]
    assert torch.equal(found["pooled"], 0.25 * found["per_client"])
    assert found["pooled"].any()
