"""What the server half of a method sent and heard, round by round: the public side of an aggregation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lanterne.fleet import Fleet
from lanterne.models import LayerStack
from lanterne.protocol import Dispatch, Reply, Request
from lanterne.runtime import Simulator
from lanterne.testing import Problem, simulate


class Round(NamedTuple):
    """The weights before, the requests, the replies, and the state after."""

    w: Tensor
    requests: list[Request]
    replies: list[Reply]
    state: Any

    @property
    def invited(self) -> list[int]:
        return [q.to for q in self.requests if isinstance(q.to, int)]

    def deltas(self, stack: LayerStack) -> list[dict[int, Tensor]]:
        """Per block, the part of each client's delta that lies in it; who sent nothing of a block is not there."""
        found: list[dict[int, Tensor]] = [{} for _ in range(len(stack))]
        for r in self.replies:
            if r.usable:
                start = stack.size - len(r["delta"])
                for b, (first, last) in enumerate(zip(stack.edges, stack.edges[1:], strict=False)):
                    if first >= start:
                        found[b][r.request.to] = r["delta"][first - start : last - start]
        return found


class Overheard:
    """An algorithm whose rounds are written down."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm, self.rounds = algorithm, list[Round]()
        self.traffic, self.handlers = algorithm.traffic, algorithm.handlers
        self.init, self.evaluated = algorithm.init, algorithm.evaluated

    def round(self, state: Any, cohort: Any) -> Any:
        requests, replies, program = [], [], self.algorithm.round(state, cohort)
        before, answer = self.evaluated(state), None
        while True:
            try:
                effect = program.send(answer)
            except StopIteration as stop:
                self.rounds.append(Round(before, requests, replies, stop.value))
                return stop.value
            requests += effect.requests if isinstance(effect, Dispatch) else []
            answer = yield effect
            replies += answer or []


def overhear(
    make: Callable[[LayerStack], Any], problem: Problem, fleet: Fleet, rounds: int, **options: Any
) -> tuple[list[Round], Simulator]:
    """Run a few rounds; what was said in each, and the simulator."""
    heard: list[Overheard] = []

    def wrapped(stack: LayerStack) -> Any:
        heard.append(Overheard(make(stack)))
        return heard[0]

    _, simulator = simulate(wrapped, problem, fleet, rounds, **options)
    return heard[0].rounds, simulator


def moved(stack: LayerStack, heard: Round, scale: Callable[[int, int, list[int]], float]) -> Tensor:
    """`w_l + sum_{u in S_l} scale(l, u, S_l) delta_u,l`, in the plainest of loops."""
    out = heard.w.clone()
    for b, deltas in enumerate(heard.deltas(stack)):
        for u, delta in deltas.items():
            out[stack.edges[b] : stack.edges[b + 1]] += scale(b, u, list(deltas)) * delta
    return out


def alike(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of additions."""
    return torch.allclose(found, expected, rtol=0, atol=1e-14)


def shares(problem: Problem, clients: list[int]) -> Mapping[int, float]:
    """`n_u / n` among these clients."""
    counts = {c: problem.streams.samples(c) for c in clients}
    return {c: n / sum(counts.values()) for c, n in counts.items()}
