"""The configuration: TOML and back, and what it refuses."""

from __future__ import annotations

import datetime
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from lanterne.algorithms import ALGORITHMS
from lanterne.errors import ConfigError
from lanterne.experiment.config import (
    Config,
    algorithm_error,
    make_algorithm,
    parse_config,
    quantile,
    read_config,
    to_toml,
    usable_cores,
)
from lanterne.experiment.parameters import parameters_of
from lanterne.fleet import PRESETS
from lanterne.models import LayerStack
from lanterne.models.zoo import MODELS

RACE: dict[str, Any] = {"algorithms": ["salf", "drop"]}

EXAMPLE = """
rounds = 60
seeds = [1, 2]
evaluate_every = 1

[training]
lr = 0.1
local_steps = 1
momentum = 0.0
cohort = 10
deadline = "q0.5"

[data]
source = "digits"
image = "img"
label = "label"
partition = "dirichlet:0.3"
clients = 30
batch = 32

[fleet]
kind = "stragglers"
share = 0.9

[model]
name = "resnet-small"

[runtime]
executor = "auto"
threads = 2
device = "cpu"
dtype = "float32"

[algorithms.salf]
rule = "paper"

[algorithms.salf-code]
algorithm = "salf"
rule = "code"
"""

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
whole = st.integers(min_value=1, max_value=2**63 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
labels = st.from_regex(r"\A[a-z0-9_][a-z0-9._=:,-]{0,20}\Z")
tables = {
    "salf": st.fixed_dictionaries(
        {},
        optional={
            "rule": st.sampled_from(["paper", "cond", "code", "ht"]),
            "deadline": positive | st.just(math.inf) | st.lists(positive, min_size=1, max_size=3),
            "by_steps": st.booleans(),
            "cohort": whole,
            "lr": positive,
        },
    ),
    "fedbuff": st.fixed_dictionaries({}, optional={"buffer": whole, "max_staleness": st.integers(0, 10)}),
}
competitors = st.sampled_from(sorted(tables)).flatmap(
    lambda name: tables[name].map(lambda table: {"algorithm": name, **table})
)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


experiments = st.fixed_dictionaries(
    {"algorithms": st.dictionaries(labels, competitors, min_size=1, max_size=4)},
    optional={
        "rounds": whole,
        "seeds": st.lists(st.integers(0, 2**63 - 1), unique=True, min_size=1),
        "evaluate_every": whole,
        "training": optional(
            lr=positive,
            local_steps=whole,
            momentum=st.floats(0, 1, exclude_max=True),
            cohort=whole,
            deadline=positive | st.just(math.inf) | st.sampled_from(["q0.5", "50%", "q1", "0 %"]),
        ),
        "data": optional(source=text, image=text, label=text, partition=text, clients=whole, batch=whole),
        "fleet": optional(share=st.floats(0, 1), flops=st.floats(0.001, 1e9), down=st.floats(0.001), machines=whole),
        "runtime": optional(executor=st.sampled_from(["auto", "loop", "batched"]), threads=whole),
    },
)


@given(experiments)
def test_an_experiment_survives_toml(mapping: dict[str, Any]) -> None:
    config = parse_config(mapping)
    again = parse_config(tomllib.loads(to_toml(config)))
    assert again == config
    assert to_toml(again) == to_toml(config)


def test_the_example_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "race.toml").write_text(EXAMPLE)
    config = read_config(tmp_path / "race.toml")
    assert config.rounds == 60
    assert config.seeds == (1, 2)
    assert config.training.deadline == "q0.5"
    assert config.data.image == "img"
    assert config.fleet.kind == "stragglers"
    assert config.fleet.parameters == {"share": 0.9}
    assert config.runtime.threads == 2
    assert list(config.algorithms) == ["salf", "salf-code"]
    assert config.algorithms["salf-code"].algorithm == "salf"
    assert config.algorithms["salf-code"].parameters == {"rule": "code"}
    assert to_toml(config).split() == EXAMPLE.split()


def test_everything_but_the_competitors_has_a_default() -> None:
    config = parse_config({"algorithms": ["fedavg", "salf:rule=code,p=zero"]})
    assert config.fleet.kind == "stragglers"
    assert config.data.partition == "dirichlet:0.3"
    assert config.training.lr is None
    assert config.runtime.threads == usable_cores() <= 8
    assert config.algorithms["salf:rule=code,p=zero"].parameters == {"rule": "code", "p": "zero"}


