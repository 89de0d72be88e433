"""A cell at equal samples is the library's own run, judged at shares of its epochs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import lanterne
from lanterne.data import Streams, load
from lanterne.experiment import Objects, parse_config, prepare
from studies.harness.epochs import Counted, judge_all, learn
from studies.locfedmix.plan import NETWORKS, QUARTER, UNIFORM, Competitor, EdgeFleet, EpochProblem

PROBLEM = EpochProblem("digits", "mlp:widths=16-8", "dirichlet:0.5", 8, 2, samples=None, batch=8, local_steps=2)
FEDAVG, PSL, V1 = (Competitor(name, name, limit=limit) for name, limit in
                   (("fedavg", None), ("psl", "cut_deadline"), ("splitfed_v1", "round_deadline")))  # fmt: skip


class SlowFleet(EdgeFleet):
    """So slow that computing, not latency, is what takes time, even for the smallest of networks."""

    @property
    def numbers(self) -> dict:
        return {**super().numbers, "flops": 2e5}


NOBODY, HALF = SlowFleet("nobody", 0.0), SlowFleet("half", 0.5)


def settings(method: Competitor, fleet: EdgeFleet = UNIFORM, problem: EpochProblem = PROBLEM, lr: float = 0.1) -> dict:
    return dict(problem.cell(fleet, method, 1, lr, tuning=False).settings)


@pytest.mark.parametrize("method", [FEDAVG, PSL], ids=lambda method: method.label)
def test_rows_are_those_of_the_first_version_that_has_the_epochs(method: Competitor, tmp_path) -> None:
    found = learn(settings(method), tmp_path)
    run = lanterne.run(
        [method.algorithm], data="digits", model="mlp:widths=16-8", partition="dirichlet:0.5", clients=8, batch=8,
        rounds=found["rounds"], fleet=UNIFORM.numbers, training={"lr": 0.1, "local_steps": 2},
        runtime={"threads": 1, "executor": "loop"},
    )  # fmt: skip
    rows = len(load("digits"))
    each = 8 * 8 * 2
    assert found["rounds"] == -(-2 * rows // each)
    by_round = {row["round"]: row for row in run.rows}
    for row in found["rows"]:
        current = by_round[row["round"]]
        for column in ("virtual_seconds", "bytes_up", "bytes_down"):
            assert row[column] == current[column]
        if method is FEDAVG:
            assert row["accuracy"] == pytest.approx(current["accuracy"], abs=1e-12)
        assert row["epochs_done"] == row["round"] * each / rows
        assert row["epochs_done"] >= row["share"] * 2 - 1e-9
        assert row["round"] == 0 or (row["round"] - 1) * each / rows < row["share"] * 2
    assert [row["share"] for row in found["rows"]] == settings(method)["shares"]


def test_where_everybody_is_waited_for_stragglers_change_the_clock_alone(tmp_path) -> None:
    for method in (FEDAVG, replace(PSL, limit=None)):
        alike, unlike = (learn(settings(method, fleet), tmp_path) for fleet in (NOBODY, HALF))
        for one, two in zip(alike["rows"], unlike["rows"], strict=True):
            assert (one["accuracy"], one["loss"], one["bytes_up"]) == (two["accuracy"], two["loss"], two["bytes_up"])
        assert unlike["rows"][-1]["virtual_seconds"] > 1.3 * alike["rows"][-1]["virtual_seconds"]
        assert alike["limit"] is unlike["limit"] is None


@pytest.mark.parametrize("method", [PSL, V1], ids=lambda method: method.label)
def test_with_a_limit_late_clients_are_passed_over_and_rounds_make_up_for_it(method: Competitor, tmp_path) -> None:
    waits = learn(settings(replace(method, limit=None), HALF), tmp_path)
    limited = learn(settings(method, HALF), tmp_path)
    assert limited["limit"] > 0
    assert limited["rounds"] >= waits["rounds"]
    per_round = [run["rows"][-1]["virtual_seconds"] / run["rounds"] for run in (limited, waits)]
    assert per_round[0] < per_round[1]
    if method is PSL:
        assert limited["rounds"] > waits["rounds"]
        assert limited["rows"][-1]["epochs_done"] == pytest.approx(2, abs=0.1)


def test_nobody_is_late_where_nobody_straggles(tmp_path) -> None:
    assert learn(settings(PSL), tmp_path)["limit"] is None
    barely = SlowFleet("barely", 0.01)  # of eight clients none
    waits, limited = (learn(settings(m, barely), tmp_path) for m in (replace(PSL, limit=None), PSL))
    assert limited["limit"] is not None
    assert limited["rows"] == waits["rows"]


def test_batches_count_once() -> None:
    of = Streams([torch.arange(10).numpy()], batch=4, seed=3)
    counted = Counted(of, [torch.arange(10).numpy()])
    assert counted.rows(0, range(3)).tolist() == of.rows(0, range(3)).tolist()
    counted.rows(0, range(1, 2))
    assert counted.read == 12
    counted.rows(0, range(3, 4))
    assert counted.read == 16


def test_models_share_the_test_rows() -> None:
    config = {"data": {"source": "digits", "clients": 2}, "model": {"name": "mlp:widths=8"}, "algorithms": ["psl"]}
    prepared = prepare(parse_config(config), Objects())
    world, executor = prepared.world(1), prepared.executor()
    try:
        judge = prepared.judge(world, executor)
        assert judge_all(judge, world.w) == {name: judge(world.w)[name] for name in ("accuracy", "loss")}
        same = judge_all(judge, torch.stack([world.w] * 3))
        assert same["accuracy"] == pytest.approx(judge(world.w)["accuracy"], abs=1e-12)
        assert same["loss"] == pytest.approx(judge(world.w)["loss"], abs=1e-12)
        # Of two models the one has the even rows, the other the odd ones.
        data = judge.data
        one, other = (
            replace(judge, data=replace(data, test_x=data.test_x[m::2], test_y=data.test_y[m::2])) for m in (0, 1)
        )
        both = judge_all(judge, torch.stack([world.w, -world.w]))["accuracy"]
        parts = one(world.w)["accuracy"] * len(one.data.test_y) + other(-world.w)["accuracy"] * len(other.data.test_y)
        assert both == pytest.approx(parts / len(data.test_y), abs=1e-12)
    finally:
        executor.close()


def test_a_run_that_diverges_is_a_row(tmp_path) -> None:
    found = learn(settings(FEDAVG, lr=1e30), tmp_path)
    assert found["diverged"] is not None
    assert found["rows"][-1]["accuracy"] is None
    assert len(found["rows"]) < len(settings(FEDAVG)["shares"])


def test_a_method_that_makes_no_progress_is_stopped(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.harness.epochs.Counted.read", 0)
    monkeypatch.setattr("studies.harness.epochs._MOST", 1)
    with pytest.raises(RuntimeError, match="rounds have trained on"):
        learn(settings(FEDAVG), tmp_path)


def test_the_network_of_the_study_has_its_weights_from_the_seed(tmp_path) -> None:
    assert set(NETWORKS) == {"small-cnn"}
    problem = replace(PROBLEM, model="small-cnn", partition="iid", epochs=1)
    first = [
        learn({**settings(FEDAVG, QUARTER, problem), "seed": seed}, tmp_path, NETWORKS)["rows"][0] for seed in (1, 1, 2)
    ]
    assert first[0]["loss"] == first[1]["loss"] != first[2]["loss"]
