"""The memory of what is started but unread, and simulators that go on from a snapshot."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from lanterne.protocol import Deadline, Dispatch, Gather, Pass, Request
from lanterne.runtime import Batched, Loop, Simulator, restore, snapshot
from lanterne.testing import STORMS, simulate, tiny_problem, uneven_fleet
from lanterne.tree import digest
from runtime.laboratory import FLEET, METHODS, Lab, W, ask


@pytest.mark.parametrize("executor", [Loop, Batched])
def test_unread_replies_have_a_bound_that_changes_no_result(executor: type[Loop]) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    free, a = simulate(METHODS["fedbuff"], problem, fleet, 8, executor)
    bound, b = simulate(METHODS["fedbuff"], problem, fleet, 8, executor, unread_bytes=0)
    assert torch.allclose(free, bound, rtol=0, atol=1e-14 if executor is Batched else 0)
    assert a.timeline == b.timeline
    assert a.numerics.unread > b.numerics.unread == 0
    assert a.numerics.waves < b.numerics.waves


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("executor", [Loop, Batched])
@pytest.mark.parametrize("fleet", ["calm", "all of it"])
def test_a_restored_simulator_goes_on_to_the_bit(name: str, executor: type[Loop], fleet: str) -> None:
    problem, devices = tiny_problem(), uneven_fleet(**STORMS.get(fleet, {}))
    algorithm = METHODS[name](problem.stack)

    def fresh() -> Simulator:
        return Simulator(
            algorithm,
            devices,
            executor(problem.task, problem.data.x, problem.data.y),
            problem.streams,
            dtype=torch.float64,
        )

    simulator, state, states, snaps = fresh(), algorithm.init(problem.w), [], []
    for _ in range(6):
        state = simulator.round(algorithm, state)
        states.append(state)
        snaps.append(snapshot(simulator))
    other, resumed = fresh(), states[2]
    restore(other, snaps[2])
    other.timeline.extend(simulator.timeline[:0])
    for _ in range(3):
        resumed = other.round(algorithm, resumed)
    assert digest({"w": algorithm.evaluated(resumed)}) == digest({"w": algorithm.evaluated(state)})
    assert other.now == simulator.now
    assert dict(other.ledger) == dict(simulator.ledger)
    assert other.ledger.total == simulator.ledger.total
    assert simulator.timeline[len(simulator.timeline) - len(other.timeline) :] == other.timeline
    a, b = other.numerics.states, simulator.numerics.states
    assert {k: digest(dict(v)) for k, v in a.items()} == {k: digest(dict(v)) for k, v in b.items()}


def test_a_graph_that_is_not_finished_survives_a_snapshot() -> None:
    """A round may end while a promise is still open; the rest of it is kept."""
    problem = tiny_problem(5)

    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            a = ask(4)
            yield Dispatch([a, Request(0, "echo", {"w": a["out"]}), Request(0, "count")])
            yield Gather(Deadline(1.0))
            return state
        replies = yield Gather()
        return torch.cat([r["out"].reshape(-1) for r in replies])

    lab, found = Lab(script), []
    for resumed in (False, True):

        def make() -> Simulator:
            executor = Loop(problem.task, problem.data.x, problem.data.y)
            return Simulator(lab, FLEET, executor, problem.streams, dtype=torch.float64)

        simulator = make()
        simulator.round(lab, problem.w)
        if resumed:
            other = make()
            restore(other, snapshot(simulator))
            simulator = other
        found.append((simulator.round(lab, problem.w).tolist(), simulator.now))
    assert found[0] == found[1]
    assert found[0][0][:100] == [2.0] * 100
    assert math.isfinite(found[0][1])


def test_a_request_that_waits_keeps_everything_that_it_says() -> None:
    """Field by field: what is forgotten would be a default after the restart."""
    problem, said = tiny_problem(5), {"deadline": 50.0, "stop": "compute", "indivisible": 3, "optimiser": 7, "note": 5}
    said |= {"silent": True, "batches": range(2, 4), "passes": (Pass("forward", 0, 2, samples=3),)}

    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(4), Request(4, "echo", {"w": W}, {"static": 1}, **said)])
        yield Gather(Deadline(1.0))
        return state

    lab = Lab(script)
    first, other = (
        Simulator(lab, FLEET, Loop(problem.task, problem.data.x, problem.data.y), problem.streams, dtype=torch.float64)
        for _ in range(2)
    )
    first.round(lab, problem.w)
    restore(other, snapshot(first))
    _, waits = other.calls
    _, meant = first.calls
    for field in fields(Request):
        a, b = getattr(waits, field.name), getattr(meant, field.name)
        assert (list(a) == list(b)) if field.name in ("passes", "arrays") else (a == b), field.name
        default = getattr(Request(4, "x"), field.name)
        assert field.name == "to" or b != default, f"{field.name} has to be said to be forgotten"
