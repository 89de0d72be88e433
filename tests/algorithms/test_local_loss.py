"""Methods with an auxiliary head, by numbers 17, 18 and 23 of section 9 of the specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms.by_hand import samples
from lanterne.algorithms import CSEFSL, LocSplitFed
from lanterne.budget import Units
from lanterne.errors import ModelError
from lanterne.fleet import Device, Fleet, Server
from lanterne.protocol import Inbox, Local
from lanterne.runtime import Simulator
from lanterne.testing import Problem, simulate, tiny_cnn, tiny_problem
from lanterne.testing.problems import tiny_mlp

EDGE = tiny_mlp().edges[1]
CLIENTS, LR = 4, 0.3
DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002)
KINDS = pytest.mark.parametrize("kind", [LocSplitFed, CSEFSL])


def run(
    kind: type[Any], device: Device = DEVICE, rounds: int = 2, server: Server | None = None, **options: Any
) -> tuple[Tensor, Simulator, Problem]:
    problem = tiny_problem(CLIENTS)
    fleet = Fleet([device] * CLIENTS, server=server or Server())
    w, simulator = simulate(
        lambda s: kind(**{"stack": s, "lr": LR, "local_steps": 3, **options}), problem, fleet, rounds
    )
    return w, simulator, problem


def by_hand(problem: Problem, kind: type[Any], rounds: int, interval: int = 1) -> Tensor:
    """The user's modules and plain autograd: lower half, head and upper half of each client."""
    algorithm = kind(stack=problem.stack)
    theta = algorithm.init(problem.w).head
    head = algorithm.networks["head"]
    weights, w = samples(problem), problem.w
    one_server = kind is CSEFSL
    for round in range(rounds):
        lows, heads, highs, server = [], [], [], w[EDGE:]
        for c in range(CLIENTS):
            low, aux, high = w[:EDGE], theta, w[EDGE:]
            for step in range(3 * round, 3 * round + 3):
                rows = problem.streams.rows(c, range(step, step + 1))[0]
                x, y = problem.data.x[rows], problem.data.y[rows]
                net, small = problem.stack.load(torch.cat([low, high])), head.load(aux)
                smashed = nn.Sequential(*list(net)[:2])(x)
                mine = [*next(iter(net)).parameters(), *small.parameters()]
                found = torch.autograd.grad(nn.functional.cross_entropy(small(smashed), y), mine)
                theirs = [p for layer in list(net)[2:] for p in layer.parameters()]
                upper = nn.Sequential(*list(net)[2:])(smashed.detach())
                up = torch.autograd.grad(nn.functional.cross_entropy(upper, y), theirs)
                flat = torch.cat([g.reshape(-1) for g in found])
                low, aux = low - LR * flat[:EDGE], aux - LR * flat[EDGE:]
                high = high - LR * torch.cat([g.reshape(-1) for g in up])
            lows.append(low)
            heads.append(aux)
            highs.append(high)
        mean = lambda values: sum(weights[c] * v for c, v in enumerate(values)) / sum(weights.values())  # noqa: E731
        theta = mean(heads)
        w = torch.cat([mean(lows), server if one_server else mean(highs)])
    return w


def test_locsplitfed_by_hand() -> None:
    found, _, problem = run(LocSplitFed)
    assert torch.allclose(found, by_hand(problem, LocSplitFed, 2), rtol=0, atol=1e-12)


def test_17_clients_of_cse_fsl_do_what_those_of_locsplitfed_do() -> None:
    """Their halves do not depend on the server, nor on how often it hears of them."""
    expected = by_hand(tiny_problem(CLIENTS), LocSplitFed, 2)[:EDGE]
    for interval in (1, 2, 5):
        found, _, _ = run(CSEFSL, interval=interval)
        assert torch.allclose(found[:EDGE], expected, rtol=0, atol=1e-12)


def test_17_the_server_steps_on_every_arrival() -> None:
    """One step for the first of each `interval` batches, in order of arrival."""
    problem = tiny_problem(CLIENTS)
    devices = [replace(DEVICE, flops=DEVICE.flops / (1 + c)) for c in (2, 0, 3, 1)]
    _, simulator = simulate(lambda s: CSEFSL(stack=s, lr=LR, local_steps=5, interval=2), problem, Fleet(devices), 1)
    ups = [r for r in simulator.timeline if r["handler"] == "local"]
    served = [r for r in simulator.timeline if r["handler"] == "learn"]
    assert len(served) == 3 * CLIENTS
    arrivals = sorted(r["arrived"] for r in ups)
    starts = [r["arrived"] for r in served]
    assert starts == sorted(starts)
    assert set(starts) <= set(arrivals)


