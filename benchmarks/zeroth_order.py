"""A zeroth-order step beside a first-order step of the same model, and beside MeZO's way of making directions.

    python benchmarks/zeroth_order.py [repetitions, 5 by default]

ResNet-18, batches of 32, one thread. A zeroth-order step is two forward passes (one at the weights, one perturbed) and
the update. `directions` is the time to make all perturbed tensors once and to make the update, sums with the weights
included, and its share of the step. MeZO's way resets PyTorch's global generator and writes into the weights: three
times to perturb and restore, once to update. Interleaved, medians with the least and the most. Times are of this
machine at this moment.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lanterne.learn import Optimiser, Task
from lanterne.learn.noise import derived
from lanterne.learn.zeroth_order import Group, Kind, Perturbed, Probes, direction, estimate, group_of, replay
from lanterne.models import full, initial_weights
from lanterne.models.zoo import build

BATCH, RADIUS, LR = 32, 1e-3, 1e-6
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian", "sphere")


class Steps:
    """Steps of each sort on weights of their own; the number of calls is the number of the step."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        stack = build(name, shape, 10)
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(BATCH, *shape, generator=g), torch.randint(10, (BATCH,), generator=g)
        self.task, self.view, self.w = Task(stack), full(stack), initial_weights(stack, 0)
        self.group: Group = group_of(self.task, self.view)
        self.sgd, self.key, self.calls = Optimiser(lr=LR), torch.tensor(1), 0

    def next_key(self) -> Tensor:
        """Of a new step."""
        self.calls += 1
        return derived(self.key, self.calls)

    def forward(self) -> None:
        """One forward pass without a graph."""
        with torch.inference_mode():
            self.task.predict(self.view, self.w, self.x)

    def first_order(self) -> None:
        """A step of gradient descent."""
        self.task.descend_(self.view, self.w, [self.x], [self.y], LR)

    def zeroth_order(self, kind: Kind) -> None:
        """An estimate and the update."""
        key, probes = self.next_key(), Probes(kind, radius=RADIUS)
        found = estimate(self.group, self.w, self.x, self.y, key, probes)
        replay(self.group, self.w, key, found.scalars, probes, self.sgd, consume=True)

    def directions(self, kind: Kind) -> None:
        """What of that is not forward passes."""
        key, probes = self.next_key(), Probes(kind, radius=RADIUS)
        with torch.inference_mode():
            tensors = Perturbed(self.group, 0, self.w, direction(self.group, kind, key, 0, self.w.dtype), RADIUS)
            for i in range(len(tensors)):
                _ = tensors[i]
        replay(self.group, self.w, key, torch.ones(1), probes, self.sgd, consume=True)

    def mezo(self) -> None:
        """A central difference with one global generator, in place."""
        leaves = self.view.leaves(self.w)
        with torch.inference_mode():
            self._reseeded(leaves, RADIUS)
            high = self.task.loss(self.task.predict(self.view, self.w, self.x), self.y)
            self._reseeded(leaves, -2 * RADIUS)
            low = self.task.loss(self.task.predict(self.view, self.w, self.x), self.y)
            self._reseeded(leaves, RADIUS)
            self._reseeded(leaves, -LR * float(high - low) / (2 * RADIUS))

    def mezo_directions(self) -> None:
        """What of that is not forward passes."""
        leaves = self.view.leaves(self.w)
        with torch.inference_mode():
            for times in (RADIUS, -2 * RADIUS, RADIUS, -LR):
                self._reseeded(leaves, times)

    def _reseeded(self, leaves: list[Tensor], times: float) -> None:
        torch.manual_seed(self.calls)
        for leaf in leaves:
            leaf.add_(torch.randn_like(leaf), alpha=times)


def timed(step: Callable[[], None]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    steps = Steps("resnet18", (3, 32, 32))
    jobs: dict[str, Callable[[], None]] = {"forward": steps.forward, "first-order": steps.first_order}
    for kind in KINDS:
        jobs[kind] = lambda kind=kind: steps.zeroth_order(kind)
        jobs[f"{kind}, directions"] = lambda kind=kind: steps.directions(kind)
    jobs |= {"mezo": steps.mezo, "mezo, directions": steps.mezo_directions}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repetition in range(repetitions + 1):
        for name, job in jobs.items():
            spent = timed(job)
            if repetition:  # the first is to warm up
                times[name].append(spent)
    median = {name: statistics.median(found) for name, found in times.items()}
    print(f"resnet18, {steps.group.dimension} parameters, batch {BATCH}, one thread, {repetitions} repetitions")
    print(f"{'':24}{'ms':>9}{'least':>9}{'most':>9}{'of first-order':>16}{'directions':>12}")
    for name, found in times.items():
        share = f"{median[f'{name}, directions'] / median[name]:12.3f}" if f"{name}, directions" in median else ""
        ratio = median[name] / median["first-order"]
        print(f"{name:24}{median[name]:9.1f}{min(found):9.1f}{max(found):9.1f}{ratio:16.3f}{share}")


if __name__ == "__main__":
    main()
