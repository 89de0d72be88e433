"""A million clients: what they cost, and that each counts as one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lanterne
from fleet.trace_files import BEHAVIOUR, CAPACITY, written
from lanterne.data import Shared
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment import parse_config, prepare, read_config, resume_experiment, run_experiment
from lanterne.experiment.evaluate import Judge

#: Peak memory after a small population, and after a large one in the same process.
PROGRAM = """
import json, resource, sys
from lanterne.experiment import parse_config, prepare

def run(clients, fleet):
    config = parse_config({
        "algorithms": ["fedavg"], "data": {"clients": clients, "partition": "iid@50"}, "model": {"name": "salf-mlp"},
        "fleet": fleet, "training": {"cohort": 100}, "runtime": {"threads": 1},
    })
    prepared = prepare(config)
    world, executor = prepared.world(1), prepared.executor()
    simulator, algorithm = prepared.simulator("fedavg", world, executor, 1), prepared.algorithms["fedavg"]
    judge, state = prepared.judge(world, executor), algorithm.init(world.w)
    for _ in range(2):
        state = simulator.round(algorithm, state)
    judge(algorithm.evaluated(state))
    executor.close()
    asked = {record["client"] for record in simulator.timeline}
    assert len(simulator.fleet) == clients and 100 <= len(asked) <= 200
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

fleets = [{"kind": "stragglers"}, {"kind": "lognormal", "link_sigma": 0.5}, {"kind": "phones"}]
small = max(run(1000, fleet) for fleet in fleets)
print(json.dumps([small] + [run(1_000_000, fleet) for fleet in fleets]))
"""


def test_a_million_devices_cost_less_than_100_mb() -> None:
    """Beside a thousand: from reading the configuration to judging the model, at the worst moment."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    small, *large = json.loads(done.stdout)
    assert all(peak - small < 100 for peak in large), (small, large)


def small(**data: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "algorithms": ["fedavg"],
        "data": {"clients": 7, "batch": 8, **data},
        "model": {"name": "salf-mlp"},
        "fleet": {"kind": "stragglers", "share": 0.4},
        "runtime": {"dtype": "float64"},
    }


def test_whoever_holds_the_same_rows_counts_as_one_each() -> None:
    """The judgement of shared parts is that of a partition that names the rows of every client."""
    prepared = prepare(parse_config(small(partition="dirichlet:0.5@3")))
    world, executor = prepared.world(1), prepared.executor()
    assert isinstance(world.rows, Shared)
    listed = replace(world, rows=list(world.rows))
    try:
        shared, plain = (prepared.judge(each, executor)(world.w) for each in (world, listed))
    finally:
        executor.close()
    assert set(shared["accuracy_by_class"]) == {"fast", "straggler"}
    for key, value in plain.items():
        assert shared[key] == pytest.approx(value, rel=1e-12, abs=1e-15)
    assert shared["accuracy_spread"] > 0
    assert shared["accuracy_by_class"]["fast"] != shared["accuracy_by_class"]["straggler"]


