"""Learning rates: the same grid for all, the best on validation rows, and never a look at the test split."""

from __future__ import annotations

import contextlib

import pytest
import torch

from lanterne.data import Dataset, load
from studies.harness import tune
from studies.harness.race import held_out


def found(*accuracies: float, diverged: int | None = None) -> dict:
    rows = [{"share": s, "accuracy": a} for s, a in zip((0.5, 0.8, 0.9, 1.0), accuracies, strict=True)]
    return {"rows": rows, "diverged": diverged}


GRID = {0.01: 0.3, 0.03: 0.8, 0.1: 0.9, 0.3: 0.9, 1.0: None}


def is_right(choose) -> bool:
    return choose(GRID) == 0.1 and choose({0.01: None, 0.1: 0.2}) == 0.1 and choose(dict.fromkeys(GRID)) == 0.01


WRONG = {
    "the first": lambda scores: min(scores),
    "the largest": lambda scores: max(lr for lr in scores if scores[lr] is not None),
    "the worst": lambda scores: min(scores, key=lambda lr: 2.0 if scores[lr] is None else scores[lr]),
    "a diverged one": lambda scores: max(scores, key=lambda lr: 2.0 if scores[lr] is None else scores[lr]),
    "the larger of equals": lambda scores: max(
        sorted(scores, reverse=True), key=lambda lr: -1 if scores[lr] is None else scores[lr]
    ),
}


def test_the_best_is_chosen() -> None:
    assert is_right(tune.choose)
    assert is_right(lambda scores: tune.choose(dict(reversed(scores.items()))))


@pytest.mark.parametrize("wrong", WRONG)
def test_another_choice_is_noticed(wrong: str) -> None:
    with contextlib.suppress(ValueError):  # it has nothing to choose from
        assert not is_right(WRONG[wrong])


def test_a_score_is_the_mean_of_the_last_fifth() -> None:
    assert tune.score(found(0.1, 0.6, 0.7, 0.8)) == pytest.approx(0.7)
    assert tune.score(found(0.1, 0.6, 0.7, 0.8, diverged=9)) is None


def test_tuning_never_sees_the_test_split() -> None:
    data = load("digits")
    other = Dataset(data.name, data.x, data.y, -data.test_x, 9 - data.test_y, data.classes)
    one, two = held_out(data, 0), held_out(other, 0)
    for name in ("x", "y", "test_x", "test_y"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    # Every training row is in one of the two parts.
    assert len(one.test_y) == len(data) // 6
    both = torch.cat([one.x, one.test_x]).flatten(1)
    for mine, theirs in zip(both.T[20:24], data.x.flatten(1).T[20:24], strict=True):
        assert torch.equal(mine.sort().values, theirs.sort().values)
    assert not torch.equal(held_out(data, 1).test_x, one.test_x)
