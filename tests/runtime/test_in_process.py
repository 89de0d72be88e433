"""The real clock: the same definitions, real threads, a backward pass that really stops."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from lanterne.algorithms import Drop, FedAvg, FedBuff, Salf
from lanterne.budget import Clock
from lanterne.errors import HandlerError, ProtocolError
from lanterne.protocol import All, Deadline, Dispatch, First, Gather, Request, exchange
from lanterne.runtime import InProcess, Loop
from lanterne.testing import run_in_process, simulate, tiny_problem, uneven_fleet
from runtime.laboratory import Lab


def test_salf_with_all_the_time_is_fedavg_bit_for_bit() -> None:
    problem = tiny_problem()
    for steps in (1, 3):
        expected, _ = simulate(lambda s, k=steps: FedAvg(stack=s, lr=0.3, local_steps=k), problem, uneven_fleet(), 3)
        found = run_in_process(
            lambda s, k=steps: Salf(stack=s, lr=0.3, local_steps=k, deadline=1e6, p="zero"), problem, 3
        )
        assert torch.equal(found, expected)


def test_salf_without_time_changes_nothing() -> None:
    problem = tiny_problem()
    assert torch.equal(run_in_process(lambda s: Salf(stack=s, lr=0.3, deadline=1e-9), problem, 3), problem.w)


def test_salf_really_stops_and_sends_what_it_reached() -> None:
    """The clock runs out after as many blocks as the test decides; the reply is that suffix of the full gradient."""
    problem, depths = tiny_problem(3), {0: 3, 1: 1, 2: 0}

    class Slow(Loop):
        def one(self, job: Any) -> Any:
            left = [3 + depths[job.to]]

            def allows() -> bool:
                left[0] -= 1
                return left[0] >= 0

            return super().one(job._replace(budget=Clock(allows)))

    algorithm = Salf(stack=problem.stack, lr=0.3, deadline=100.0, rule="cond", weights="equal")
    executor = Slow(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(algorithm, executor, problem.streams)
    state = runtime.round(algorithm, algorithm.init(problem.w))
    runtime.close()
    executor.close()
    delta = []
    for c in range(3):
        rows = torch.from_numpy(problem.streams.rows(c, range(1)))[0]
        view = problem.stack.span(0, 3)
        delta.append(-0.3 * problem.task.gradient(view, problem.w, problem.data.x[rows], problem.data.y[rows]))
    edges, expected = problem.stack.edges, problem.w.clone()
    expected[: edges[2]] += delta[0][: edges[2]]
    expected[edges[2] :] += (delta[0][edges[2] :] + delta[1][edges[2] :]) / 2
    assert torch.allclose(state.w, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("grace", [5.0, 0.0])
def test_a_straggler_is_heard_when_its_deadline_is_the_servers(grace: float) -> None:
    """Both clocks end at the same moment: a device that stops then is heard a unit later, and must not be given up."""
    problem = tiny_problem(2)

    class Slow(Loop):
        def one(self, job: Any) -> Any:
            def allows(clock: Any = job.budget) -> bool:
                time.sleep(0.15 if job.to else 0.0)
                return bool(clock.allows())

            return super().one(job._replace(budget=Clock(allows)))

    algorithm = Salf(stack=problem.stack, lr=0.3, deadline=0.75, rule="cond", p="zero", weights="equal")
    executor = Slow(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(algorithm, executor, problem.streams, grace=grace)
    state = runtime.round(algorithm, algorithm.init(problem.w))
    runtime.close()
    executor.close()
    moved = state.w - problem.w
    rows = torch.from_numpy(problem.streams.rows(0, range(1)))[0]
    view = problem.stack.span(0, 3)
    alone = -0.3 * problem.task.gradient(view, problem.w, problem.data.x[rows], problem.data.y[rows])
    edges = problem.stack.edges
    # Client 1 goes forward and gets one block back: the last block is a mean of two, the first is client 0's.
    assert torch.allclose(moved[: edges[1]], alone[: edges[1]], rtol=0, atol=1e-15)
    assert torch.allclose(moved[edges[2] :], alone[edges[2] :], rtol=0, atol=1e-9) == (grace == 0.0)


def test_asynchronous_methods_run() -> None:
    found = run_in_process(lambda s: FedBuff(stack=s, lr=0.3, buffer=2), tiny_problem(), 5)
    assert bool(torch.isfinite(found).all())


def laboratory(script: Any, **options: Any) -> InProcess:
    problem = tiny_problem(4)
    lab, executor = Lab(script), Loop(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(lab, executor, problem.streams, **options)
    try:
        runtime.round(lab, problem.w)
    finally:
        runtime.close()
        executor.close()
    return runtime


W = torch.zeros(5, dtype=torch.float64)


def ask(client: int, handler: str = "echo") -> Request:
    return Request(client, handler, {"w": W} if handler != "count" else {})


def test_a_deadline_ends_the_wait_and_cancels_the_chain() -> None:
    gate = threading.Event()

    class Held(Loop):
        def one(self, job: Any) -> Any:
            if job.to == 0:
                gate.wait(10)
            return super().one(job)

    def script(state: Any, cohort: Any) -> Any:
        a, b = ask(0), ask(1)
        after = Request(2, "echo", {"w": a["out"]})
        begun = time.monotonic()
        yield Dispatch([a, b, after])
        replies = yield Gather(Deadline(0.2), [b, after], late="cancel")
        assert [r.request for r in replies] == [b]
        assert 0.15 < time.monotonic() - begun < 5
        assert 0 < replies[0].seconds < time.monotonic() - begun
        assert replies[0].seconds < replies[0].at
        gate.set()
        assert (yield Gather(All())) == []
        return state

    problem = tiny_problem(4)
    lab, executor = Lab(script), Held(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(lab, executor, problem.streams)
    runtime.round(lab, problem.w)
    runtime.close()
    executor.close()
    assert 0 not in runtime.states or runtime.states[0] == {}


def test_first_and_who_has_left() -> None:
    gone = {2}

    def script(state: Any, cohort: Any) -> Any:
        assert list(cohort.clients) == [0, 1, 3]
        replies = yield from exchange([ask(c) for c in range(4)], First(4))
        assert [r.outcome for r in replies] == ["complete", "complete", "lost", "complete"]
        chain = ask(2)
        replies = yield from exchange([chain, Request(1, "echo", {"w": chain["out"]})])
        assert [r.outcome for r in replies] == ["lost", "lost"]
        return state

    laboratory(script, gone=gone)


def test_state_chains_through_an_address() -> None:
    def script(state: Any, cohort: Any) -> Any:
        replies = yield from exchange([ask(1, "count") for _ in range(5)])
        assert [r["out"].item() for r in replies] == [1, 2, 3, 4, 5]
        return state

    laboratory(script)


@pytest.mark.parametrize("on_error", ["raise", "fail"])
def test_errors_surface_or_become_replies(on_error: str) -> None:
    class Faulty(Lab):
        def echo(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            raise ValueError("out of paper")

    def script(state: Any, cohort: Any) -> Any:
        (reply,) = yield from exchange([ask(0)])
        assert reply.outcome == "failed"
        assert "out of paper" in reply.error
        return state

    problem = tiny_problem(4)
    lab, executor = Faulty(script), Loop(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(lab, executor, problem.streams, on_error=on_error)
    if on_error == "fail":
        runtime.round(lab, problem.w)
    else:
        with pytest.raises(HandlerError, match="out of paper"):
            runtime.round(lab, problem.w)
    runtime.close()
    executor.close()


def test_drop_on_the_real_clock_keeps_those_in_time() -> None:
    problem = tiny_problem()
    found = run_in_process(lambda s: Drop(stack=s, lr=0.3, deadline=60.0), problem, 3)
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, uneven_fleet(), 3)
    assert torch.equal(found, expected)


def test_an_output_that_does_not_exist_is_an_error_and_no_hang() -> None:
    def script(state: Any, cohort: Any) -> Any:
        first = ask(0, "count")
        yield Dispatch([first, Request(1, "echo", {"w": first["nothing"]})])
        yield Gather()
        return state

    with pytest.raises(ProtocolError, match="nothing"):
        laboratory(script)


@pytest.mark.parametrize("how", ["after the last Gather", "with one that was enough"])
def test_a_reply_that_nobody_heard_in_its_round_is_heard_in_the_next(how: str) -> None:
    """Time goes on between the last `Gather` and the end of a round; whoever waits for it would wait for ever."""
    problem, heard = tiny_problem(2), []

    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            yield Dispatch([Request(0, "echo", {"w": problem.w}), Request(1, "echo", {"w": problem.w})])
            if how == "with one that was enough":
                time.sleep(0.2)
            heard.append([r.request.to for r in (yield Gather(First(1)))])
            time.sleep(0.2)
        elif cohort.round == 1:
            heard.append([r.request.to for r in (yield Gather())])
        return state

    lab = Lab(script)
    runtime = InProcess(lab, Loop(problem.task, problem.data.x, problem.data.y), problem.streams)
    for _ in range(3):
        runtime.round(lab, problem.w)
    assert sorted(heard[0] + heard[1]) == [0, 1]
    assert not runtime._flights
    runtime.close()
