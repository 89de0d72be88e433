"""The virtual clock against closed forms and brute force, and what happens when things go wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from lanterne.algorithms import FedAvg
from lanterne.errors import FleetError, ProtocolError
from lanterne.fleet import Device, Fleet, Server
from lanterne.learn import local_sgd
from lanterne.models import full
from lanterne.protocol import All, Deadline, Dispatch, First, Gather, Pass, Request, exchange
from lanterne.runtime import Loop, Simulator
from lanterne.testing import STORMS, Audit, check_runtimes_match, simulate, tiny_cnn, tiny_problem, uneven_fleet
from runtime.laboratory import FLEET, METHODS, Lab, W, ask, laboratory, simulator_of
from runtime.toys import ToyOverlap, ToySplit


# ---------------------------------------------------------------------------------------------------- executors
@pytest.mark.parametrize("name", ["split", "overlap"])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_executors_and_runtimes_agree_on_chains_of_promises(name: str, net: str) -> None:
    problem = tiny_problem(stack=tiny_cnn()) if net == "cnn" else tiny_problem()
    check_runtimes_match(METHODS[name], problem=problem)


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_declared_is_done(name: str) -> None:
    """A split client that goes back computes its forward pass again, for its state is tensors; no other handler may."""
    executor = Loop if "split" in name else Audit
    for changes in ({}, *STORMS.values()):
        found, simulator = simulate(METHODS[name], tiny_problem(stack=tiny_cnn()), uneven_fleet(**changes), 3, executor)
        assert bool(torch.isfinite(found).all())
        assert not [c for c in simulator.ledger.total.bytes if c.startswith("other")]


def test_split_training_is_training_the_whole() -> None:
    """One client, one replica: both halves make the steps of the unsplit model with the same optimiser."""
    problem = tiny_problem(1)
    found, _ = simulate(lambda s: ToySplit(s, steps=3, momentum=0.0), problem, uneven_fleet(1), 1)
    rows = torch.from_numpy(problem.streams.rows(0, range(3)))
    expected, _ = local_sgd(
        problem.task, full(problem.stack), problem.w, problem.data.x[rows], problem.data.y[rows], 0.3
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------------------- time
@pytest.mark.parametrize("tau", [1, 2, 4, 8, 16, 64])
def test_overlap_follows_from_the_flow_of_data(tau: int) -> None:
    """A round takes max(a + tau s, b) + s + d: act, tau steps beside the client's probe, score, the way down."""
    problem = tiny_problem(1)
    fleet = Fleet([Device(flops=2e4, up=3e4, down=5e4, latency=0.002)], server=Server(flops=1e5))
    _, simulator = simulate(lambda s: ToyOverlap(s, tau=tau), problem, fleet, 1)
    costs, batch, d = simulator.pricing.costs(), problem.batch, fleet.devices[0]
    forward = costs[0].forward * batch / d.flops
    act = costs[0].output * batch / d.up + 2 * d.latency
    down = 8 * problem.stack.edges[1] / d.down
    step = sum(c.forward for c in costs[1:]) * batch / 1e5
    a = down + forward + act
    b = a + forward + act - d.latency  # the second request brings nothing: it has been there since the start
    end = max(a + tau * step, b) + step + 2 * d.latency + 8 / d.down + 8 * problem.stack.edges[1] / d.up
    assert simulator.now == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("machines", [1, 2, 3])
def test_replicas_on_shared_machines_queue_by_readiness(machines: int) -> None:
    problem = tiny_problem()
    fleet = replace(uneven_fleet(), server=Server(flops=5e3, machines=machines))
    _, simulator = simulate(lambda s: ToySplit(s, steps=1), problem, fleet, 1)
    records = [r for r in simulator.timeline if r["handler"] == "serve"]
    ready = {
        r["client"]: next(
            f["arrived"]
            for f in simulator.timeline
            if f"server:{f['client']}" == r["client"] and f["handler"] == "forward"
        )
        for r in records
    }
    free = [0.0] * machines
    for r in sorted(records, key=lambda r: (ready[r["client"]], r["client"])):
        lane = int(r["client"].split(":")[1]) % machines
        start = max(ready[r["client"]], free[lane])
        assert r["start"] == pytest.approx(start, rel=1e-12)
        free[lane] = r["arrived"]
    alone, _ = simulate(lambda s: ToySplit(s, steps=1), problem, uneven_fleet(), 1)
    shared, _ = simulate(lambda s: ToySplit(s, steps=1), problem, fleet, 1)
    assert torch.equal(alone, shared)


