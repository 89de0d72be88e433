"""Calibrates the rule that chooses between the executors (`lanterne.runtime.choose`).

    python benchmarks/executors.py [local steps, 1 by default]

For models of growing size it times a round of both executors, interleaved, and prints the ratio loop / batched: above 1
the batched executor wins. The thresholds in `choose.py` are read off this table by hand.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from torch import nn

from lanterne.algorithms import FedAvg
from lanterne.data import Streams
from lanterne.fleet import Device, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack, block_costs, initial_weights
from lanterne.models.zoo import build
from lanterne.runtime import Batched, Loop, Simulator, choose_executor

REPEATS, THREADS = 7, 2
#: Steps before the clock starts: by then gradients are recorded.
WARM_UP = 400


def models() -> dict[str, LayerStack]:
    """Multilayer perceptrons of growing width, and the zoo."""
    found = {}
    for width in (0, 16, 32, 64, 128, 200):
        layers: list[nn.Module] = [nn.Flatten()]
        layers += [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)] if width else [nn.Linear(784, 10)]
        with torch.device("meta"):
            net = nn.Sequential(*layers)
        found[f"mlp 784-{width}-10"] = LayerStack(net, (1, 28, 28))
    for name, shape in (("salf-mlp", (1, 28, 28)), ("salf-cnn", (1, 28, 28)), ("resnet-small", (1, 8, 8))):
        found[name] = build(name, shape, 10)
    return found


def simulator(algorithm: FedAvg, stack: LayerStack, batch: int, clients: int, executor: type[Loop]) -> Simulator:
    """FedAvg on equal devices over random data."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(clients * 50, *stack.sample_shape, generator=g)
    y = torch.randint(10, (len(x),), generator=g)
    rows = np.array_split(np.arange(len(x)), clients)
    return Simulator(
        algorithm, Fleet([Device()] * clients), executor(Task(stack), x, y, THREADS), Streams(rows, batch, 0)
    )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    out, steps = sys.stdout.write, int(sys.argv[1]) if len(sys.argv) > 1 else 1
    out("model               parameters  batch  clients  MFLOP forward   loop ms  batched ms  loop/batched  rule\n")
    for name, stack in models().items():
        costs = block_costs(stack)
        for batch, clients in ((4, 10), (4, 30), (16, 30), (32, 10), (32, 30), (32, 100)):
            algorithm = FedAvg(stack=stack, local_steps=steps)
            state = algorithm.init(initial_weights(stack, 0))
            runs = {kind: simulator(algorithm, stack, batch, clients, kind) for kind in (Loop, Batched)}
            times: dict[type[Loop], list[float]] = {kind: [] for kind in runs}
            for s in runs.values():
                for _ in range(WARM_UP // (clients * steps) + 1):
                    s.round(algorithm, state)
            for _ in range(REPEATS):
                for kind, s in runs.items():
                    begun = time.perf_counter()
                    s.round(algorithm, state)
                    times[kind].append(1e3 * (time.perf_counter() - begun))
            loop, batched = (statistics.median(times[kind]) for kind in (Loop, Batched))
            flops = sum(c.forward for c in costs) * batch
            out(
                f"{name:<18} {stack.size:>11} {batch:>6} {clients:>8} {flops / 1e6:>14.2f} "
                f"{loop:>9.2f} {batched:>11.2f} {loop / batched:>13.2f}  "
                f"{choose_executor(costs, batch, clients, 'cpu', steps)}\n"
            )
            for s in runs.values():
                s.numerics.executor.close()


if __name__ == "__main__":
    main()
