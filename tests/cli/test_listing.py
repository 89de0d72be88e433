"""`lanterne list`: everything there is, and everything that can be set."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lanterne.algorithms import ALGORITHMS
from lanterne.data import load, partition
from lanterne.experiment.config import parse_config
from lanterne.fleet import PRESETS
from lanterne.models.zoo import MODELS, build

Command = Callable[..., Any]
KINDS = ["algorithms", "models", "fleets", "data", "partitions"]


def listed(lanterne_command: Command, *words: str) -> Any:
    outcome = lanterne_command("list", *words, "--format", "json")
    assert outcome.status == 0
    assert outcome.err == ""
    return json.loads(outcome.out, parse_constant=pytest.fail)


def test_all_that_there_is(lanterne_command: Command) -> None:
    found = listed(lanterne_command)
    assert list(found) == KINDS
    names = {kind: [entry["name"] for entry in entries] for kind, entries in found.items()}
    assert names["algorithms"] == list(ALGORITHMS)
    assert names["models"] == list(MODELS)
    assert names["fleets"] == [*PRESETS, "<file>"]
    assert all(entry["summary"].endswith((".", "!")) for entries in found.values() for entry in entries)
    outcome = lanterne_command("list")
    assert outcome.status == 0
    for name in (name for kind in names.values() for name in kind):
        assert name in outcome.out


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind(lanterne_command: Command, kind: str) -> None:
    assert list(listed(lanterne_command, kind)) == [kind]
    assert lanterne_command("list", kind).status == 0


@pytest.mark.parametrize("name", [*ALGORITHMS])
def test_what_is_listed_of_an_algorithm_can_be_set(lanterne_command: Command, name: str) -> None:
    (entry,) = listed(lanterne_command, "algorithms", name)["algorithms"]
    given = {each["name"]: each["default"] for each in entry["parameters"]}
    assert "lr" in given
    assert entry["source"]
    parse_config({"algorithms": {name: given}})
    text = lanterne_command("list", "algorithms", name).out
    assert all(key in text for key in given)


@pytest.mark.parametrize("name", [*PRESETS])
def test_what_is_listed_of_a_fleet_can_be_set(lanterne_command: Command, name: str) -> None:
    (entry,) = listed(lanterne_command, "fleets", name)["fleets"]
    given = {each["name"]: each["default"] for each in entry["parameters"]}
    assert {"memory", "latency", "dropout"} <= set(given)
    if "capacity" in given:  # whether the file exists is not looked at
        given["capacity"] = "client_device_capacity"
    parse_config({"algorithms": ["salf"], "fleet": {"kind": name, **given}})
    text = lanterne_command("list", "fleets", name).out
    assert all(key in text for key in given)


def test_what_is_listed_of_a_model_can_be_set(lanterne_command: Command) -> None:
    found = {entry["name"]: entry["parameters"] for entry in listed(lanterne_command, "models")["models"]}
    assert [each["name"] for each in found["resnet18"]] == ["norm"]
    assert found["lenet"] == []
    for name, parameters in found.items():
        for each in parameters:
            assert each["meaning"]
            assert build(f"{name}:{each['name']}={each['default']}", (3, 32, 32), 10).size == (
                build(name, (3, 32, 32), 10).size
            )
    assert "group | batch" in lanterne_command("list", "models", "vgg11").out


def test_what_is_listed_of_data_and_partitions_exists(lanterne_command: Command) -> None:
    found = listed(lanterne_command)
    bundled = [entry["name"] for entry in found["data"] if not entry["name"].startswith("<")]
    assert all(len(load(name.replace("ALPHA,BETA", "1,1"))) for name in bundled)
    for entry in found["partitions"]:
        spec = entry["name"].replace("ALPHA", "0.5").replace("N", "2").replace("@S", "@4")
        rows = partition(spec, np.arange(400) % 4, 4, seed=1, owner=np.arange(400) % 4)
        assert sum(map(len, rows)) == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm"], "Did you mean 'algorithms'"),
        (["salf"], "lanterne list algorithms salf"),
        (["stragglers"], "lanterne list fleets stragglers"),
        (["zzz"], "Choose from"),
        (["algorithms", "slaf"], "Did you mean 'salf'"),
        (["models", "resnet-smal"], "Did you mean 'resnet-small'"),
    ],
)
def test_what_there_is_not(lanterne_command: Command, words: list[str], said: str) -> None:
    outcome = lanterne_command("list", *words)
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