def test_the_ledger_is_the_closed_form() -> None:
    problem, rounds, steps = tiny_problem(), 3, 2
    n = problem.stack.size
    _, simulator = simulate(lambda s: FedAvg(stack=s, local_steps=steps), problem, uneven_fleet(), rounds)
    total = simulator.ledger.total
    assert total.bytes == {"model_down": 6 * rounds * 8 * n, "model_up": 6 * rounds * 8 * n}
    costs = simulator.pricing.costs()
    per_step = sum(c.forward + c.weight_gradient + c.input_gradient for c in costs) - costs[0].input_gradient
    assert total.flops == pytest.approx(6 * rounds * steps * 4 * per_step, rel=1e-12)
    assert total.busy == pytest.approx(sum(r["arrived"] - r["start"] for r in simulator.timeline), rel=1e-12)
    assert total.static == 2 * 8 * n
    assert total.wasted == total.flops_wasted == 0
    _, split = simulate(lambda s: ToySplit(s, steps=1), problem, uneven_fleet(), 1)
    act, edge = 6 * 4 * 5 * 8, problem.stack.edges[1]
    assert split.ledger.total.bytes == {
        "model_down": 6 * 8 * edge, "act_up": act, "labels_up": 6 * 4 * 8, "grad_down": act, "model_up": 6 * 8 * edge,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- a laboratory
def test_replies_come_in_order_of_dispatch_with_their_times() -> None:
    def script(state: Any, cohort: Any) -> Any:
        replies = yield from exchange([ask(c) for c in (3, 0, 4)])
        assert [(r.request.to, r.at, r.outcome) for r in replies] == [
            (3, 4.0, "complete"),
            (0, 1.0, "complete"),
            (4, 5.0, "complete"),
        ]
        again = yield from exchange([ask(c) for c in (1, 2)])
        assert [(r.at, r.seconds) for r in again] == [(7.0, 2.0), (8.0, 3.0)]  # of the clock, and since the dispatch
        return state

    assert laboratory(script, FLEET).now == 8.0


def test_first_and_deadline_and_what_is_late() -> None:
    def script(state: Any, cohort: Any) -> Any:
        requests = [ask(c) for c in range(5)]
        yield Dispatch(requests)
        first = yield Gather(First(2))
        assert [r.request.to for r in first] == [0, 1]
        by_then = yield Gather(Deadline(1.5))
        assert [r.request.to for r in by_then] == [2]
        nothing = yield Gather(Deadline(0.25))
        assert nothing == []
        rest = yield Gather(Deadline(0.5), late="cancel")
        assert [r.request.to for r in rest] == [3]
        assert (yield Gather(All())) == []
        return state

    simulator = laboratory(script, FLEET)
    assert simulator.now == 4.25
    assert [(r["client"], r["outcome"], r["arrived"]) for r in simulator.timeline][-1] == (4, "cancelled", 4.25)
    assert simulator.ledger[4].wasted == 4.25
    assert simulator.ledger[4].bytes == {"model_down": 680}  # its download of 5 s was cut off after 4.25


def test_first_waits_no_longer_than_it_is_told() -> None:
    def script(state: Any, cohort: Any) -> Any:
        requests = [ask(c) for c in range(5)]
        yield Dispatch(requests)
        early = yield Gather(First(4, within=2.5), requests)
        assert ([r.request.to for r in early], cohort_now()) == ([0, 1], 2.5)
        both = yield Gather(First(2, within=2.5), requests)
        assert ([r.request.to for r in both], cohort_now()) == ([2, 3], 4.0)
        return state

    simulator = simulator_of(Lab(script), FLEET)

    def cohort_now() -> float:
        return simulator.now

    simulator.round(Lab(script), W)
    assert simulator.now == 4.0


def test_a_cancelled_call_is_never_computed_and_takes_its_chain_along() -> None:
    seen: list[str] = []

    class Spy(Loop):
        def one(self, job: Any) -> Any:
            seen.append(f"{job.handler} {job.to}")
            return super().one(job)

    def script(state: Any, cohort: Any) -> Any:
        a, b = ask(4), ask(0)
        c = Request(1, "echo", {"w": a["out"]})
        d = Request(2, "echo", {"w": c["out"]})
        yield Dispatch([a, b, c, d])
        replies = yield Gather(Deadline(2.0), [d], late="cancel")
        assert replies == []
        (rest,) = yield Gather()
        assert rest.request is b
        return state

    simulator = laboratory(script, FLEET, Spy)
    assert seen == ["echo 0"]
    assert not simulator.calls
    assert not simulator.clock.events or all(call.ended for *_, call in simulator.clock.events)


def test_cancelling_takes_back_state_that_was_computed_ahead() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(0), Request(4, "count", {}, passes=[]), ask(4), Request(4, "count")])
        yield Gather(First(1))  # computes all that has started
        yield Gather(Deadline(0.5), late="cancel")
        (again,) = yield from exchange([Request(4, "count")])
        assert again["out"].item() == 2.0
        return state

    laboratory(script, FLEET)


