"""Several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lanterne.errors import ConfigError
from lanterne.report import compare, markdown, plot_compare


def test_labels_name_their_run_only_where_they_must(make_run) -> None:
    paths = [make_run("a", algorithms=["salf", "drop"], rounds=3), make_run("b", algorithms=["salf"], rounds=3)]
    found = compare(paths, [0.2])
    assert [entry["algorithm"] for entry in found["algorithms"]] == ["a/salf", "drop", "b/salf"]
    assert [(run["name"], run["algorithms"]) for run in found["runs"]] == [("a", ["salf", "drop"]), ("b", ["salf"])]
    assert 0.2 in found["targets"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "a/salf" in markdown(found["algorithms"])


def test_runs_of_the_same_name_are_told_apart_by_their_parents(make_run) -> None:
    found = compare(
        [make_run("x/demo", algorithms=["salf"], rounds=1), make_run("y/demo", algorithms=["salf"], rounds=1)]
    )
    assert [run["name"] for run in found["runs"]] == ["x/demo", "y/demo"]
    assert [entry["algorithm"] for entry in found["algorithms"]] == ["x/demo/salf", "y/demo/salf"]


def test_one_run_may_stand_alone(demo: Path) -> None:
    found = compare([demo])
    assert [entry["algorithm"] for entry in found["algorithms"]] == ["salf", "drop", "fedavg", "fedbuff"]
    assert found["differences"] == {}


def test_the_settings_that_differ_are_named(make_run) -> None:
    a, b = make_run("a", algorithms=["salf"], rounds=1), make_run("b", algorithms=["salf"], rounds=1)
    (a / "config.toml").write_text("rounds = 1\nat = 2026-11-21\n[fleet]\nstragglers = 0.9\nclients = 30\n")
    (b / "config.toml").write_text("rounds = 1\n[fleet]\nstragglers = 0.5\nclients = 30\n")
    assert compare([a, b])["differences"] == {
        "at": {"a": "2026-11-21", "b": None},
        "fleet.stragglers": {"a": 0.9, "b": 0.5},
    }


def test_the_default_target_is_common_to_all_runs(make_run) -> None:
    alone = compare([make_run("a", algorithms=["drop"], rounds=30)])["targets"]
    both = compare([make_run("b", algorithms=["drop"], rounds=30), make_run("c", algorithms=["fedavg"], rounds=30)])
    assert both["targets"] > alone
    assert all(entry["targets"][0]["accuracy"] == both["targets"][0] for entry in both["algorithms"])


def test_runs_are_drawn_together(make_run, tmp_path: Path) -> None:
    paths = [make_run("a $x^", algorithms=["salf"], rounds=3), make_run("試", algorithms=["salf", "drop"], rounds=3)]
    written = plot_compare(paths, tmp_path / "out", formats=("svg",))
    assert written == [tmp_path / "out" / f"{name}.svg" for name in ("accuracy", "classes", "equal")]


def test_a_run_is_not_compared_with_itself(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        compare([demo, demo])
    with pytest.raises(ConfigError, match="named twice"):
        plot_compare([demo, demo], tmp_path)
