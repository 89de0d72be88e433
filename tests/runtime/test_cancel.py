"""Who is ended with whom: the same on the virtual clock and on the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lanterne.fleet import Device, Fleet
from lanterne.protocol import All, Deadline, Dispatch, First, Gather, Pass, Request, exchange
from lanterne.runtime import Batched, InProcess, Loop, Simulator, restore, snapshot
from lanterne.testing import tiny_problem
from runtime.laboratory import FLEET, Lab, W, ask, laboratory, simulator_of

FORWARD = Pass("forward", 0, 3)
Script = Callable[[Any, Any], Any]


class Patient(Loop):
    """The real clock's turn to be slow: client c needs c + 1 units of time for whatever it is asked."""

    unit = 0.15

    def one(self, job: Any) -> Any:
        time.sleep(self.unit * (job.to + 1))
        return super().one(job)


def on_both(script: Callable[[float], Script], rounds: int = 1) -> list[Any]:
    """The weights that a script ends with, on the virtual clock (a unit is a second) and on the real one."""
    problem, found = tiny_problem(5), []
    slow = replace(FLEET, devices=[Device(latency=(c + 1) / 2) for c in range(5)])
    for real in (False, True):
        lab = Lab(script(Patient.unit if real else 1.0))
        executor = (Patient if real else Loop)(problem.task, problem.data.x, problem.data.y)
        runtime: Any = (
            InProcess(lab, executor, problem.streams)
            if real
            # Nothing is computed before it is needed, so that order is not right by accident.
            else Simulator(lab, slow, executor, problem.streams, dtype=torch.float64, unread_bytes=0)
        )
        state: Any = problem.w
        for _ in range(rounds):
            state = runtime.round(lab, state)
        found.append(state)
        if real:
            runtime.close()
        executor.close()
    return found


def test_an_earlier_request_at_the_address_goes_on() -> None:
    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            wanted, given_up = ask(2), ask(2)
            yield Dispatch([wanted, given_up])
            nothing = yield Gather(Deadline(1.5 * unit), [given_up], late="cancel")
            (reply,) = yield Gather()
            return [len(nothing), reply.request is wanted, reply.outcome]

        return run

    assert on_both(script) == [[0, True, "complete"]] * 2


def test_a_silent_request_ends_with_what_it_prepares() -> None:
    """Nobody waits for it, and when the request behind it is given up it does not run either."""

    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            if cohort.round == 0:
                first = ask(3)
                put = Request(2, "put", {"w": first["out"]}, silent=True)
                fetch = Request(2, "count")
                yield Dispatch([first, put, fetch])
                nothing = yield Gather(Deadline(2.0 * unit), [fetch], late="cancel")
                rest = yield Gather(All())
                return [len(nothing), len(rest)]
            (reply,) = yield from exchange([Request(2, "count")])
            return [*state, reply["out"].item()]

        return run

    assert on_both(script, rounds=2) == [[0, 0, 1.0]] * 2


def test_a_silent_request_is_not_waited_for_and_still_changes_the_state() -> None:
    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            if cohort.round == 0:
                yield Dispatch([Request(1, "put", {"w": W + 1.0}, silent=True), ask(0)])
                replies = yield Gather()
                return [r.request.to for r in replies]
            (reply,) = yield from exchange([Request(1, "count")])
            return [*state, reply["out"].item()]

        return run

    assert on_both(script, rounds=2) == [[0, 101.0]] * 2


def test_what_is_in_flight_before_a_cancelled_request_still_comes_before_the_next() -> None:
    """The state chain of an address survives a cancelled link, across rounds too."""

    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            if cohort.round == 0:
                yield Dispatch([Request(1, "count"), ask(1)])
                yield Gather(Deadline(0.5 * unit), late="keep")
                late = ask(1)
                yield Dispatch([late])
                yield Gather(Deadline(0.1 * unit), [late], late="cancel")
                return []
            (reply,) = yield from exchange([request := Request(1, "count")])
            assert reply.request is request
            return [reply["out"].item()]

        return run

    assert on_both(script, rounds=2) == [[2.0]] * 2


# ------------------------------------------------------------------------------------------------ after a restart
@pytest.mark.parametrize("resumed", [False, True])
def test_state_computed_ahead_is_taken_back_after_a_restart(resumed: bool) -> None:
    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            yield from exchange([Request(4, "count")])
            yield Dispatch([ask(0), Request(4, "count", {"w": W})])
            yield Gather(First(1))  # computes all that has started
            return state
        if cohort.round == 1:
            yield Gather(Deadline(0.01), late="cancel")
        (again,) = yield from exchange([Request(4, "count")])
        return again["out"].reshape(1)

    assert _three_rounds(script, resumed, after=1).item() == 3.0


@pytest.mark.parametrize("resumed", [False, True])
def test_a_queue_at_a_lane_survives_a_restart(resumed: bool) -> None:
    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            # Two replicas of one machine: the second queues behind the first, though neither needs the other.
            yield Dispatch([Request(("server", r), "echo", {"w": W + r}, passes=[FORWARD]) for r in (0, 1)])
            yield Gather(Deadline(1e-3))
            return state
        replies = yield Gather()
        return torch.tensor([r["out"][0].item() for r in replies] or state.tolist(), dtype=torch.float64)

    assert _three_rounds(script, resumed, after=1).tolist() == [1.0, 2.0]


def _three_rounds(script: Script, resumed: bool, after: int) -> Any:
    lab, state = Lab(script), W
    fleet = replace(FLEET, server=replace(FLEET.server, flops=1e3, machines=1))
    simulator = simulator_of(lab, fleet)
    for r in range(3):
        state = simulator.round(lab, state)
        if resumed and r + 1 == after:
            other = simulator_of(lab, fleet)
            restore(other, snapshot(simulator))
            simulator = other
    return state


# ------------------------------------------------------------------------------------------------ executors
def test_calls_of_other_configuration_are_not_stacked() -> None:
    def script(state: Any, cohort: Any) -> Any:
        replies = yield from exchange([Request(c, "scale", {"w": W + c}, {"by": 10.0 * (c % 2)}) for c in range(4)])
        assert [r["out"][0].item() for r in replies] == [0.0, 11.0, 2.0, 13.0]
        return state

    laboratory(script, Fleet([Device() for _ in range(4)]), Batched)
