"""An experiment with BatchNorm: both executors train it alike, and a judgement does not depend on the test split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lanterne
from lanterne.errors import ConfigError, ModelError
from lanterne.experiment import Objects, Prepared, parse_config, prepare
from lanterne.experiment.evaluate import Judge
from lanterne.models import LayerStack


def prepared(**changes: Any) -> Prepared:
    mapping = {
        "algorithms": ["salf"],
        "rounds": 2,
        "model": {"name": "resnet-small:norm=batch"},
        "data": {"clients": 4, "batch": 8},
        "fleet": {"kind": "stragglers", "share": 0.5},
        "runtime": {"dtype": "float64", "threads": 2},
    }
    return prepare(parse_config({**mapping, **changes}))


def trained(setup: Prepared, executor: str, rounds: int = 2) -> tuple[Tensor, Judge]:
    world, algorithm = setup.world(1), setup.algorithms["salf"]
    runs = setup.executor(executor)
    simulator, state = setup.simulator("salf", world, runs, 1), algorithm.init(world.w)
    for _ in range(rounds):
        state = simulator.round(algorithm, state)
    return algorithm.evaluated(state), setup.judge(world, runs)


def test_both_executors_train_it_alike_under_a_deadline() -> None:
    setup = prepared()
    (by_loop, judge), (by_batch, _) = trained(setup, "loop"), trained(setup, "batched")
    assert torch.allclose(by_loop, by_batch, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(by_loop, setup.world(1).w, atol=1e-3)
    assert judge(by_loop)["loss"] == pytest.approx(judge(by_batch)["loss"], rel=1e-8)


def by_the_batch(judge: Judge, w: Tensor) -> LayerStack:
    """The wrong variant: each chunk of the test split is judged by its own statistics."""
    return judge.executor.task.stack


@pytest.mark.parametrize("right", [True, False])
def test_a_prediction_does_not_depend_on_the_rest_of_the_test_split(
    right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows sorted by class: with 256 of one class at a time, a chunk's own statistics are another model."""
    setup = prepared()
    w, judge = trained(setup, "loop", 4)
    if not right:
        monkeypatch.setattr(Judge, "_judged", by_the_batch)
    order = setup.data.test_y.argsort(stable=True)
    data = replace(setup.data, test_x=setup.data.test_x[order], test_y=setup.data.test_y[order])
    mixed, by_class = judge(w), replace(judge, data=data)(w)
    assert (abs(mixed["loss"] - by_class["loss"]) < 1e-9) == right
    if right:

        def first(n: int) -> float:
            return replace(judge, data=replace(setup.data, test_x=data.test_x[:n], test_y=data.test_y[:n]))(w)["loss"]

        alone = replace(setup.data, test_x=data.test_x[1:2], test_y=data.test_y[1:2])
        assert 2 * first(2) - first(1) == pytest.approx(replace(judge, data=alone)(w)["loss"], rel=1e-9)


def test_statistics_are_of_the_clients_samples_in_no_order() -> None:
    """Of rows that somebody holds, at most 4,096, the same in every round of a seed, and mixed."""
    setup = prepared()
    world = setup.world(1)
    judge = setup.judge(world, setup.executor())
    held = np.concatenate(world.rows)
    assert sorted(judge.rows) == sorted(held)
    assert (judge.rows == setup.judge(setup.world(1), judge.executor).rows).all()
    assert (judge.rows != setup.judge(setup.world(2), judge.executor).rows).any()
    owner = {row: c for c, rows in enumerate(world.rows) for row in rows}
    assert len({owner[row] for row in judge.rows[:40]}) == len(world.rows)


def test_training_samples_that_nobody_holds_do_not_count() -> None:
    rows = [np.arange(20), np.arange(20, 50)]
    config = parse_config(
        {"algorithms": ["fedavg"], "data": {"clients": 2}, "model": {"name": "resnet-small:norm=batch"}}
    )
    setup = prepare(config, Objects(partition=rows))
    assert sorted(setup.judge(setup.world(1), setup.executor()).rows) == [*range(50)]


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch is 1, but the model normalises by the batch .* 2 or more"):
        prepared(data={"clients": 4, "batch": 1})
    assert prepared(data={"clients": 4, "batch": 1}, model={"name": "resnet-small"})


# ---------------------------------------------------------------------------------------------------- from Python
class Net(nn.Module):
    """A model as many are written: the order of its layers stands in its forward alone."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x.flatten(1))


@pytest.mark.parametrize("model", [Net(), nn.ModuleList([nn.Linear(64, 10)]), Net])
def test_a_model_whose_blocks_cannot_be_ordered_is_refused(model: Any) -> None:
    """It was passed over once, and the default model trained in its place."""
    with pytest.raises(ModelError, match=r"whose order of blocks lanterne cannot see\. Write it as an nn\.Sequential"):
        lanterne.run(["fedavg"], model=model, clients=2, rounds=1)


def test_a_users_model_with_batch_norm_runs() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU(), nn.Linear(16, 10)
    )
    result = lanterne.run(["fedavg", "salf"], model=model, clients=3, rounds=6, training={"lr": 0.1, "local_steps": 5})
    assert all(run["accuracy"] > 0.5 for run in result.runs)
