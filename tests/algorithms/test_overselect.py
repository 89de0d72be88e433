"""Over-selection: what it is with a factor of 1, whom it keeps, and whom it sends home."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lanterne.algorithms import FedAvg, OverSelect, overselect
from lanterne.protocol import All, First
from lanterne.testing import STORMS, simulate, tiny_problem, uneven_fleet


@pytest.mark.parametrize("cohort", [None, 2, 6, 9])
@pytest.mark.parametrize("storm", ["calm", *STORMS])
def test_with_a_factor_of_1_it_is_fedavg_bit_for_bit(cohort: int | None, storm: str) -> None:
    problem, fleet = tiny_problem(), uneven_fleet(**STORMS.get(storm, {}))
    shared: dict[str, Any] = {"lr": 0.3, "local_steps": 2, "momentum": 0.5, "keep_momentum": True, "cohort": cohort}
    expected, slow = simulate(lambda s: FedAvg(stack=s, **shared), problem, fleet, 4)
    found, quick = simulate(lambda s: OverSelect(stack=s, factor=1.0, **shared), problem, fleet, 4)
    assert torch.equal(found, expected)
    assert quick.now == slow.now
    more, _ = simulate(lambda s: OverSelect(stack=s, factor=2.0, **shared), problem, fleet, 4)
    assert torch.equal(more, expected) == (cohort in (6, 9))  # there are only six to invite


@pytest.mark.parametrize(
    ("cohort", "factor", "invited"), [(1, 1.3, 1), (2, 1.3, 3), (3, 1.5, 4), (4, 1.3, 5), (6, 1.3, 6)]
)
def test_the_first_k_are_averaged_and_the_others_sent_home(cohort: int, factor: float, invited: int) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    _, waiting = simulate(lambda s: FedAvg(stack=s, lr=0.3, cohort=invited), problem, fleet, 1)
    ranked = sorted(waiting.timeline, key=lambda r: r["arrived"])
    kept, left = {r["client"] for r in ranked[:cohort]}, {r["client"] for r in ranked[cohort:]}
    found, simulator = simulate(lambda s: OverSelect(stack=s, lr=0.3, cohort=cohort, factor=factor), problem, fleet, 1)
    assert simulator.now == ranked[cohort - 1]["arrived"]
    assert {r["client"] for r in simulator.timeline if r["outcome"] == "complete"} == kept
    assert {r["client"] for r in simulator.timeline if r["outcome"] == "cancelled"} == left
    assert len(kept) + len(left) == invited
    books = simulator.ledger
    assert all(books[c].wasted == books[c].busy > 0 for c in left)
    assert all(books[c].wasted == 0 for c in kept)
    gone = replace(fleet, devices=[replace(d, dropout=float(c not in kept)) for c, d in enumerate(fleet.devices)])
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3, cohort=invited), problem, gone, 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "rule",
    [lambda _: All(), lambda k: First(k - 1), lambda k: First(k + 1)],
    ids=["waits for all", "one too few", "one too many"],
)
def test_the_wrong_number_of_answers_is_noticed(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overselect, "First", rule)
    with pytest.raises(AssertionError):
        test_the_first_k_are_averaged_and_the_others_sent_home(3, 1.5, 4)


@pytest.mark.parametrize(("factor", "answers"), [(1.0, 6), (1.3, 5), (2.0, 3), (100.0, 1)])
def test_by_default_everybody_is_invited(factor: float, answers: int) -> None:
    _, simulator = simulate(lambda s: OverSelect(stack=s, factor=factor), tiny_problem(), uneven_fleet(), 1)
    assert len(simulator.timeline) == 6
    assert sum(r["outcome"] == "complete" for r in simulator.timeline) == answers


def test_fewer_answers_than_wanted_are_averaged_as_they_are() -> None:
    """Over-selection makes up for losses; where there are too many of them, the round ends with who is left."""
    problem, fleet = tiny_problem(), uneven_fleet()
    gone = replace(fleet, devices=[replace(d, dropout=float(c > 1)) for c, d in enumerate(fleet.devices)])
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, gone, 3)
    found, _ = simulate(lambda s: OverSelect(stack=s, lr=0.3, cohort=5), problem, gone, 3)
    assert torch.equal(found, expected)
    assert not torch.equal(found, problem.w)


@pytest.mark.parametrize("wrong", [{"factor": 0.9}, {"factor": float("inf")}, {"cohort": 0}, {"lr": 0}, {"fctor": 1.3}])
def test_impossible_hyperparameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OverSelect(stack=tiny_problem().stack, **wrong)
