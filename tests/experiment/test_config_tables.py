"""Single settings that take the place of what a file says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanterne.errors import ConfigError
from lanterne.experiment.tables import SHORTHANDS, competitor, competitors, shown, toml_value, with_overrides

BASE: dict[str, Any] = {"rounds": 60, "algorithms": ["salf", "salf:rule=code", "v1.0"], "fleet": {"share": 0.9}}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("rounds=3", ["rounds"], 3),
        ("lr=0.05", ["training", "lr"], 0.05),
        ("deadline=q0.5", ["training", "deadline"], "q0.5"),
        ("deadline=50%", ["training", "deadline"], "50%"),
        ("deadline=inf", ["training", "deadline"], math.inf),
        ("training.lr = 1e-3", ["training", "lr"], 1e-3),
        ("fleet.slowdown=3", ["fleet", "slowdown"], 3),
        ("seeds=[1, 2]", ["seeds"], [1, 2]),
        ("data.source=data/my set.parquet", ["data", "source"], "data/my set.parquet"),
        ("data.source='3'", ["data", "source"], "3"),
        ("salf.rule=cond", ["algorithms", "salf", "rule"], "cond"),
        ("algorithms.salf.rule=cond", ["algorithms", "salf", "rule"], "cond"),
        ("salf.keep_momentum=true", ["algorithms", "salf", "keep_momentum"], True),
        ("salf:rule=code.p=zero", ["algorithms", "salf:rule=code", "p"], "zero"),
        ("v1.0.lr=2", ["algorithms", "v1.0", "lr"], 2),
        ("data.source=a=b", ["data", "source"], "a=b"),
    ],
)
def test_a_setting_reaches_its_place(setting: str, path: list[str], value: object) -> None:
    found: Any = with_overrides(BASE, [setting])
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_the_original_stays_as_it_was_and_the_last_word_counts() -> None:
    base: dict[str, Any] = {"algorithms": {"salf": {"rule": "paper"}}, "training": {"lr": 0.1}}
    changed = with_overrides(base, ["lr=1", "lr=2", "salf.rule=ht"])
    assert changed == {"algorithms": {"salf": {"rule": "ht"}}, "training": {"lr": 2}}
    assert base == {"algorithms": {"salf": {"rule": "paper"}}, "training": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lr", "key=value"),
        ("lr=", "key=value"),
        ("=3", "key=value"),
        (" = ", "key=value"),
        ("fleet..share=3", "empty part"),
        ("slaf.rule=code", "Did you mean 'salf'"),
        ("flet.share=1", "Did you mean 'fleet'"),
        ("algorithms.slaf.rule=code", "Did you mean 'salf'"),
        ("fleet.share.x=1", "no parts"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        with_overrides(BASE, [setting])
    assert "\n" not in str(caught.value)


@given(st.sampled_from(SHORTHANDS), st.floats(allow_nan=False) | st.integers(-(2**62), 2**62) | st.booleans())
def test_a_shorthand_keeps_value_and_type(key: str, value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    found = with_overrides({}, [f"{key}={text}"])["training"][key]
    assert found == value
    assert type(found) is type(value)


@given(st.text())
def test_every_text_is_some_value(text: str) -> None:
    found = toml_value(text)
    assert "\n" not in shown(found)
    assert len(shown(found)) <= 55


def test_a_value_cannot_smuggle_in_a_second_key() -> None:
    assert toml_value("1\nrounds = 2") == "1\nrounds = 2"


def test_competitors() -> None:
    assert competitor("salf:rule=code,lr=0.1") == (
        "salf:rule=code,lr=0.1",
        {"algorithm": "salf", "rule": "code", "lr": 0.1},
    )
    assert competitors(["salf", "drop"]) == {"salf": {}, "drop": {}}
    assert competitors({"a": {"algorithm": "salf"}}) == {"a": {"algorithm": "salf"}}
