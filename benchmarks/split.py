"""A parallel split step beside the unsplit one of the same executor, per sample.

    python benchmarks/split.py

32 clients, five batches of 32: PSL at every cut beside FedAvg. Interleaved, medians with the least and the most. Behind
each stands the same by hand, plain PyTorch without anything around it and as many threads, beside the unsplit one by
hand: what the cut itself costs on this machine. Times are of this machine at this moment.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

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


def samples(stack: LayerStack) -> tuple[Tensor, Tensor]:
    """Random samples and labels, five batches for each client."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS * STEPS * BATCH, *stack.sample_shape, generator=g)
    return x, torch.randint(10, (len(x),), generator=g)


class Rounds:
    """Rounds of one method with one executor, timed."""

    def __init__(self, algorithm: Any, stack: LayerStack, executor: type[Loop], threads: int) -> None:  # noqa: ANN401
        x, y = samples(stack)
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


class ByHand:
    """The same rounds in plain PyTorch, timed: a pool of threads over the clients, steps in place, and nothing else."""

    def __init__(self, stack: LayerStack, cut: int, pool: ThreadPoolExecutor) -> None:
        self.stack, self.cut, self.pool = stack, cut, pool
        shape = CLIENTS, STEPS, BATCH
        self.x, self.y = (t.view(*shape, *t.shape[1:]) for t in samples(stack))
        edge, w = stack.edges[cut], initial_weights(stack, 0)
        self.clients = [self.leaves(w[:edge], 0, cut) for _ in range(CLIENTS)]
        self.server = self.leaves(w[edge:], cut, len(stack))
        self.w = w
        self.times: list[float] = []

    def leaves(self, w: Tensor, first: int, last: int) -> list[Tensor]:
        """The tensors of some blocks, of their own."""
        return [leaf.requires_grad_() for leaf in self.stack.span(first, last).leaves(w.clone())]

    def run(self, leaves: list[Tensor], x: Tensor, first: int, last: int) -> Tensor:
        """Some blocks, images laid out as the loop executor lays them out."""
        return self.stack.forward(leaves, x, first, last, channels_last=True)

    def descend(self, leaves: list[Tensor], gradients: Sequence[Tensor]) -> None:
        """A step in place."""
        with torch.no_grad():
            torch._foreach_add_(leaves, list(gradients), alpha=-0.01)

    def whole(self, client: int) -> list[Tensor]:
        """All steps of a client that has all blocks."""
        n = len(self.stack)
        leaves = self.leaves(self.w, 0, n)
        for x, y in zip(self.x[client], self.y[client], strict=True):
            self.descend(leaves, torch.autograd.grad(cross_entropy(self.run(leaves, x, 0, n), y), leaves))
        return leaves

    def forward(self, client: int, step: int) -> Tensor:
        """The smashed data of a client's batch, with their graph."""
        return self.run(self.clients[client], self.x[client, step], 0, self.cut)

    def serve(self, smashed: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the server's tensors, and that of the smashed data."""
        smashed = smashed.detach().requires_grad_()
        loss = cross_entropy(self.run(self.server, smashed, self.cut, len(self.stack)), y)
        return torch.autograd.grad(loss, [*self.server, smashed])

    def backward(self, client: int, smashed: Tensor, up: Tensor) -> None:
        """The rest of a client's step."""
        leaves = self.clients[client]
        self.descend(leaves, torch.autograd.grad(smashed, leaves, up))

    def __call__(self) -> None:
        """One round."""
        begun, everybody = time.perf_counter(), range(CLIENTS)
        if self.cut == len(self.stack):
            ends = self.pool.map(self.whole, everybody)
            with torch.no_grad():
                self.w = torch.stack([torch.cat([t.flatten() for t in leaves]) for leaves in ends]).mean(0)
        for step in range(STEPS if self.cut < len(self.stack) else 0):
            smashed = list(self.pool.map(self.forward, everybody, [step] * CLIENTS))
            served = list(self.pool.map(self.serve, smashed, self.y[:, step]))
            for gradients in served:
                self.descend(self.server, [g / CLIENTS for g in gradients[:-1]])
            list(self.pool.map(self.backward, everybody, smashed, [gradients[-1] for gradients in served]))
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
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    lines = {"unsplit": Rounds(FedAvg(stack=stack, lr=0.01, local_steps=STEPS), stack, executor, threads)}
    by_hand = {"unsplit": ByHand(stack, len(stack), pool)}
    for at in range(1, len(stack)):
        split, label = PSL(stack=stack, cut=at, lr=0.01, local_steps=STEPS), f"cut behind {stack.names[at - 1]}"
        lines[label], by_hand[label] = Rounds(split, stack, executor, threads), ByHand(stack, at, pool)
    for turn in range(WARM_UP + repeats):
        for line in (*lines.values(), *by_hand.values()):
            line()
            if turn < WARM_UP:
                line.times.clear()
    sys.stdout.write(f"{name}, {executor.name}, {threads} threads, ms a round: median (least - most)\n")
    for label, line in lines.items():
        m, ratio = statistics.median(line.times), beside(line, lines)
        low, high = min(line.times), max(line.times)
        sys.stdout.write(f"  {label:<20} {m:9.2f} ({low:.2f} - {high:.2f})   {ratio:.2f} x the unsplit step")
        hand = statistics.median(by_hand[label].times)
        sys.stdout.write(f"   by hand {hand:9.2f}, {beside(by_hand[label], by_hand):.2f} x\n")
    pool.shutdown()


def beside(line: Rounds | ByHand, lines: Mapping[str, Rounds | ByHand]) -> float:
    """The median of what a round costs beside the unsplit round before it."""
    return statistics.median(a / b for a, b in zip(line.times, lines["unsplit"].times, strict=True))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        compare(name, Loop, 2)
        if name == "mlp":
            compare(name, Batched, 2)


if __name__ == "__main__":
    main()
