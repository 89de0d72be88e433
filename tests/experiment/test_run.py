"""Experiments from end to end: what is written, what diverges, what is refused, and what Python can bring."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lanterne
from lanterne.algorithms import ALGORITHMS, Salf
from lanterne.errors import ConfigError, DataError, FleetError, ModelError
from lanterne.experiment import parse_config, prepare, read_config, run_experiment
from lanterne.fleet import Device, Fleet
from lanterne.models import block_costs
from lanterne.models.zoo import build
from lanterne.runtime import choose_executor

SMALL: dict[str, Any] = {
    "rounds": 3,
    "data": {"clients": 5, "batch": 8, "partition": "iid"},
    "model": {"name": "salf-mlp"},
    "fleet": {"kind": "stragglers", "share": 0.4},
}


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "algorithms": list(ALGORITHMS), **changes}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run") / "race"
    return run_experiment(prepare(parse_config(small(seeds=[1, 2]))), out), out


def test_runs_hold_what_was_promised(done: tuple[dict[str, Any], Path]) -> None:
    found, out = done
    assert [(r["algorithm"], r["seed"]) for r in found["runs"]] == [(a, s) for s in (1, 2) for a in ALGORITHMS]
    for run in found["runs"]:
        for key in ("accuracy", "best_accuracy", "virtual_seconds", "wall_seconds", "bytes_up", "bytes_down", "rounds"):
            assert run[key] > 0
        assert run["diverged"] is None
        assert run["bytes_up"] + run["bytes_down"] == sum(run["bytes"].values())
        assert "handoff" in run["bytes"] or run["bytes_up"] == sum(
            n for k, n in run["bytes"].items() if k.endswith("_up")
        )
        assert set(run["accuracy_by_class"]) == {"fast", "straggler"}
        cell = out / "cells" / f"{run['algorithm']}-seed{run['seed']}"
        rows = [json.loads(line) for line in (cell / "rows.jsonl").read_text().splitlines()]
        assert [r["round"] for r in rows] == [0, 1, 2, 3]
        assert rows[-1]["accuracy"] == run["accuracy"] == json.loads((cell / "result.json").read_text())["accuracy"]
        assert run["best_accuracy"] == max(r["accuracy"] for r in rows)
        timeline = [json.loads(line) for line in (cell / "timeline.jsonl").read_text().splitlines()]
        assert all(r["sent"] <= r["start"] <= r["downloaded"] <= r["computed"] <= r["arrived"] for r in timeline)
        assert max(r["arrived"] for r in timeline) <= run["virtual_seconds"]
        clients = [json.loads(line) for line in (cell / "clients.jsonl").read_text().splitlines()]
        assert [c["client"] for c in clients] == list(range(5))
        for key in ("flops", "flops_wasted", "busy_seconds", "wasted_seconds"):
            assert sum(c[key] for c in clients) == pytest.approx(run[key], rel=1e-9, abs=1e-9)
        for name, total in run["bytes"].items():
            assert sum(c["bytes"].get(name, 0) for c in clients) == total


def test_the_resolved_config_is_complete_and_gives_the_same_run(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    found, out = done
    config = read_config(out / "config.toml")
    assert config.runtime.executor == "loop"  # five clients are too few to stack
    assert config.training.deadline is not None
    again = run_experiment(prepare(config), tmp_path / "again")
    strip = lambda runs: [{k: v for k, v in r.items() if k != "wall_seconds"} for r in runs]  # noqa: E731
    assert strip(again["runs"]) == strip(found["runs"])


def test_the_same_fleet_and_start_for_every_algorithm(done: tuple[dict[str, Any], Path]) -> None:
    _, out = done
    first = [
        json.loads((out / "cells" / f"{a}-seed1" / "rows.jsonl").read_text().splitlines()[0])["accuracy"]
        for a in ("fedavg", "drop", "salf")
    ]
    assert len(set(first)) == 1
    lines = {}
    for a in ("fedavg", "salf"):
        records = map(json.loads, (out / "cells" / f"{a}-seed1" / "timeline.jsonl").read_text().splitlines())
        lines[a] = {r["client"]: r["class"] for r in records}
    assert lines["fedavg"] == lines["salf"]


def test_accuracy_over_clients_is_the_label_mix_of_the_test_split() -> None:
    prepared = prepare(parse_config(small(data={**SMALL["data"], "partition": "shards:2"})))
    world, executor = prepared.world(1), prepared.executor()
    judged = prepared.judge(world, executor)(world.w)
    data, w = prepared.data, world.w
    with torch.no_grad():
        output = prepared.stack.load(w)(data.test_x)
    right = (output.argmax(1) == data.test_y).double()
    per_class = [float(right[data.test_y == k].mean()) for k in range(10)]
    by_client = [float(np.mean([per_class[k] for k in data.y[torch.from_numpy(rows)].tolist()])) for rows in world.rows]
    assert judged["accuracy"] == pytest.approx(float(right.mean()), abs=1e-12)
    assert judged["accuracy_worst_tenth"] == pytest.approx(min(by_client), abs=1e-12)
    assert judged["accuracy_spread"] == pytest.approx(float(np.std(by_client)), abs=1e-12)
    for tier, found in judged["accuracy_by_class"].items():
        members = [c for c in range(5) if world.fleet.devices[c].tier == tier]
        rows = np.concatenate([world.rows[c] for c in members])
        assert found == pytest.approx(
            float(np.mean([per_class[k] for k in data.y[torch.from_numpy(rows)].tolist()])), abs=1e-12
        )
    executor.close()


def test_the_worst_tenth_of_twenty_clients_are_two_and_losses_go_by_class_too() -> None:
    data = {**SMALL["data"], "clients": 20, "partition": "shards:1"}
    prepared = prepare(parse_config(small(data=data)))
    world, executor = prepared.world(1), prepared.executor()
    judged = prepared.judge(world, executor)(world.w)
    executor.close()
    with torch.no_grad():
        output = prepared.stack.load(world.w)(prepared.data.test_x)
        losses = nn.functional.cross_entropy(output, prepared.data.test_y, reduction="none").double()
    right, y = (output.argmax(1) == prepared.data.test_y).double(), prepared.data.test_y
    accuracy = [float(right[y == k].mean()) for k in range(10)]
    loss = [float(losses[y == k].mean()) for k in range(10)]
    labels = [prepared.data.y[torch.from_numpy(rows)].tolist() for rows in world.rows]
    by_client = sorted(float(np.mean([accuracy[k] for k in own])) for own in labels)
    assert judged["accuracy_worst_tenth"] == pytest.approx((by_client[0] + by_client[1]) / 2, abs=1e-12)
    for tier, found in judged["loss_by_class"].items():
        pooled = [loss[k] for c, own in enumerate(labels) if world.fleet.devices[c].tier == tier for k in own]
        assert found == pytest.approx(float(np.mean(pooled)), rel=1e-6)
    assert len(set(judged["loss_by_class"].values())) == 2


def test_a_method_that_diverges_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    found = run_experiment(
        prepare(parse_config(small(algorithms={"fedavg": {"lr": 1e30}, "salf": {}}))), tmp_path / "run"
    )
    wild, tame = found["runs"]
    assert wild["diverged"] in (1, 2)
    assert wild["accuracy"] is None
    assert wild["best_accuracy"] > 0
    assert tame["diverged"] is None
    assert tame["rounds"] == 3
    json.loads((tmp_path / "run" / "cells" / "fedavg-seed1" / "result.json").read_text(), parse_constant=pytest.fail)


def test_tuning_stores_what_it_chose(tmp_path: Path) -> None:
    run_experiment(prepare(parse_config(small(algorithms=["fedavg"]))), tmp_path / "run", tune=True)
    assert read_config(tmp_path / "run" / "config.toml").runtime.executor in ("loop", "batched")


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"exists already.*lanterne resume"):
        run_experiment(prepare(parse_config(small())), tmp_path)
    assert (tmp_path / "precious").read_text() == "do not touch"


# ---------------------------------------------------------------------------------------------------- the rule and the
# deadline
def test_the_rule_is_a_function_of_shapes() -> None:
    small_model, large = (
        block_costs(build("salf-mlp", (1, 8, 8), 10)),
        block_costs(build("resnet-small", (1, 8, 8), 10)),
    )
    assert choose_executor(small_model, 16, 30, "cpu") == "batched"
    assert choose_executor(small_model, 16, 2, "cpu") == "loop"
    assert choose_executor(small_model, 16, 10, "cpu") == "batched"
    assert choose_executor(small_model, 16, 10, "cpu", 5) == "loop"  # several steps in one call: the loop is at home
    assert choose_executor(small_model, 8, 30, "cpu", 5) == "batched"
    assert choose_executor(large, 32, 30, "cpu") == "loop"
    assert choose_executor(large, 32, 30, "cuda") == "batched"


def test_the_default_deadline_is_just_what_the_others_need() -> None:
    prepared = prepare(parse_config(small()))
    deadline = prepared.config.training.deadline
    assert isinstance(deadline, float)
    for label in ("drop", "salf"):
        assert prepared.algorithms[label].deadline == deadline  # type: ignore[attr-defined]
        world, executor = prepared.world(1), prepared.executor()
        simulator = prepared.simulator(label, world, executor, 1)
        simulator.round(prepared.algorithms[label], prepared.algorithms[label].init(world.w))
        executor.close()
        done = {r["client"] for r in simulator.timeline if r["outcome"] == "complete"}
        assert done == {c for c in range(5) if world.fleet.devices[c].tier == "fast"}
        assert len(done) == 3
        assert simulator.now == deadline
    just_missed = {"algorithms": ["salf", "drop"], "training": {"deadline": math.nextafter(deadline, 0)}}
    tighter = prepare(parse_config(small(**just_missed)))
    world, executor = tighter.world(1), tighter.executor()
    simulator = tighter.simulator(
        "salf", world, executor, 1
    )  # SALF's message is the largest, by the number of its layers
    simulator.round(tighter.algorithms["salf"], tighter.algorithms["salf"].init(world.w))
    executor.close()
    assert not [r for r in simulator.timeline if r["outcome"] == "complete"]


@pytest.mark.parametrize(("asked", "share"), [("q0", 0.2), ("q0.3", 0.6), ("50%", 0.6), ("q1", 1.0)])
def test_a_quantile_as_deadline(asked: str, share: float, tmp_path: Path) -> None:
    table = tmp_path / "fleet.csv"
    table.write_text("flops\n" + "\n".join(str(1e7 / (c + 1)) for c in range(5)))
    prepared = prepare(
        parse_config(small(fleet={"kind": str(table)}, training={"deadline": asked}, algorithms=["drop"]))
    )
    world, executor = prepared.world(1), prepared.executor()
    simulator = prepared.simulator("drop", world, executor, 1)
    simulator.round(prepared.algorithms["drop"], prepared.algorithms["drop"].init(world.w))
    executor.close()
    assert sum(r["outcome"] == "complete" for r in simulator.timeline) == round(5 * share)


def test_a_fleet_file_without_classes_leaves_out_those_twice_as_slow_as_the_median(tmp_path: Path) -> None:
    table = tmp_path / "fleet.csv"
    table.write_text("flops\n1e7\n1e7\n0.9e7\n0.8e7\n1e5\n")
    prepared = prepare(parse_config(small(fleet={"kind": str(table)}, algorithms=["drop"])))
    world, executor = prepared.world(1), prepared.executor()
    simulator = prepared.simulator("drop", world, executor, 1)
    simulator.round(prepared.algorithms["drop"], prepared.algorithms["drop"].init(world.w))
    executor.close()
    assert sorted(r["client"] for r in simulator.timeline if r["outcome"] == "complete") == [0, 1, 2, 3]


@pytest.mark.parametrize("label", ["drop", "salf"])
def test_a_deadline_that_nobody_meets_is_refused(label: str) -> None:
    with pytest.raises(
        FleetError, match=rf"Nobody .* by the deadline of 1e-06 s, so '{label}' would never learn.*give at least that"
    ):
        prepare(parse_config(small(algorithms=[label], training={"deadline": 1e-6})))


# ---------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"source": "digts"}}, DataError, "Did you mean 'digits'"),
        ({"data": {"source": "someone/some-dataset"}}, DataError, "no such path here, none in the cache, and"),
        ({"data": {"clients": 900, "partition": "dirichlet:0.05"}}, DataError, "without a row"),
        ({"fleet": {"kind": "fleet.csv"}}, FleetError, "There is no fleet file fleet.csv"),
        ({"model": {"name": "salf-cnn"}}, ModelError, "at least 16x16"),
        ({"runtime": {"device": "cuda"}}, ConfigError, "no GPU"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(changes: Any, error: Any, message: str) -> None:
    if torch.cuda.is_available() and "runtime" in changes:
        pytest.skip("there is a GPU here")
    with pytest.raises(error, match=message):
        prepare(parse_config(small(**changes)))


# ---------------------------------------------------------------------------------------------------- from Python
def test_everything_of_ones_own(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=g), torch.randint(3, (60,), generator=g)
    data = lanterne.Dataset.of(x[:40], y[:40], x[40:], y[40:])
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    before = [p.detach().clone() for p in model.parameters()]
    fleet = Fleet([Device(flops=1e5), Device(flops=1e4)])

    class Mine(Salf):
        pass

    result = lanterne.run(
        {"mine": Mine, "fedavg": "fedavg"}, data=data, model=model, fleet=fleet,
        partition=[np.arange(20), np.arange(20, 40)], rounds=2, batch=4, out=tmp_path / "run",
    )  # fmt: skip
    assert [r["algorithm"] for r in result.runs] == ["mine", "fedavg"]
    assert len(result.rows) == 6
    assert "mine" in result.table
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert {p.name for p in result.plot()} == {"accuracy.png", "classes.png", "timeline.png"}
    (tmp_path / "run" / "cells" / "mine-seed1" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"begun from Python with an own .*lanterne.resume"):
        lanterne.resume(tmp_path / "run")
    again = lanterne.resume(
        tmp_path / "run",
        data=data,
        model=model,
        fleet=fleet,
        partition=[np.arange(20), np.arange(20, 40)],
        algorithms={"mine": Mine},
    )
    assert [r["accuracy"] for r in again.runs] == [r["accuracy"] for r in result.runs]


def test_names_and_classes_may_be_mixed(tmp_path: Path) -> None:
    class Mine(Salf):
        pass

    result = lanterne.run(
        ["fedavg", "salf:rule=code", Mine], clients=4, rounds=1, model="salf-mlp", out=tmp_path / "run"
    )
    assert [r["algorithm"] for r in result.runs] == ["fedavg", "salf:rule=code", "mine"]


def test_a_parameter_that_does_not_reach_everybody_is_said(tmp_path: Path) -> None:
    def unheard(**training: float) -> list[str]:
        algorithms = {"scaffold": {}, "fedavg": {}, "first": {"algorithm": "scaffold"}, "fedbuff": {}}
        return prepare(parse_config(small(algorithms=algorithms, training=training))).unheard

    assert unheard(lr=0.1, local_steps=2) == []
    assert unheard(momentum=0.5, cohort=3) == [
        "scaffold, first have no momentum: training.momentum = 0.5 does not reach there."
    ]
    waits = prepare(parse_config(small(algorithms=["fedavg", "scaffold"], training={"deadline": 0.5}))).unheard
    assert waits == ["fedavg, scaffold have no deadline: training.deadline = 0.5 does not reach there."]
    assert prepare(parse_config(small(algorithms=["fedavg"]))).unheard == []
    with pytest.warns(UserWarning, match="scaffold has no momentum") as warned:
        lanterne.run(["scaffold"], training={"momentum": 0.5}, clients=4, rounds=1, out=tmp_path / "run")
    assert warned[0].filename == __file__


def test_an_infinite_deadline_stays_one(tmp_path: Path) -> None:
    run_experiment(prepare(parse_config(small(algorithms=["salf"], training={"deadline": math.inf}))), tmp_path / "run")
    assert read_config(tmp_path / "run" / "config.toml").training.deadline == math.inf
    assert prepare(read_config(tmp_path / "run" / "config.toml")).config.training.deadline == math.inf


def test_a_model_whose_outputs_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(7,\) numbers per sample, but the data has 10 classes"):
        lanterne.run(["fedavg"], model=nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), rounds=1)


def test_the_public_names_are_a_decision() -> None:
    assert lanterne.__all__ == ["Dataset", "Device", "Fleet", "LayerStack", "Result", "resume", "run"]
    for name in lanterne.__all__:
        assert getattr(lanterne, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        lanterne.runn  # noqa: B018
