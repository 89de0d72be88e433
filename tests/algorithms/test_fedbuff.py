"""FedBuff against FedAvg and against an event loop: invariant 19 of the specification, and its knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from algorithms.overheard import alike, overhear
from lanterne.algorithms import FedAvg, FedBuff
from lanterne.fleet import Device, Fleet
from lanterne.learn import local_sgd
from lanterne.models import LayerStack, full
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet


# ---------------------------------------------------------------------------------------------------- 19
@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_19_fedbuff_with_everyone_and_no_delay_is_fedavg(weights: Any) -> None:
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5) for _ in range(6)])
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3, weights=weights), problem, fleet, 1)
    found, _ = simulate(lambda s: FedBuff(stack=s, lr=0.3, buffer=6, weights=weights), problem, fleet, 1)
    if weights == "equal":
        assert torch.equal(found, expected)
    else:  # n_u delta_u is rounded before it is added to the buffer, but not where all are there and may be fused
        assert torch.allclose(found, expected, rtol=0, atol=1e-15)
    half, _ = simulate(lambda s: FedBuff(stack=s, lr=0.3, buffer=3, weights=weights), problem, fleet, 1)
    assert not torch.allclose(half, expected, rtol=0, atol=1e-6)


class Knobs(NamedTuple):
    """Of FedBuff: K, a, eta_g, the bound on staleness, and what is divided by."""

    buffer: int
    exponent: float = 0.0
    server_lr: float = 1.0
    bound: int | None = None
    normalise: Any = "buffer"

    def make(self, stack: LayerStack) -> FedBuff:
        """The method."""
        return FedBuff(
            stack=stack,
            lr=0.3,
            buffer=self.buffer,
            weights="equal",
            server_lr=self.server_lr,
            staleness_exponent=self.exponent,
            max_staleness=self.bound,
            normalise=self.normalise,
        )


def event_loop(problem: Problem, durations: Mapping[int, float], versions: int, knobs: Knobs) -> tuple[Tensor, int]:
    """FedBuff in twenty lines: the weights, and how many updates were thrown away."""
    w, version, buffered, discount, count, thrown = problem.w, 0, torch.zeros_like(problem.w), 0.0, 0, 0
    step = dict.fromkeys(range(6), 0)
    at_work = {c: (durations[c], w, version) for c in range(6)}
    while version < versions:
        c = min(at_work, key=lambda c: (at_work[c][0], c))
        now, start, began = at_work.pop(c)
        rows = torch.from_numpy(problem.streams.rows(c, range(step[c], step[c] + 1)))
        step[c] += 1
        after, _ = local_sgd(problem.task, full(problem.stack), start, problem.data.x[rows], problem.data.y[rows], 0.3)
        if knobs.bound is not None and version - began > knobs.bound:
            thrown += 1
        else:
            weight = (1 + version - began) ** -knobs.exponent
            buffered, discount, count = buffered + weight * (after - start), discount + weight, count + 1
        if count == knobs.buffer:
            w = w + knobs.server_lr * buffered / (count if knobs.normalise == "buffer" else discount)
            version, buffered, discount, count = version + 1, torch.zeros_like(w), 0.0, 0
        at_work[c] = (now + durations[c], w, version)
    return w, thrown


@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(1),
        Knobs(1, 0.5),
        Knobs(3, 0.5),
        Knobs(3, 0.5, normalise="staleness"),
        Knobs(1, server_lr=0.25),
        Knobs(3, 0.5, server_lr=2.0),
        Knobs(1, bound=3),
        Knobs(2, 0.5, bound=1),
        Knobs(2, server_lr=0.5, bound=0),
        Knobs(3, 0.5, 0.5, bound=2, normalise="staleness"),
    ],
    ids=str,
)
def test_19_fedbuff_is_the_event_loop(knobs: Knobs) -> None:
    """With K = 1, a constant weight and a server step of 1 it is asynchronous FedAvg in deltas."""
    problem, fleet, versions = tiny_problem(), uneven_fleet(), 12
    found, simulator = simulate(knobs.make, problem, fleet, versions)
    durations = {r["client"]: r["arrived"] - r["sent"] for r in simulator.timeline}
    assert set(durations) == set(range(6))
    expected, thrown = event_loop(problem, durations, versions, knobs)
    assert alike(found, expected)
    assert (thrown > 0) == (knobs.bound is not None)
    for name, ignored in {"server_lr": 1.0, "bound": None, "exponent": 0.0, "normalise": "buffer"}.items():
        other, _ = event_loop(problem, durations, versions, knobs._replace(**{name: ignored}))
        assert alike(found, other) == (getattr(knobs, name) == ignored), name


@pytest.mark.parametrize("steps", [1, 3])
def test_a_client_goes_on_in_its_stream_where_it_stopped(steps: int) -> None:
    heard, _ = overhear(lambda s: FedBuff(stack=s, buffer=2, local_steps=steps), tiny_problem(), uneven_fleet(), 6)
    spans: dict[Any, list[int]] = {}
    for request in (q for r in heard for q in r.requests):
        assert len(request.batches) == steps
        spans.setdefault(request.to, []).extend(request.batches)
    assert max(map(len, spans.values())) > steps
    assert all(span == list(range(len(span))) for span in spans.values())
