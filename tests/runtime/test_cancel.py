"""Who is ended with whom: the same on the virtual clock and on the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from lanterne.errors import ProtocolError
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


def on_both(script: Callable[[float], Script], rounds: int = 1, gone: frozenset[int] = frozenset()) -> list[Any]:
    """What a script ends with, on the virtual clock (a unit is a second) and on the real one."""
    problem, found = tiny_problem(5), []
    slow = replace(FLEET, devices=[Device(latency=(c + 1) / 2, dropout=float(c in gone)) for c in range(5)])
    for real in (False, True):
        lab = Lab(script(Patient.unit if real else 1.0))
        executor = (Patient if real else Loop)(problem.task, problem.data.x, problem.data.y)
        runtime: Any = (
            InProcess(lab, executor, problem.streams, gone=set(gone))
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


def test_what_an_earlier_round_began_goes_on() -> None:
    """Only what was dispatched in this round for the cancelled request's sake ends with it."""

    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            if cohort.round == 0:
                slow = ask(2)
                yield Dispatch([slow])
                yield Gather(Deadline(0.2 * unit))
                return [slow]
            if cohort.round == 1:
                taker = Request(0, "echo", {"w": state[0]["out"]})
                yield Dispatch([taker])
                yield Gather(Deadline(0.2 * unit), [taker], late="cancel")
                (reply,) = yield Gather(of=state)
                return [reply.outcome]
            return state

        return run

    assert on_both(script, rounds=2) == [["complete"]] * 2


def test_a_source_that_others_take_in_goes_on() -> None:
    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            source = ask(2)
            wanted, given_up = (Request(c, "echo", {"w": source["out"]}) for c in (0, 1))
            yield Dispatch([source, wanted, given_up])
            yield Gather(Deadline(0.5 * unit), [given_up], late="cancel")
            (reply,) = yield Gather()
            return [reply.request is wanted, reply.outcome]

        return run

    assert on_both(script) == [[True, "complete"]] * 2


@pytest.mark.parametrize("across", [False, True])
def test_a_link_that_is_lost_at_once_does_not_let_the_next_overtake(across: bool) -> None:
    """The state that a request finds is that of all that was dispatched before it, however late that begins."""

    def script(unit: float) -> Script:
        def run(state: Any, cohort: Any) -> Any:
            if cohort.round == 0:
                bad, slow = ask(1), ask(2)
                yield from exchange([bad])
                yield Dispatch([slow, Request(0, "put", {"w": slow["out"]}), Request(0, "echo", {"w": bad["out"]})])
                if across:
                    return []
            (reply,) = yield from exchange([Request(0, "count")])
            return [reply["out"].item()]

        return run

    assert on_both(script, rounds=2 if across else 1, gone=frozenset({1})) == [[101.0]] * 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda s, c: (yield Dispatch([r := ask(0), r])), "dispatched twice"),
        (lambda s, c: (yield Gather(of=[ask(0)])), "gathered but never dispatched"),
        (lambda s, c: (yield Dispatch([Request(0, "echo", {"w": ask(1)["out"]})])), "not dispatched in this round"),
        (lambda s, c: (yield Dispatch([ask(99)])), "There is no client 99"),
        (lambda s, c: (yield Dispatch([Request(0, "ecko")])), "There is no handler 'ecko'"),
        (lambda s, c: (yield Dispatch([Request(("server", 0), "count", deadline=1.0)])), "only devices are cut off"),
    ],
)
def test_both_clocks_refuse_the_same(script: Script, message: str) -> None:
    problem, lab = tiny_problem(5), Lab(script)
    executor = Loop(problem.task, problem.data.x, problem.data.y)
    real = InProcess(lab, executor, problem.streams)
    for runtime in (simulator_of(lab, FLEET), real):
        with pytest.raises(ProtocolError, match=message):
            runtime.round(lab, W)
    real.close()
    executor.close()


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


@pytest.mark.parametrize("resumed", [False, True])
def test_a_cancelled_call_in_a_queue_does_not_stop_a_restart(resumed: bool) -> None:
    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            a, b = (Request(("server", r), "echo", {"w": W + r}, passes=[FORWARD]) for r in (0, 1))
            yield Dispatch([a, b])
            yield Gather(Deadline(1e-3), [b], late="cancel")
            return state
        replies = yield Gather()
        return torch.tensor([r["out"][0].item() for r in replies] or state.tolist(), dtype=torch.float64)

    assert _three_rounds(script, resumed, after=1).tolist() == [1.0]


def test_what_a_request_is_survives_a_restart() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(3, silent=True, optimiser=5, stop="compute", deadline=90.0)])
        return state

    lab = Lab(script)
    simulator, other = simulator_of(lab, FLEET), simulator_of(lab, FLEET)
    simulator.round(lab, W)
    restore(other, snapshot(simulator))
    (before,), (after,) = simulator.calls, other.calls
    names = [f.name for f in fields(Request) if f.name not in ("arrays", "passes")]
    assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]
    assert after.silent


# ------------------------------------------------------------------------------------------------ executors
def test_calls_of_other_configuration_are_not_stacked() -> None:
    def script(state: Any, cohort: Any) -> Any:
        replies = yield from exchange([Request(c, "scale", {"w": W + c}, {"by": 10.0 * (c % 2)}) for c in range(4)])
        assert [r["out"][0].item() for r in replies] == [0.0, 11.0, 2.0, 13.0]
        return state

    laboratory(script, Fleet([Device() for _ in range(4)]), Batched)
