"""Clients by hand: gradients of the user's own module by plain autograd, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lanterne.data import Streams
from lanterne.fleet import Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack
from lanterne.runtime import Loop, Simulator
from lanterne.testing import Problem


def gradient(problem: Problem, w: Tensor, client: int, step: int) -> Tensor:
    """Of a client's batch at `w`."""
    net = problem.stack.load(w)
    (rows,) = problem.streams.rows(client, range(step, step + 1))
    nn.functional.cross_entropy(net(problem.data.x[rows]), problem.data.y[rows]).backward()
    return torch.cat([p.grad.reshape(-1) for p in net.parameters()])


def walk(
    problem: Problem,
    w: Tensor,
    client: int,
    steps: Iterable[int],
    lr: float,
    added: Callable[[Tensor], Tensor | float] = lambda v: 0.0,
) -> tuple[Tensor, list[Tensor]]:
    """Local steps along the gradient and what is added to it: the weights after them, and the gradients on the way."""
    seen = []
    for step in steps:
        seen.append(gradient(problem, w, client, step))
        w = w - lr * (seen[-1] + added(w))
    return w, seen


def mean(values: Mapping[int, Tensor], weights: Mapping[int, float]) -> Tensor:
    """`sum_u n_u value_u / sum_u n_u` over those who have a value."""
    return sum(weights[u] * value for u, value in values.items()) / sum(weights[u] for u in values)


def samples(problem: Problem) -> dict[int, float]:
    """n_u."""
    return {c: float(problem.streams.samples(c)) for c in range(len(problem.rows))}


def whole_steps(simulator: Simulator, round: int, blocks: int) -> dict[int, int]:
    """How many whole local steps the clock gave each client in a round; who was not heard of is not there."""
    heard = ("complete", "partial")
    found = [r for r in simulator.timeline if r["round"] == round and r["outcome"] in heard]
    return {r["client"]: r["units"] // (2 * blocks) for r in found}


class Line:
    """Clients on a line, f_u(w) = h_u/2 (w - a_u)^2, with exact gradients: minima, limits and paths are closed forms.

    Args:
        curvatures: h_u.
        minima: a_u.
        sizes: n_u.
    """

    def __init__(self, curvatures: list[float], minima: list[float], sizes: list[int]) -> None:
        self.h, self.a, self.n = curvatures, minima, sizes
        with torch.device("meta"):
            self.stack = LayerStack(nn.Sequential(nn.Linear(1, 1, bias=False)), (1,))
        edges = [sum(sizes[:u]) for u in range(len(sizes) + 1)]
        self.rows = [torch.arange(first, last).numpy() for first, last in pairwise(edges)]
        per_row = [u for u, n in enumerate(sizes) for _ in range(n)]
        self.x = torch.tensor([[curvatures[u] ** 0.5] for u in per_row], dtype=torch.float64)
        self.y = torch.tensor([curvatures[u] ** 0.5 * minima[u] for u in per_row], dtype=torch.float64)

    def optimum(self, weights: Iterable[float]) -> float:
        """Of `sum_u weight_u f_u`."""
        weighted = [p * h for p, h in zip(weights, self.h, strict=True)]
        return sum(p * a for p, a in zip(weighted, self.a, strict=True)) / sum(weighted)

    def limit(self, make: Callable[[LayerStack], Any], fleet: Fleet, rounds: int) -> float:
        """Where a method ends that starts at 0."""
        task = Task(self.stack, lambda output, y: 0.5 * (output[:, 0] - y).square().mean())
        algorithm, executor = make(self.stack), Loop(task, self.x, self.y)
        simulator = Simulator(algorithm, fleet, executor, Streams(self.rows, 1, 0), dtype=torch.float64)
        state = algorithm.init(torch.zeros(1, dtype=torch.float64))
        for _ in range(rounds):
            state = simulator.round(algorithm, state)
        executor.close()
        return float(algorithm.evaluated(state))