def test_a_call_that_takes_in_what_was_lost_is_lost() -> None:
    fleet = replace(
        FLEET, devices=[replace(d, dropout=float(c == 1)) for c, d in enumerate(FLEET.devices)], detection=0.5
    )

    def script(state: Any, cohort: Any) -> Any:
        a = ask(1)
        b = Request(2, "echo", {"w": a["out"]})
        c, after = ask(3), ask(2)  # what comes after a lost call at its address would find a state that never was
        yield Dispatch([a, b, c, after])
        replies = yield Gather()
        assert [(r.request, r.outcome) for r in replies] == [(b, "lost"), (c, "complete"), (after, "lost")]
        (lost,) = yield Gather(of=[a])
        assert lost.outcome == "lost"
        (late,) = yield from exchange([Request(3, "echo", {"w": a["out"]})])
        assert late.outcome == "lost"
        return state

    laboratory(script, fleet)


def test_refusals_say_why() -> None:
    def script(state: Any, cohort: Any) -> Any:
        (reply,) = yield from exchange(
            [Request(0, "echo", {"w": W}, passes=[Pass("forward", 0, 3), Pass("backward", 0, 3)])]
        )
        assert reply.outcome == "refused"
        assert "bytes of memory" in str(reply.error)
        assert not reply.arrays
        return state

    laboratory(script, Fleet([Device(memory=100.0)]))


def test_a_gather_ends_when_everybody_is_lost() -> None:
    def script(state: Any, cohort: Any) -> Any:
        for rule in (All(), First(3), Deadline(100.0)):
            replies = yield from exchange([ask(c) for c in range(5)], rule)
            assert [r.outcome for r in replies] == ["lost"] * 5
        return state

    laboratory(script, replace(FLEET, devices=[replace(d, dropout=1.0) for d in FLEET.devices]))


def test_clients_leave_and_come_back() -> None:
    times = ((0.0, 0.5), (2.0, 9.0))
    fleet = Fleet([Device(down=800.0, available=times), Device(down=800.0)])
    seen: list[list[int]] = []

    def script(state: Any, cohort: Any) -> Any:
        seen.append(list(cohort.clients))
        replies = yield from exchange([ask(c) for c in cohort.clients])
        assert [r.outcome for r in replies] == (["lost", "complete"] if len(seen) == 1 else ["complete"] * len(replies))
        return state

    lab = Lab(script)
    simulator = simulator_of(lab, fleet)
    for _ in range(3):
        simulator.round(lab, W)
    assert seen == [[0, 1], [1], [0, 1]]


