"""A cell of a race is the library's own run, judged at times instead of rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import lanterne
from studies.harness.plan import Method, Plan, Setting, StragglerFleet, TimedProblem
from studies.harness.race import by_speed, race
from studies.salf.plan import METHODS

NINETY = StragglerFleet("90 %", 0.9)
PROBLEM = TimedProblem("digits", "salf-mlp", "shards:2", 12, NINETY, clients=10, batch=8)
SALF, FEDAVG, FEDBUFF = (Method(name, name) for name in ("salf", "fedavg", "fedbuff"))


def settings(method: Method, problem: TimedProblem = PROBLEM, fleet: StragglerFleet = NINETY, lr: float = 0.1) -> dict:
    return dict(Plan((Setting(problem, fleet),), (method,)).final(Setting(problem, fleet), method, 1, lr).settings)


@pytest.mark.parametrize("method", [SALF, FEDAVG, FEDBUFF], ids=lambda method: method.label)
def test_rows_are_those_of_the_version_that_is_current(method: Method, tmp_path) -> None:
    found = race(settings(method), tmp_path)
    deadline = {"deadline": found["deadline"]} if method is SALF else {}
    run = lanterne.run(
        [method.algorithm], data="digits", model="salf-mlp", partition="shards:2", clients=10, batch=8, rounds=40,
        fleet={"kind": "uniform-depth", "share": 0.9},
        training={"lr": 0.1, "local_steps": 1, **deadline}, runtime={"threads": 1},
    )  # fmt: skip
    assert found["diverged"] is None
    assert [row["share"] for row in found["rows"]] == settings(method)["times"]
    for row in found["rows"]:
        assert row["virtual_seconds"] == pytest.approx(row["share"] * 12 * found["deadline"], rel=1e-12)
        current = [other for other in run.rows if other["virtual_seconds"] <= row["virtual_seconds"] * (1 + 1e-9)][-1]
        for column in ("round", "accuracy", "loss", "bytes_up", "bytes_down", "accuracy_by_class"):
            assert row[column] == current[column]
    assert found["rounds"] == found["rows"][-1]["round"] > 0


def test_a_round_of_salf_lasts_one_deadline_and_one_of_fedavg_longer(tmp_path) -> None:
    salf, fedavg = (race(settings(method), tmp_path) for method in (SALF, FEDAVG))
    assert salf["deadline"] == fedavg["deadline"]
    assert salf["rounds"] == 12
    assert 4 <= fedavg["rounds"] <= 6  # somebody reaches one layer of three: 2 s instead of 6/7 s
    without = race(settings(FEDAVG, fleet=StragglerFleet("none", 0.0)), tmp_path)
    assert without["rounds"] == 12


FLEETS = {"none": StragglerFleet("none", 0.0), "ninety": NINETY, "all": StragglerFleet("all", 1.0, exponential=1.0)}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("fleet", FLEETS)
def test_a_method_that_is_not_computed_is_its_twin(fleet: str, steps: int, tmp_path) -> None:
    problem = replace(PROBLEM, local_steps=steps, deadlines=6)
    ends = {}
    for method in METHODS:
        if method.algorithm not in ("fedasync", "fedbuff"):
            rows = race(settings(method, problem, FLEETS[fleet], lr=0.2), tmp_path)["rows"]
            ends[method.label] = [(row["round"], row["accuracy"], row["loss"]) for row in rows]
    twins = {m.label: m.same_as(problem, FLEETS[fleet]) for m in METHODS}
    for label, twin in twins.items():
        assert twin is None or ends[label] == ends[twin], (label, twin)
    # And those that are computed are methods of their own.
    own = [ends[label] for label, twin in twins.items() if twin is None and label in ends]
    assert all(a != b for i, a in enumerate(own) for b in own[:i])
    assert sum(twin is not None for twin in twins.values()) == {
        "none": 6 + (steps == 1), "ninety": 1 + (steps == 1), "all": steps == 1
    }[fleet]  # fmt: skip


def test_a_straggler_that_never_finishes_is_dropped(tmp_path) -> None:
    never = StragglerFleet("never", 0.9, finish=False)
    sent = {
        fleet: race(settings(Method("drop", "drop"), fleet=fleet), tmp_path)["rows"][-1]["bytes_up"]
        for fleet in (NINETY, never)
    }
    assert sent[never] < sent[NINETY]
    assert sent[never] == 12 * 1 * 4 * _size()  # one of ten clients is heard


def _size() -> int:
    from lanterne.models.zoo import build

    return build("salf-mlp", (1, 8, 8), 10).size


def test_a_run_that_diverges_is_a_row(tmp_path) -> None:
    found = race(settings(SALF, lr=1e30), tmp_path)
    assert found["diverged"] is not None
    assert found["rows"][-1]["accuracy"] is None
    assert len(found["rows"]) < len(settings(SALF)["times"])


def test_tuning_is_judged_on_training_rows(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studies.harness import race as module

    data = lanterne.data.load("digits")
    poisoned = replace(data, test_x=-data.test_x, test_y=9 - data.test_y)
    plan = Plan((Setting(PROBLEM, NINETY),), (SALF,), grid=(0.1,))
    [tuning] = plan.tuning(PROBLEM, NINETY, SALF).values()
    final = plan.final(Setting(PROBLEM, NINETY), SALF, 1, 0.1)
    seen = []
    for each in (data, poisoned):
        monkeypatch.setattr(module, "_loaded", lambda folder, name, each=each: each)
        module.split_of.cache_clear()
        seen.append([race(cell.settings, tmp_path)["rows"][-1]["accuracy"] for cell in (tuning, final)])
    module.split_of.cache_clear()
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_by_speed_gives_low_labels_to_the_fast() -> None:
    labels = torch.arange(10).repeat(60)
    slow = [client % 2 == 1 for client in range(20)]
    rows = by_speed(labels, slow, key=3)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(600))
    for client, own in enumerate(rows):
        assert len(own) == 30
        assert set((labels[own] >= 5).tolist()) == {slow[client]}
        assert len(set(labels[own].tolist())) <= 4
    assert any(not np.array_equal(a, b) for a, b in zip(rows, by_speed(labels, slow, key=4), strict=True))


def test_by_speed_follows_the_stragglers_of_the_fleet(tmp_path) -> None:
    half = StragglerFleet("50 %", 0.5)
    problem = replace(PROBLEM, partition="by-speed", tuned_on=half, deadlines=2)
    rows = race(settings(Method("drop", "drop"), problem, half, lr=1e-9), tmp_path)["rows"]
    # With weights that hardly move, the two tiers are judged on complementary labels: their mean is the whole.
    by_class = rows[-1]["accuracy_by_class"]
    assert set(by_class) == {"fast", "straggler"}
    assert abs(by_class["fast"] - by_class["straggler"]) > 0.01