def test_what_is_none_is_left_out() -> None:
    config = parse_config({"algorithms": {"salf": {"cohort": None}}, "training": {"lr": None}})
    assert config == parse_config({"algorithms": ["salf"]})
    assert "lr" not in to_toml(config)


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(RACE)
    with pytest.raises(ValidationError):
        config.rounds = 3  # type: ignore[misc]


def test_own_algorithms_are_not_checked() -> None:
    config = parse_config({"algorithms": {"mine": {"anything": 1}, "salf": {}}}, own=["mine"])
    assert config.algorithms["mine"].parameters == {"anything": 1}
    with pytest.raises(ConfigError, match="mine"):
        parse_config({"algorithms": {"mine": {"anything": 1}}})


def test_a_config_goes_through_plain_data() -> None:
    config = parse_config({"algorithms": {"b": {"algorithm": "salf", "rule": "ht"}}, "fleet": {"share": 0.5}})
    assert Config.model_validate(config.model_dump()) == config


def test_parameters_of_a_fleet_are_checked_together() -> None:
    config = parse_config({**RACE, "fleet": {"redraw": "round", "load": "constant"}})
    assert config.fleet.parameters == {"redraw": "round", "load": "constant"}


def test_a_fleet_file_is_not_looked_for() -> None:
    assert parse_config({**RACE, "fleet": {"kind": "nowhere/fleet.csv"}}).fleet.kind == "nowhere/fleet.csv"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # what is written, where it is wrong, what to write instead
    ({}, "algorithms", "salf"),
    ({"algorithms": []}, "algorithms", "salf"),
    ({"algorithms": 3}, "algorithms", "list of names"),
    ({"algorithms": ["salf", 3]}, "algorithms", "list of names"),
    ({"algorithms": {"salf": 3}}, "algorithms.salf", "[algorithms.salf]"),
    ({"algorithm": {"salf": {}}}, "algorithm:", "'algorithms'"),
    ({"algorithms": ["slaf"]}, "algorithms.slaf", "'salf'"),
    ({"algorithms": ["mine"]}, "algorithms.mine", 'algorithm = "salf"'),
    ({"algorithms": {"a": {"algorithm": "slaf"}}}, "algorithms.a", "'salf'"),
    ({"algorithms": {"a": {"algorithm": 3}}}, "algorithms.a.algorithm", "text"),
    ({"algorithms": ["salf", "salf"]}, "'salf' twice", "[algorithms.salf-2]"),
    ({"algorithms": {"salf": {}, "SALF": {"algorithm": "salf"}}}, "'SALF'", "another label"),
    ({"algorithms": {"a/b": {"algorithm": "salf"}}}, "'a/b'", "letters"),
    ({"algorithms": {"..": {"algorithm": "salf"}}}, "'..'", "letters"),
    ({"algorithms": {"": {"algorithm": "salf"}}}, "''", "letters"),
    ({"algorithms": {"-x": {"algorithm": "salf"}}}, "'-x'", "letters"),
    ({"algorithms": {"a" * 81: {"algorithm": "salf"}}}, "'aaa", "80"),
    ({"algorithms": ["salf:rule"]}, "'rule'", "salf:rule=code"),
    ({"algorithms": ["salf:rule=code,rule=ht"]}, "rule", "once"),
    ({"algorithms": {"salf": {"rul": "code"}}}, "algorithms.salf.rul", "'rule'"),
    ({"algorithms": {"salf": {"rule": "papr"}}}, "algorithms.salf.rule", "'paper'"),
    ({"algorithms": {"salf": {"lr": "fast"}}}, "algorithms.salf.lr", "number"),
    ({"algorithms": {"salf": {"lr": 0}}}, "algorithms.salf.lr", "above 0"),
    ({"algorithms": {"salf": {"lr": math.nan}}}, "algorithms.salf.lr", "number"),
    ({"algorithms": {"salf": {"local_steps": 2.5}}}, "algorithms.salf.local_steps", "whole number"),
    ({"algorithms": {"salf": {"by_steps": 1}}}, "algorithms.salf.by_steps", "true or false"),
    ({"algorithms": {"salf": {"deadline": "q0.5"}}}, "algorithms.salf.deadline", "training.deadline"),
    ({"algorithms": {"salf": {"rule": {"a": 1}}}}, "algorithms.salf.rule", "paper"),
    ({"algorithms": {"salf": {"stack": 1}}}, "algorithms.salf.stack", "Choose from"),
    ({**RACE, "round": 3}, "round", "'rounds'"),
    ({**RACE, "lr": 0.1}, "lr", "training.lr"),
    ({**RACE, "slowdown": 3}, "slowdown", "fleet.slowdown"),
    ({**RACE, "rule": "code"}, "rule", "algorithms.<label>.rule"),
    ({**RACE, "rounds": 0}, "rounds", "at least 1"),
    ({**RACE, "rounds": 2.0}, "rounds", "whole number"),
    ({**RACE, "rounds": "many"}, "rounds", "whole number"),
    ({**RACE, "rounds": True}, "rounds", "whole number"),
    ({**RACE, "seeds": []}, "seeds", "seeds = [1]"),
    ({**RACE, "seeds": 1}, "seeds", "list"),
    ({**RACE, "seeds": [1, -1]}, "seeds[1]", "at least 0"),
    ({**RACE, "seeds": [1, "b"]}, "seeds[1]", "whole number"),
    ({**RACE, "seeds": [3, 3]}, "seeds", "once"),
    ({**RACE, "seeds": [2**63]}, "seeds[0]", "below"),
    ({**RACE, "evaluate_every": 0}, "evaluate_every", "at least 1"),
    ({**RACE, "training": 3}, "training", "[training]"),
    ({**RACE, "training": {"rounds": 3}}, "training.rounds", "at the top"),
    ({**RACE, "training": {"learning_rate": 3}}, "training.learning_rate", "Choose from"),
    ({**RACE, "training": {"locl_steps": 3}}, "training.locl_steps", "'local_steps'"),
    ({**RACE, "training": {"lr": "0.1"}}, "training.lr", "number"),
    ({**RACE, "training": {"lr": math.inf}}, "training.lr", "finite"),
    ({**RACE, "training": {"momentum": 1.0}}, "training.momentum", "below 1"),
    ({**RACE, "training": {"cohort": 0}}, "training.cohort", "at least 1"),
    ({**RACE, "training": {"deadline": 0}}, "training.deadline", "above 0"),
    ({**RACE, "training": {"deadline": math.nan}}, "training.deadline", "above 0"),
    ({**RACE, "training": {"deadline": True}}, "training.deadline", "above 0"),
    ({**RACE, "training": {"deadline": "q1.5"}}, "training.deadline", "q0.5"),
    ({**RACE, "training": {"deadline": "q0..5"}}, "training.deadline", "q0.5"),
    ({**RACE, "training": {"deadline": "soon"}}, "training.deadline", "q0.5"),
    ({**RACE, "data": {"sourc": "digits"}}, "data.sourc", "'source'"),
    ({**RACE, "data": {"source": ""}}, "data.source", "something"),
    ({**RACE, "data": {"source": 3}}, "data.source", "quotation marks"),
    ({**RACE, "data": {"clients": -3}}, "data.clients", "at least 1"),
    ({**RACE, "data": {"batch": 1.5}}, "data.batch", "whole number"),
    ({**RACE, "fleet": 3}, "fleet", "[fleet]"),
    ({**RACE, "fleet": {"kind": "straglers"}}, "fleet.kind", "'stragglers'"),
    ({**RACE, "fleet": {"kind": "fleet.cvs"}}, "fleet.kind", ".csv"),
    ({**RACE, "fleet": {"kind": 3}}, "fleet.kind", "text"),
    ({**RACE, "fleet": {"kind": "a.csv", "share": 0.5}}, "fleet.share", "Leave it out"),
    ({**RACE, "fleet": {"shar": 0.5}}, "fleet.shar", "'share'"),
    ({**RACE, "fleet": {"share": 1.5}}, "fleet.share", "from 0 to 1"),
    ({**RACE, "fleet": {"share": "most"}}, "fleet.share", "number"),
    ({**RACE, "fleet": {"flops": -1}}, "fleet.flops", "above 0"),
    ({**RACE, "fleet": {"flops": math.nan}}, "fleet.flops", "number"),
    ({**RACE, "fleet": {"flops": datetime.date(2026, 1, 1)}}, "fleet.flops", "number"),
    ({**RACE, "fleet": {"redraw": "rond"}}, "fleet.redraw", "'round'"),
    ({**RACE, "fleet": {"redraw": "round"}}, "fleet.redraw", "load = 'constant'"),
    ({**RACE, "model": {"name": "resnet-smal"}}, "model.name", "'resnet-small'"),
    ({**RACE, "model": {"name": "resnet18:nrm=batch"}}, "model.name", "'norm'"),
    ({**RACE, "model": {"name": "resnet18:norm=bach"}}, "model.name", "'batch'"),
    ({**RACE, "model": {"nam": "resnet"}}, "model.nam", "'name'"),
    ({**RACE, "runtime": {"executor": "lop"}}, "runtime.executor", "'loop'"),
    ({**RACE, "runtime": {"dtype": "float16"}}, "runtime.dtype", "'float"),
    ({**RACE, "runtime": {"threads": 0}}, "runtime.threads", "at least 1"),
    ({**RACE, "runtime": {"device": "gpu"}}, "runtime.device", "cuda"),
]


