"""What a round costs beside its work: rounds of clients that do nothing, and a round of local SGD beside a plain loop.

    python benchmarks/rounds.py

Prints one table; medians of several repetitions, interleaved, with their ranges. Times are of this machine at this
moment.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lanterne.algorithms import FedAvg
from lanterne.data import Streams
from lanterne.fleet import Device, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack, initial_weights
from lanterne.models.zoo import build
from lanterne.protocol import Cohort, Handler, Inbox, Local, Program, Request, exchange
from lanterne.runtime import Batched, Loop, Simulator

REPEATS = 15
#: Rounds of 50 steps before the clock starts: by then gradients are recorded.
WARM_UP = 8


@dataclass(frozen=True)
class Nothing:
    """A method whose clients send ten numbers back."""

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """One that does nothing."""
        return {"echo": self.echo}

    def echo(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What came goes back."""
        del task, local
        return state, {"delta": inbox["w"]}

    def init(self, w: Tensor) -> Tensor:
        """Ten numbers."""
        return w[:10]

    def round(self, state: Tensor, cohort: Cohort) -> Program[Tensor]:
        """Ask everyone."""
        yield from exchange([Request(c, "echo", {"w": state}) for c in cohort.clients])
        return state

    def evaluated(self, state: Tensor) -> Tensor:
        """Nothing to judge."""
        return state


def simulator(algorithm: Any, stack: LayerStack, clients: int, executor: type[Loop], threads: int) -> Simulator:  # noqa: ANN401
    """A fleet of equal devices over random data."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(clients * 160, *stack.sample_shape, generator=g)
    y = torch.randint(10, (len(x),), generator=g)
    rows = np.array_split(np.arange(len(x)), clients)
    return Simulator(algorithm, Fleet([Device()] * clients), executor(Task(stack), x, y, threads), Streams(rows, 32, 0))


def plain_round(net: nn.Module, data: list[tuple[Tensor, Tensor]], w: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain loop beside ours: one working copy, in-place steps, a running mean."""
    parameters = dict(net.named_parameters())
    mean = {n: torch.zeros_like(t) for n, t in w.items()}
    for x, y in data:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(w[n])
        for i in range(5):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            grads = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                torch._foreach_add_(list(parameters.values()), grads, alpha=-0.05)
        with torch.no_grad():
            for n, p in parameters.items():
                mean[n] += p / len(data)
    return mean


def median(call: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median, least and most milliseconds."""
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times), min(times), max(times)


#: The models of the measurements, by name: the shape of a sample and its classes.
MODELS: dict[str, tuple[tuple[int, ...], int]] = {
    "mlp": ((1, 28, 28), 10),
    "cnn": ((1, 28, 28), 62),
    "resnet8": ((3, 32, 32), 10),
}


def empty_rounds() -> None:
    """Rounds of clients that do nothing."""
    out = sys.stdout.write
    stack = LayerStack(nn.Sequential(nn.Linear(4, 10)), (4,))
    out("clients that do nothing, ms a round: median (least - most)\n")
    for clients in (10, 100, 1000):
        s, algorithm = simulator(Nothing(), stack, clients, Loop, 1), Nothing()
        state = torch.zeros(10)
        m, low, high = median(lambda s=s, a=algorithm, w=state: s.round(a, w), REPEATS * 4)
        out(f"  {clients:>5} clients  {m:8.3f} ({low:.3f} - {high:.3f})\n")


def local_sgd_rounds(name: str, repeats: int) -> None:
    """Rounds of local SGD beside a plain loop, interleaved.

    Args:
        name: of the model.
        repeats: of each.
    """
    out, (shape, classes) = sys.stdout.write, MODELS[name]
    stack = build(name, shape, classes)
    w0 = initial_weights(stack, 0)
    net = stack.load(w0)
    out(f"local SGD, {name} ({stack.size} parameters), 10 clients, 5 steps of 32, ms a round: median (least - most)\n")
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(5, 32, *shape, generator=g), torch.randint(10, (5, 32), generator=g)) for _ in range(10)]
    w = {n: p.detach().clone() for n, p in net.named_parameters()}
    calls: dict[str, Callable[[], object]] = {"plain loop, 1 thread": lambda: plain_round(net, data, w)}
    algorithm = FedAvg(stack=stack, lr=0.05, local_steps=5)
    start = algorithm.init(w0)
    for label, executor, threads in (
        ("loop, 1 thread", Loop, 1),
        ("loop, 2 threads", Loop, 2),
        ("batched, 2 threads", Batched, 2),
    ):
        s = simulator(algorithm, stack, 10, executor, threads)
        calls[label] = lambda s=s: s.round(algorithm, start)
    times: dict[str, list[float]] = {label: [] for label in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(repeats):
        for label, call in calls.items():
            begun = time.perf_counter()
            call()
            times[label].append(1e3 * (time.perf_counter() - begun))
    base = statistics.median(times["plain loop, 1 thread"])
    for label, found in times.items():
        m = statistics.median(found)
        out(f"  {label:<22} {m:8.2f} ({min(found):.2f} - {max(found):.2f})   {base / m:.2f} x the plain loop\n")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    empty_rounds()
    for name, repeats in {"mlp": REPEATS, "cnn": REPEATS // 2, "resnet8": REPEATS // 3}.items():
        local_sgd_rounds(name, repeats)


if __name__ == "__main__":
    main()
