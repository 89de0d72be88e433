"""Deadlines of an experiment that differ from round to round, and whose work they are made from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lanterne.errors import ConfigError, FleetError
from lanterne.experiment import parse_config, prepare, read_config, run_experiment
from lanterne.experiment.config import to_toml

ROUNDS = 8
SMALL: dict[str, Any] = {
    "rounds": ROUNDS,
    "data": {"clients": 5, "batch": 8, "partition": "iid"},
    "model": {"name": "salf-mlp"},
    "fleet": {"kind": "exponential-layers", "mean": 0.5},
    "algorithms": ["salf", "drop"],
}


def deadlines(**changes: Any) -> Any:
    return prepare(parse_config({**SMALL, **changes})).config.training.deadline


def test_adel_shares_out_a_budget_that_both_methods_keep(tmp_path: Path) -> None:
    prepared = prepare(parse_config({**SMALL, "training": {"deadline": "adel:16", "lr": 0.5}}))
    found = prepared.config.training.deadline
    assert isinstance(found, tuple)
    assert len(found) == ROUNDS
    assert sum(found) == pytest.approx(16.0)
    assert (np.diff(found) > 0).all()  # at a constant step the last rounds count most
    result = run_experiment(prepared, tmp_path / "run")
    for run in result["runs"]:
        assert run["virtual_seconds"] <= 16.0 * (1 + 1e-9)
    for label in ("salf", "drop"):
        assert prepared.algorithms[label].deadline == found  # type: ignore[attr-defined]
    again = read_config(tmp_path / "run" / "config.toml")
    assert again.training.deadline == found
    strip = lambda runs: [{k: v for k, v in r.items() if k != "wall_seconds"} for r in runs]  # noqa: E731
    assert strip(run_experiment(prepare(again), tmp_path / "again")["runs"]) == strip(result["runs"])


def test_adel_looks_at_step_cohort_and_budget() -> None:
    base = deadlines(training={"deadline": "adel:16", "lr": 0.5})
    steeper = deadlines(training={"deadline": "adel:16", "lr": 1.5})
    assert steeper[-1] / steeper[0] > base[-1] / base[0] > 1
    assert sum(deadlines(training={"deadline": "adel:32", "lr": 0.5})) == pytest.approx(32)
    # It is the layers that count, not whether somebody does them all: Drop alone has the same deadlines here.
    alone = deadlines(training={"deadline": "adel:16", "lr": 0.5}, algorithms=["drop"])
    assert alone == pytest.approx(base, rel=1e-3)
    few = deadlines(training={"deadline": "adel:16", "lr": 0.5, "cohort": 1})
    assert few != pytest.approx(base, rel=1e-3)


def test_adel_with_a_budget_too_small_says_which_is_not() -> None:
    with pytest.raises(FleetError, match=r"A budget of 0.1 s leaves 0.0125 s for each of 8 rounds.*Give at least"):
        deadlines(training={"deadline": "adel:0.1"}, fleet={"kind": "uniform"})


def test_a_list_is_one_deadline_for_each_round(tmp_path: Path) -> None:
    config = parse_config({**SMALL, "rounds": 3, "training": {"deadline": [1, 0.5, 2.0]}})
    assert tomllib.loads(to_toml(config))["training"]["deadline"] == [1.0, 0.5, 2.0]
    for run in run_experiment(prepare(config), tmp_path / "run")["runs"]:
        assert run["virtual_seconds"] == 3.5
    own = parse_config({**SMALL, "algorithms": {"salf": {"deadline": [1, 0.5]}, "drop": {"deadline": 0.25}}})
    made = prepare(own).algorithms
    assert made["salf"].deadline == (1.0, 0.5)  # type: ignore[attr-defined]
    assert made["drop"].deadline == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize("label", ["drop", "salf"])
def test_deadlines_none_of_which_anybody_meets_are_refused(label: str) -> None:
    fleet = {"kind": "uniform"}
    with pytest.raises(FleetError, match=rf"Nobody .* by the deadline of 2e-06 s, so '{label}' would never learn"):
        deadlines(training={"deadline": [1e-6, 2e-6]}, fleet=fleet, algorithms=[label])
    assert deadlines(training={"deadline": [1e-6, 20.0]}, fleet=fleet, algorithms=[label]) == (1e-6, 20.0)


def test_who_has_no_deadline_does_not_lengthen_that_of_the_others() -> None:
    fleet = {"kind": "stragglers", "share": 0.4, "load": "constant"}
    alone = deadlines(fleet=fleet)
    beside = ["timelyfl", {"algorithm": "fedavg", "local_steps": 5}, {"algorithm": "timelyfl", "estimate": "probe"}]
    assert deadlines(fleet=fleet, algorithms={"salf": {}, "drop": {}, "a": beside[1], "b": beside[2]}) == alone
    assert deadlines(fleet=fleet, algorithms=["timelyfl", "salf", "drop"]) == alone
    longer = {"salf": {}, "drop": {"local_steps": 5}}
    assert deadlines(fleet=fleet, algorithms=longer) > alone


@pytest.mark.parametrize(
    "given", [[], [0.1, 0], [0.1, "q0.5"], [True], "adel", "adel:0", "adel:1..5", "adel:inf", "adel:-3"]
)
def test_what_is_no_deadline_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^training\.deadline is .*adel:30") as caught:
        parse_config({**SMALL, "training": {"deadline": given}})
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match=r"^algorithms\.salf\.deadline.*(list of them|for each round|training)"):
        parse_config({**SMALL, "algorithms": {"salf": {"deadline": given}}})


def test_partial_work_by_whole_steps_takes_adels_deadlines_but_is_not_what_they_are_made_for() -> None:
    deadline = {"deadline": "adel:16", "lr": 0.5}
    alone = deadlines(training=deadline, algorithms=["salf"])
    for others in (["fedprox", "fednova", "salf"], ["salf", "fednova", "fedprox"]):
        config = parse_config({**SMALL, "training": deadline, "algorithms": others})
        prepared = prepare(config)
        assert prepared.config.training.deadline == alone
        for name in others:
            assert prepared.algorithms[name].deadline == alone  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["fedprox", "fednova"])
def test_each_round_of_partial_work_lasts_its_own_deadline(name: str, tmp_path: Path) -> None:
    config = parse_config({**SMALL, "rounds": 3, "training": {"deadline": [1, 0.5, 2.0]}, "algorithms": [name]})
    (run,) = run_experiment(prepare(config), tmp_path / "run")["runs"]
    assert run["virtual_seconds"] == 3.5
