"""Number 24 of section 9: a restart from the last finished round gives the same bits, whatever was under way then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lanterne.algorithms import ALGORITHMS
from lanterne.experiment import checkpoint
from lanterne.runtime import Loop, Simulator, restore, snapshot
from lanterne.split import SplitMethod
from lanterne.testing import STORMS, tiny_problem, uneven_fleet
from lanterne.tree import digest
from testing.variants import VARIANTS

SPLIT = {name for name, kind in ALGORITHMS.items() if issubclass(kind, SplitMethod)}
CASES = [variant for variant in VARIANTS if variant.split(",")[0] in SPLIT]


def test_every_split_method_is_here() -> None:
    assert {case.split(",")[0] for case in CASES} == SPLIT
    assert {"sl", "psl", "splitfed_v1", "locfedmix_sl"} <= SPLIT


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [*((name, "") for name in CASES), ("splitfed_v1", "state"), ("splitfed_v1", "simulator"), ("sl", "simulator")],
)
def test_24_a_restart_gives_the_same_bits(name: str, forgotten: str, tmp_path: Path) -> None:
    """Through a checkpoint on the disk; without either part of what it holds the bits are others."""
    problem, fleet = tiny_problem(), uneven_fleet(**STORMS["all of it"])
    algorithm = VARIANTS[name](problem.stack)

    def fresh() -> Simulator:
        executor = Loop(problem.task, problem.data.x, problem.data.y)
        return Simulator(algorithm, fleet, executor, problem.streams, dtype=torch.float64)

    def end(simulator: Simulator, state: Any) -> tuple[str, float, Any, str]:
        for _ in range(3):
            state = simulator.round(algorithm, state)
        held = {str(to): digest(dict(arrays)) for to, arrays in simulator.numerics.states.items()}
        models = digest({"w": simulator.models(algorithm, state)})
        return models, simulator.now, simulator.ledger.total, str(sorted(held.items()))

    simulator = fresh()
    start = state = algorithm.init(problem.w)
    for _ in range(3):
        state = simulator.round(algorithm, state)
    kept = {"state": state, "simulator": snapshot(simulator)}
    checkpoint.save(tmp_path / "file", kept)
    expected = end(simulator, state)
    saved = checkpoint.load(tmp_path / "file", checkpoint.state_classes(state))
    other = fresh()
    if forgotten != "simulator":
        restore(other, saved["simulator"])
    found = end(other, start if forgotten == "state" else saved["state"])
    assert (found == expected) is (not forgotten)
