"""Equal seeds, equal models, and who straggles is a matter of the fleet alone: invariant 20 of the specification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from lanterne.algorithms import Drop, FedAvg, Salf
from lanterne.fleet import Fleet, preset
from lanterne.models import initial_weights
from lanterne.rng import fold
from lanterne.testing import simulate, tiny_problem
from lanterne.tree import digest

LAYERS, CLIENTS, ROUNDS = 3, 6, 5

#: Fleets that draw who is late or how deep it gets, and a deadline at which some are.
FLEETS: dict[str, tuple[dict[str, Any], float]] = {
    "stragglers": ({"share": 0.5, "slowdown": 4.0, "flops": 1e5, "latency": 0.0}, 0.035),
    "stragglers, redrawn": (
        {"share": 0.5, "slowdown": 4.0, "flops": 1e5, "latency": 0.0, "redraw": "round", "load": "constant"},
        0.05,
    ),
    "exponential-layers": ({"mean": 0.4}, 1.0),
    "uniform-depth": ({"share": 0.7, "within": 1.0}, 1.0),
}


@pytest.mark.parametrize("name", ["uniform", "stragglers", "exponential-layers", "uniform-depth"])
def test_20_same_seed_same_model(name: str) -> None:
    problem, runs = tiny_problem(), []
    for seed in (1, 1, 2):
        fleet = preset(name).build(6, seed, LAYERS)
        w, simulator = simulate(
            lambda s: Salf(stack=s, lr=0.3, deadline=1.0, local_steps=2), problem, fleet, 3, seed=fold(seed)
        )
        runs.append((digest({"w": w}), simulator.timeline))
    assert runs[0] == runs[1]


@dataclass(frozen=True)
class Seeds:
    """All that a run draws, seed by seed; what the model's side draws must not show in who straggles."""

    fleet: int = 1
    weights: int = 2
    batches: int = 3
    run: int = 4
    ambient: int = 5


def devices(name: str, seeds: Seeds, entangled: str | None = None) -> Fleet:
    """The fleet; wrong where another seed than its own is folded into its draws."""
    fleet = preset(name.split(",")[0], **FLEETS[name][0]).build(CLIENTS, seeds.fleet, LAYERS)
    return replace(fleet, seed=fold(fleet.seed, getattr(seeds, entangled))) if entangled else fleet


def stragglers(name: str, seeds: Seeds, entangled: str | None = None, **options: Any) -> list[tuple[Any, ...]]:
    """Round by round and client by client, how a request ended and how deep it got."""
    problem = tiny_problem()
    problem = replace(problem, w=initial_weights(problem.stack, seeds.weights, torch.float64), seed=seeds.batches)
    torch.manual_seed(seeds.ambient)
    np.random.seed(seeds.ambient)  # noqa: NPY002
    make = lambda s: Salf(stack=s, deadline=FLEETS[name][1], **options)  # noqa: E731
    _, simulator = simulate(make, problem, devices(name, seeds, entangled), ROUNDS, seed=seeds.run)
    return sorted((r["round"], r["client"], r["outcome"], r["units"]) for r in simulator.timeline)


@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize("entangled", [None, "weights", "batches", "run", "ambient"])
def test_20_who_straggles_depends_on_the_fleet_s_seed_alone(name: str, entangled: str | None) -> None:
    """A fleet whose seed is folded with any of the model's shows it."""
    seeds = Seeds()
    expected = stragglers(name, seeds, entangled)
    assert {outcome for _, _, outcome, _ in expected} == {"complete", "partial"}
    others = {seed: replace(seeds, **{seed: 77}) for seed in vars(seeds)}
    felt = {seed for seed, other in others.items() if stragglers(name, other, entangled) != expected}
    assert felt == {"fleet"} | ({entangled} if entangled else set())


@pytest.mark.parametrize("name", FLEETS)
def test_20_who_straggles_does_not_depend_on_the_numbers_of_the_method(name: str) -> None:
    expected = stragglers(name, Seeds())
    for options in ({"lr": 0.7}, {"rule": "ht"}, {"rule": "code", "weights": "equal"}, {"momentum": 0.9}):
        assert stragglers(name, Seeds(), **options) == expected


@pytest.mark.parametrize("name", FLEETS)
def test_20_who_straggles_does_not_depend_on_the_method(name: str) -> None:
    """Whom SALF cuts off, dropping drops, and waiting waits for."""
    problem, fleet, deadline = tiny_problem(), devices(name, Seeds()), FLEETS[name][1]
    cut = {(t, c) for t, c, outcome, _ in stragglers(name, Seeds()) if outcome == "partial"}
    _, simulator = simulate(lambda s: Drop(stack=s, deadline=deadline), problem, fleet, ROUNDS)
    assert {(r["round"], r["client"]) for r in simulator.timeline if r["outcome"] == "cancelled"} == cut
    _, simulator = simulate(lambda s: FedAvg(stack=s), problem, fleet, ROUNDS)
    assert {(r["round"], r["client"]) for r in simulator.timeline if r["arrived"] - r["sent"] > deadline} == cut
    others = stragglers(name, replace(Seeds(), fleet=77))
    assert {(t, c) for t, c, outcome, _ in others if outcome == "partial"} != cut
