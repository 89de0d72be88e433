"""A misspelt key is answered with the right one, wherever that stands."""

from __future__ import annotations

import pytest

from lanterne.errors import ConfigError
from lanterne.experiment.config import parse_config
from lanterne.experiment.tables import SHORTHANDS, with_overrides


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        # misspelt, and near to a key of the same table
        ("round=3", "Did you mean 'rounds'?"),
        ("training.locl_steps=3", "Did you mean 'local_steps'?"),
        # misspelt, and near to a key of another table: the shorthands of --set among them
        ("lrr=1", "Did you mean training.lr?"),
        ("momentm=1", "Did you mean training.momentum?"),
        ("bacth=8", "Did you mean data.batch?"),
        ("slwdown=3", "Did you mean fleet.slowdown?"),
        ("rul=code", "Did you mean algorithms.<label>.rule?"),
        ("training.bach=8", "Did you mean data.batch?"),
        ("training.round=3", "Did you mean rounds at the top, above the first table?"),
        # right, but elsewhere
        ("batch=8", "Did you mean data.batch?"),
        ("data.lr=8", "Did you mean training.lr?"),
        # near to nothing
        ("xyzzy=1", "Choose from: algorithms, data, evaluate_every"),
        ("data.xyzzy=1", "Choose from: augment, batch, clients, image"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(setting: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_overrides({"algorithms": ["salf"]}, [setting]))
    assert str(caught.value).partition("=")[0].startswith(setting.partition("=")[0])
    assert answer in str(caught.value)


@pytest.mark.parametrize("key", SHORTHANDS)
def test_what_is_answered_for_a_misspelt_shorthand_can_be_set(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_overrides({"algorithms": ["salf"]}, [f"{key}x=1"]))
    _, _, right = str(caught.value).removesuffix("?").partition("Did you mean ")
    assert right == f"training.{key}"
    for name in (right, key):
        config = parse_config(with_overrides({"algorithms": ["salf"]}, [f"{name}={0.5 if key == 'momentum' else 1}"]))
        assert getattr(config.training, key) is not None
