"""One definition, many runtimes: they have to agree."""

from __future__ import annotations

import torch

from lanterne.runtime import Batched, InProcess, Loop
from lanterne.testing.conformance import Make, simulate
from lanterne.testing.problems import Problem, tiny_problem, uneven_fleet


def check_runtimes_match(
    make: Make, *, problem: Problem | None = None, rounds: int = 4, tolerance: float = 1e-10, in_process: bool = True
) -> None:
    """Run an algorithm in every executor and runtime, in float64.

    The loop executor with one thread is the oracle. With more threads it has to agree to the bit, the batched one
    within the tolerance; the real clock too, where the method's result does not depend on who is quick.

    Args:
        make: makes the algorithm of a model.
        problem: what is trained; a tiny one by default.
        rounds: how many.
        tolerance: the largest difference of a weight.
        in_process: whether to compare with the real clock.

    Raises:
        AssertionError: saying which runtime differs, and by how much.
    """
    problem = problem or tiny_problem()
    fleet = uneven_fleet(len(problem.rows))
    oracle, clock = simulate(make, problem, fleet, rounds, Loop)
    threaded, _ = simulate(make, problem, fleet, rounds, Loop, threads=3)
    assert torch.equal(oracle, threaded), "Three threads gave other bits than one."
    batched, other = simulate(make, problem, fleet, rounds, Batched)
    _close("The batched executor", oracle, batched, tolerance)
    assert other.now == clock.now, "The virtual clock depends on the executor."
    assert other.ledger == clock.ledger, "The ledger depends on the executor."
    if in_process:
        _close("The real clock", oracle, run_in_process(make, problem, rounds), tolerance)


def run_in_process(make: Make, problem: Problem, rounds: int, **options: object) -> torch.Tensor:
    """Run a few rounds on the real clock and give the evaluated weights."""
    algorithm = make(problem.stack)
    executor = Loop(problem.task, problem.data.x, problem.data.y)
    runtime = InProcess(algorithm, executor, problem.streams, **options)  # type: ignore[arg-type]
    try:
        state = algorithm.init(problem.w)
        for _ in range(rounds):
            state = runtime.round(algorithm, state)
        return runtime.models(algorithm, state)
    finally:
        runtime.close()
        executor.close()


def _close(what: str, a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    gap = float((a - b).abs().max())
    assert gap <= tolerance, f"{what} differs from the loop executor by {gap:.3g}, more than {tolerance:.3g}."