def test_a_client_that_was_lost_comes_back() -> None:
    fleet = replace(
        FLEET,
        devices=[replace(d, dropout=float(c == 4)) for c, d in enumerate(FLEET.devices)],
        rejoin=10.0,
        detection=1.0,
    )
    seen: list[tuple[float, bool, list[str]]] = []

    def script(state: Any, cohort: Any) -> Any:
        there = 4 in cohort.clients
        replies = yield from exchange([ask(0), ask(4)] if there else [ask(0)])
        seen.append((simulator.now, there, [r.outcome for r in replies]))
        return state

    lab = Lab(script)
    simulator = simulator_of(lab, fleet)
    for _ in range(12):
        simulator.round(lab, W)
    lost = seen[0][0] - 1.0
    assert seen[0][1:] == (True, ["complete", "lost"])
    assert 0.0 <= lost < 5.0
    for before, now in itertools.pairwise(seen):
        assert now[1] == (before[0] >= lost + 10.0)
        if now[1]:
            break
    else:
        pytest.fail("the client never came back")


def test_time_passes_until_somebody_is_there_and_ends_when_nobody_ever_is() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield from exchange([ask(0)])
        return state

    assert laboratory(script, Fleet([Device(down=800.0, available=((3.0, 9.0),))])).now == 4.0
    with pytest.raises(FleetError, match="ever be reached again"):
        laboratory(script, Fleet([Device(available=())]))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda s, c: (yield Dispatch([Request(0, "ecko")])), "There is no handler 'ecko'"),
        (lambda s, c: (yield Dispatch([ask(99)])), "There is no client 99"),
        (lambda s, c: (yield Gather(of=[ask(0)])), "gathered but never dispatched"),
        (lambda s, c: (yield Dispatch([Request(0, "echo", {"w": ask(1)["out"]})])), "not dispatched in this round"),
        (
            lambda s, c: (yield Dispatch([ask(0, passes=[Pass("forward", 0, 9)])])) or (yield Gather()),
            "not a pass over a model",
        ),
        (
            lambda s, c: (yield Dispatch([ask(0, handler="look")])) or (yield Gather()),
            "'look' cannot run on shapes alone",
        ),
    ],
)
def test_breaches_of_the_protocol_are_named(script: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        laboratory(script, FLEET)


def test_work_that_nobody_reads_is_wasted_once() -> None:
    """A partial reply that is never gathered: its interrupted end was counted as lost already."""
    work = [Pass("forward", 0, 3), Pass("backward", 0, 3)]
    problem = tiny_problem()

    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([Request(c, "echo", {"w": W}, passes=work, deadline=0.04) for c in range(6)])
        yield Gather(Deadline(1.0), of=[])
        (after,) = yield from exchange([Request(0, "count")])
        assert after.usable
        return state

    lab = Lab(script)
    executor = Loop(problem.task, problem.data.x, problem.data.y)
    simulator = Simulator(lab, uneven_fleet(), executor, problem.streams, dtype=torch.float64)
    simulator.round(lab, problem.w)
    executor.close()
    for account in simulator.ledger.values():
        assert account.wasted <= account.busy * (1 + 1e-12)
    assert simulator.ledger[3].wasted == pytest.approx(simulator.ledger[3].busy, rel=1e-12)


def test_a_forward_pass_alone_holds_its_output() -> None:
    _, simulator = simulate(METHODS["fedavg"], tiny_problem(), uneven_fleet(), 1)
    costs, batch = simulator.pricing.costs(), 4
    assert simulator.pricing.memory([Pass("forward", 0, 1)], 0).working == costs[0].output * batch
    assert simulator.pricing.memory([Pass("forward", 0, 2)], 0).working == (costs[0].output + costs[1].output) * batch