@KINDS
def test_17_and_23_nothing_comes_down_but_the_averages(kind: type[Any]) -> None:
    _, simulator, problem = run(kind, rounds=1, **({"interval": 2} if kind is CSEFSL else {}))
    books, costs = simulator.ledger.total.bytes, simulator.pricing.costs()
    head = kind(stack=problem.stack).networks["head"]
    sent = CLIENTS * (2 if kind is CSEFSL else 3) * problem.batch
    assert dict(books) == {
        "model_down": CLIENTS * 8 * EDGE,
        "aux_down": CLIENTS * 8 * head.size,
        "act_up": sent * costs[0].output,
        "labels_up": sent * 8,
        "model_up": CLIENTS * 8 * EDGE,
        "aux_up": CLIENTS * 8 * head.size,
    }


@KINDS
def test_18_a_slow_network_changes_times_alone(kind: type[Any]) -> None:
    quick, slow = replace(DEVICE, latency=0.0, up=1e9, down=1e9), replace(DEVICE, latency=0.02, up=3e3, down=5e3)
    (one, fast, _), (other, late, _) = (run(kind, device) for device in (quick, slow))
    assert torch.equal(one[:EDGE], other[:EDGE])
    assert late.now > 2 * fast.now
    if kind is LocSplitFed:
        assert torch.equal(one, other)


def test_what_a_replicas_optimiser_remembers_does_not_outlive_its_half() -> None:
    """One server half goes on with it (CSE-FSL); a replica that is given the average begins anew (LocSplitFed)."""
    problem = tiny_problem(CLIENTS)
    smashed = problem.task.predict(problem.stack.span(0, 1), problem.w[:EDGE], problem.data.x[:4])
    arrays = {"w": problem.w[EDGE:], "smashed": smashed, "labels": problem.data.y[:4]}
    remembered = {"w": problem.w[EDGE:], "m": torch.ones_like(problem.w[EDGE:])}
    local = Local(problem.data.x[None, :0], problem.data.y[None, :0], torch.tensor(0), Units(None))

    def velocity(kind: type[Any], state: dict[str, Tensor]) -> Tensor:
        method = kind(stack=problem.stack, lr=LR, momentum=0.9)
        after, _ = method.learn(problem.task, state, Inbox(arrays, {"last": False}), local)
        found: Tensor = after["m"]
        return found

    fresh = velocity(LocSplitFed, {})
    assert torch.equal(velocity(LocSplitFed, remembered), fresh)
    assert torch.allclose(velocity(CSEFSL, remembered), fresh + 0.9)


@KINDS
def test_a_slow_server_holds_nobody_up(kind: type[Any]) -> None:
    """The clients' timeline is the same, however long the server's queue."""
    times = []
    for flops in (1e9, 2e3):
        _, simulator, _ = run(kind, rounds=1, server=Server(flops=flops))
        times.append([(r["client"], r["arrived"]) for r in simulator.timeline if r["handler"] == "local"])
    assert times[0] == times[1]


@KINDS
def test_round_deadlines_leave_the_late_out_of_all_averages(kind: type[Any]) -> None:
    problem = tiny_problem(CLIENTS)
    late = Fleet([replace(DEVICE, flops=50.0), *[DEVICE] * (CLIENTS - 1)])
    gone = Fleet([replace(DEVICE, dropout=1.0), *[DEVICE] * (CLIENTS - 1)])
    found = [
        simulate(lambda s: kind(stack=s, lr=LR, local_steps=2, round_deadline=0.5), problem, fleet, 2)
        for fleet in (late, gone)
    ]
    assert torch.equal(found[0][0][:EDGE], found[1][0][:EDGE])
    assert found[0][1].now == pytest.approx(1.0)


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="'conv' head takes images"):
        LocSplitFed(stack=tiny_mlp(), head="conv")
    assert LocSplitFed(stack=tiny_cnn(), head="conv:width=4").networks["head"].size > 0
    with pytest.raises(ModelError, match="Legal cuts"):
        CSEFSL(stack=tiny_mlp(), cut="7")