@pytest.mark.parametrize(("clients", "parts"), [(99, 50), (40, 4), (9, 9), (3, 1)])
def test_the_worst_tenth_is_a_tenth_of_the_clients(clients: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = torch.tensor([0.5, 0.3, 0.8, 0.1, 0.9, 0.2, 0.7, 0.4, 0.6, 1.0], dtype=torch.float64)  # by class
    monkeypatch.setattr(Judge, "_by_row", lambda self, w: (accuracy[self.data.test_y],) * 2)
    prepared = prepare(parse_config(small(partition=f"dirichlet:1@{parts}", clients=clients)))
    world, executor = prepared.world(1), prepared.executor()
    executor.close()
    found = prepared.judge(world, executor)(world.w)
    labels = prepared.data.y.numpy()
    own = np.array([np.bincount(labels[rows], minlength=10) / len(rows) @ accuracy.numpy() for rows in world.rows])
    assert len(set(own.round(9))) > 0.9 * parts
    assert found["accuracy_worst_tenth"] == pytest.approx(np.sort(own)[: max(1, clients // 10)].mean())
    assert found["accuracy_spread"] == pytest.approx(own.std())


def test_a_population_larger_than_its_data_is_run_from_end_to_end(tmp_path: Path) -> None:
    """A partition of one's own, FedScale-like columns, the default deadline and a quantile."""
    rows = Shared([np.arange(0, 700), np.arange(700, 1400)], 50_000)
    for fleet, deadline in (("pareto", None), ("phones", "q0.2")):
        training = {"cohort": 4, **({} if deadline is None else {"deadline": deadline})}
        result = lanterne.run(
            ["salf", "fedbuff"], fleet=fleet, partition=rows, rounds=2, training=training, model="salf-mlp",
            out=tmp_path / fleet,
        )  # fmt: skip
        assert [run["rounds"] for run in result.runs] == [2, 2]
        clients = (tmp_path / fleet / "cells" / "salf-seed1" / "clients.jsonl").read_text().splitlines()
        assert 4 <= len(clients) <= 8


def test_fedscales_traces_are_raced_over_and_named_in_the_run(tmp_path: Path) -> None:
    traces = {
        "capacity": str(written(tmp_path / "capacity", CAPACITY)),
        "availability": str(written(tmp_path / "availability", BEHAVIOUR)),
    }
    config = parse_config({**small(partition="iid"), "fleet": {"kind": "fedscale", **traces}})
    out = tmp_path / "run"
    found = run_experiment(prepare(config), out)
    assert found["runs"][0]["rounds"] == 2
    assert read_config(out / "config.toml").fleet == config.fleet
    timeline = [json.loads(line) for line in (out / "cells/fedavg-seed1/timeline.jsonl").read_text().splitlines()]
    devices = prepare(config).world(1).fleet.devices
    assert all(devices[record["client"]].online(record["sent"]) for record in timeline)
    assert 0 < len(timeline) < 2 * 7  # not everybody was there


def test_a_run_over_traces_goes_on_from_anywhere_with_the_same_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "speeds", CAPACITY)
    written(tmp_path / "times", BEHAVIOUR)
    monkeypatch.chdir(tmp_path)
    fleet = {"kind": "fedscale", "capacity": "speeds", "availability": "times"}
    run_experiment(prepare(parse_config({**small(partition="iid"), "fleet": fleet})), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "run/cells/fedavg-seed1/result.json").unlink()
    assert resume_experiment(tmp_path / "run")["runs"][0]["rounds"] == 2
    (tmp_path / "run/cells/fedavg-seed1/result.json").unlink()
    written(tmp_path / "times", {1: {"active": [0], "inactive": [5], "finish_time": 9}})
    with pytest.raises(ConfigError, match=r"times \(fleet\.availability\) has changed since .* was begun"):
        resume_experiment(tmp_path / "run")


def test_what_is_wrong_beside_the_traces_is_said_at_once() -> None:
    """Without a file there is none to read; files are read when the race is prepared."""
    with pytest.raises(ConfigError, match="fleet: The fleet 'fedscale' needs FedScale's file of capacities"):
        parse_config({**small(), "fleet": {"kind": "fedscale"}})
    with pytest.raises(ConfigError, match=r"fleet\.capacity: capacity of the fleet 'fedscale' is 3\. Give text"):
        parse_config({**small(), "fleet": {"kind": "fedscale", "capacity": 3}})
    config = parse_config({**small(), "fleet": {"kind": "fedscale", "capacity": "nowhere"}})
    with pytest.raises(FleetError, match="nowhere cannot be read: No such file"):
        prepare(config)


def test_hostile_traces_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = written(tmp_path / "capacity", {0: Trap(trap)})
    done = subprocess.run(
        [sys.executable, "-m", "lanterne", "run", "salf", "--fleet", "fedscale", "--set", f"fleet.capacity={path}"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "wants to run code" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not trap.exists()


class Trap:
    """Pickled, a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_deadline_that_nobody_meets_is_refused_before_anybody_is_made_one_by_one() -> None:
    config = {**small(partition="iid@5", clients=300_000), "fleet": {"kind": "lognormal"}}
    config |= {"algorithms": ["salf"], "training": {"cohort": 5, "deadline": 1e-6}}
    with pytest.raises(FleetError, match="Nobody reaches a single layer by the deadline of 1e-06 s"):
        prepare(parse_config(config))