@pytest.mark.parametrize(("mapping", "where", "repair"), REFUSED)
def test_a_mistake_gets_one_line_with_its_place_and_its_repair(
    mapping: dict[str, Any], where: str, repair: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(mapping)
    message = str(caught.value)
    assert "\n" not in message
    assert where in message
    assert repair in message
    assert "pydantic" not in message
    assert len(message) < 300
    assert caught.value.__cause__ is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
PLACES = [
    "rounds",
    "seeds",
    "training",
    "training.deadline",
    "training.lr",
    "data.source",
    "fleet",
    "fleet.kind",
    "fleet.share",
    "fleet.machines",
    "model.name",
    "runtime.device",
    "algorithms",
    "algorithms.salf",
    "algorithms.salf.rule",
    "algorithms.salf.algorithm",
    "algorithms.salf.cohort",
]


@given(anything, st.sampled_from(PLACES))
def test_whatever_stands_somewhere_is_taken_or_refused_in_one_line(value: Any, place: str) -> None:
    mapping: dict[str, Any] = {"algorithms": {"salf": {}}}
    table = mapping
    *path, key = place.split(".")
    for part in path:
        table = table.setdefault(part, {})
    table[key] = value
    try:
        config, said = parse_config(mapping), ""
    except ConfigError as error:
        config, said = parse_config(RACE), str(error)
    assert "\n" not in said
    assert parse_config(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"rounds = \n[data]", "line 1"),
        (b"rounds = 3\nrounds = 4", "line 2"),
        (b"a = 1\nb = '\xff'", "UTF-8"),
        (b"", "algorithms"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "race.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told_from_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "race.toml").write_text(EXAMPLE)
    with pytest.raises(ConfigError, match=r"Did you mean '.*race\.toml'"):
        read_config(tmp_path / "rase.toml")
    with pytest.raises(ConfigError, match="lanterne run"):
        read_config(tmp_path / "empty" / "race.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_quantiles() -> None:
    assert quantile("q0.25") == quantile("25%") == quantile("25 %") == 0.25


def stack() -> LayerStack:
    return LayerStack(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (4,))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_is_made_by_name(name: str) -> None:
    made = make_algorithm(name, stack(), lr=0.25)
    assert isinstance(made, ALGORITHMS[name])
    assert made.lr == 0.25  # type: ignore[attr-defined]


def test_what_an_algorithm_refuses_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"algorithms\.salf\.rule is 'x'"):
        make_algorithm("salf", stack(), rule="x")
    with pytest.raises(ConfigError, match="Did you mean 'salf'"):
        make_algorithm("slaf", stack())
    with pytest.raises(ValidationError) as caught:
        ALGORITHMS["salf"](stack=stack(), factor_cap=0.5)
    assert str(algorithm_error("mine", caught.value)) == "algorithms.mine.factor_cap is 0.5, but has to be at least 1."


@pytest.mark.parametrize("kind", [*ALGORITHMS.values(), *PRESETS.values()])
def test_every_parameter_has_a_type_and_a_meaning(kind: type[Any]) -> None:
    found = parameters_of(kind)
    assert found
    for name, parameter in found.items():
        assert parameter.name == name
        assert parameter.type
        assert parameter.meaning, f"{kind.__name__}.{name} says nowhere what it means"


def test_every_model_can_be_named() -> None:
    for name in (*MODELS, "resnet18:norm=batch", "mlp:widths=64-32"):
        assert parse_config({**RACE, "model": {"name": name}}).model.name == name
