"""A parallel split step beside the unsplit one of the same executor, per sample.

    python benchmarks/split.py

32 clients, five batches of 32: PSL at every cut beside FedAvg. Interleaved, medians with the least and the most. Times
are of this machine at this moment.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from lanterne.algorithms import PSL, FedAvg
from lanterne.data import Streams
from lanterne.fleet import Device, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack, initial_weights
from lanterne.models.zoo import build
from lanterne.runtime import Batched, Loop, Simulator

CLIENTS, STEPS, BATCH, WARM_UP = 32, 5, 32, 4
#: By name: the shape of a sample, its classes, repetitions.
MODELS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "mlp": ((1, 28, 28), 10, 11),
    "cnn": ((1, 28, 28), 62, 5),
    "resnet8": ((3, 32, 32), 10, 3),
}


class Rounds:
    """Rounds of one method with one executor, timed."""

    def __init__(self, algorithm: Any, stack: LayerStack, executor: type[Loop], threads: int) -> None:  # noqa: ANN401
        g = torch.Generator().manual_seed(0)
        x = torch.randn(CLIENTS * 160, *stack.sample_shape, generator=g)
        y = torch.randint(10, (len(x),), generator=g)
        rows = np.array_split(np.arange(len(x)), CLIENTS)
        runner = executor(Task(stack), x, y, threads)
        self.algorithm = algorithm
        self.simulator = Simulator(algorithm, Fleet([Device()] * CLIENTS), runner, Streams(rows, BATCH, 0))
        self.state = algorithm.init(initial_weights(stack, 0))
        self.times: list[float] = []

    def __call__(self) -> None:
        """One round."""
        begun = time.perf_counter()
        self.state = self.simulator.round(self.algorithm, self.state)
        self.times.append(1e3 * (time.perf_counter() - begun))


def compare(name: str, executor: type[Loop], threads: int) -> None:
    """Print one model's table.

    Args:
        name: of the model.
        executor: of both.
        threads: its threads.
    """
    shape, classes, repeats = MODELS[name]
    stack = build(name, shape, classes)
    lines = {"unsplit": Rounds(FedAvg(stack=stack, lr=0.01, local_steps=STEPS), stack, executor, threads)}
    for at in range(1, len(stack)):
        split = PSL(stack=stack, cut=at, lr=0.01, local_steps=STEPS)
        lines[f"cut behind {stack.names[at - 1]}"] = Rounds(split, stack, executor, threads)
    for turn in range(WARM_UP + repeats):
        for line in lines.values():
            line()
            if turn < WARM_UP:
                line.times.clear()
    base = statistics.median(lines["unsplit"].times)
    sys.stdout.write(f"{name}, {executor.name}, {threads} threads, ms a round: median (least - most)\n")
    for label, line in lines.items():
        m = statistics.median(line.times)
        low, high = min(line.times), max(line.times)
        sys.stdout.write(f"  {label:<20} {m:9.2f} ({low:.2f} - {high:.2f})   {m / base:.2f} x the unsplit step\n")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        compare(name, Loop, 2)
        if name == "mlp":
            compare(name, Batched, 2)


if __name__ == "__main__":
    main()
