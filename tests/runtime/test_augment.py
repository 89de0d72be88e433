"""What is augmented is a function of the step alone: not of the executor, its threads, the runtime, or who asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lanterne.algorithms import FedAvg, Salf
from lanterne.data import Augmentation, Streams, augmentation
from lanterne.errors import HandlerError
from lanterne.runtime import Batched, InProcess, Loop, Simulator
from lanterne.runtime.job import Job
from lanterne.testing.problems import tiny_cnn, tiny_problem, uneven_fleet

PROBLEM = tiny_problem(stack=tiny_cnn())
AUGMENT = augmentation("crop-flip:2", PROBLEM.data.sample_shape, len(PROBLEM.data))


def run(
    kind: type[Loop], threads: int = 1, augment: Augmentation | None = AUGMENT, rounds: int = 3, **options: Any
) -> Tensor:
    streams = Streams(PROBLEM.rows, PROBLEM.batch, PROBLEM.seed, augment)
    algorithm = FedAvg(stack=PROBLEM.stack, **{"lr": 0.3, "local_steps": 3, "momentum": 0.5} | options)
    executor = kind(PROBLEM.task, PROBLEM.data.x, PROBLEM.data.y, threads, augment=augment)
    try:
        simulator = Simulator(algorithm, uneven_fleet(), executor, streams, dtype=torch.float64)
        state = algorithm.init(PROBLEM.w)
        for _ in range(rounds):
            state = simulator.round(algorithm, state)
        return algorithm.evaluated(state)
    finally:
        executor.close()


def test_both_executors_and_any_number_of_threads_see_the_same_batches() -> None:
    oracle = run(Loop)
    assert torch.equal(run(Loop, 3), oracle)
    batched = run(Batched)
    assert torch.equal(run(Batched, 3), batched)
    assert torch.allclose(batched, oracle, rtol=0, atol=1e-10)
    assert not torch.allclose(run(Loop, augment=None), oracle, rtol=0, atol=1e-3)


def test_the_real_clock_sees_them_too() -> None:
    algorithm = FedAvg(stack=PROBLEM.stack, lr=0.3, local_steps=3, momentum=0.5)
    executor = Loop(PROBLEM.task, PROBLEM.data.x, PROBLEM.data.y, augment=AUGMENT)
    runtime = InProcess(algorithm, executor, Streams(PROBLEM.rows, PROBLEM.batch, PROBLEM.seed, AUGMENT))
    state = algorithm.init(PROBLEM.w)
    for _ in range(3):
        state = runtime.round(algorithm, state)
    runtime.close()
    executor.close()
    assert torch.allclose(state.w, run(Loop), rtol=0, atol=1e-12)


def test_one_step_is_descent_on_the_augmented_batch() -> None:
    streams = Streams(PROBLEM.rows, PROBLEM.batch, PROBLEM.seed, AUGMENT)
    view, n = PROBLEM.stack.span(0, len(PROBLEM.stack)), sum(map(len, PROBLEM.rows))
    expected = PROBLEM.w.clone()
    for client, rows in enumerate(PROBLEM.rows):
        numbers = torch.from_numpy(streams.rows(client, range(1)))[0]
        images = []
        for number in numbers.tolist():
            row, variant = number % n, number // n
            padded = torch.nn.functional.pad(PROBLEM.data.x[row], (2, 2, 2, 2))
            left, up = ((k + 2) % 5 for k in (variant // 2 % 5, variant // 10))
            crop = padded[:, up : up + 6, left : left + 6]
            images.append(crop.flip(2) if variant % 2 else crop)
        x = torch.stack(images)
        gradient = PROBLEM.task.gradient(view, PROBLEM.w, x, PROBLEM.data.y[numbers % n])
        expected -= 0.3 * len(rows) / n * gradient
    found = run(Loop, rounds=1, local_steps=1, momentum=0.0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_three_spans_of_one_step_are_one_span_of_three() -> None:
    seen: list[Tensor] = []

    class Watching(Loop):
        def one(self, job: Job) -> Any:
            if job.to == 2:
                seen.append(self.read(job.rows())[0].flatten(0, 1))
            return super().one(job)

    run(Watching, rounds=1, local_steps=3)
    run(Watching, rounds=3, local_steps=1)
    assert len(seen) == 4
    assert torch.equal(seen[0], torch.cat(seen[1:]))


def test_salf_with_all_the_time_is_fedavg_on_augmented_batches() -> None:
    expected = run(Loop, momentum=0.0)
    streams = Streams(PROBLEM.rows, PROBLEM.batch, PROBLEM.seed, AUGMENT)
    algorithm = Salf(stack=PROBLEM.stack, lr=0.3, local_steps=3, deadline=1e6, p="zero")
    executor = Loop(PROBLEM.task, PROBLEM.data.x, PROBLEM.data.y, augment=AUGMENT)
    simulator = Simulator(algorithm, uneven_fleet(), executor, streams, dtype=torch.float64)
    state = algorithm.init(PROBLEM.w)
    for _ in range(3):
        state = simulator.round(algorithm, state)
    executor.close()
    assert torch.equal(state.w, expected)


@pytest.mark.parametrize("kind", [Loop, Batched])
def test_an_executor_that_knows_nothing_of_the_augmentation_of_its_streams_fails_loudly(kind: type[Loop]) -> None:
    executor = kind(PROBLEM.task, PROBLEM.data.x, PROBLEM.data.y)
    streams = Streams(PROBLEM.rows, PROBLEM.batch, PROBLEM.seed, AUGMENT)
    algorithm = FedAvg(stack=PROBLEM.stack)
    simulator = Simulator(algorithm, uneven_fleet(), executor, streams, dtype=torch.float64)
    with pytest.raises((IndexError, HandlerError), match="out of bounds"):
        simulator.round(algorithm, algorithm.init(PROBLEM.w))
    executor.close()
