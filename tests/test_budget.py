"""Units against counting them one by one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lanterne.budget import Clock, Units


def by_counting(known: int, blocks: int) -> tuple[int, int]:
    """Whole steps, and how many blocks the backward pass of the next one gets through, unit by unit."""
    whole, forward, backward = 0, 0, 0
    for _ in range(known):
        if forward < blocks:
            forward += 1
        else:
            backward += 1
        if backward == blocks:
            whole, forward, backward = whole + 1, 0, 0
    return whole, backward


@given(st.integers(0, 200), st.integers(1, 12))
@example(0, 1)
@example(1, 1)
@example(2, 1)
def test_steps_are_counted_units(known: int, blocks: int) -> None:
    assert Units(known).steps(blocks) == by_counting(known, blocks)


def test_a_budget_without_an_end_has_no_last_step() -> None:
    assert Units().steps(3) is None
    assert Units(0).steps(3) == (0, 0)  # and one that is empty is not one without an end


@given(st.integers(0, 100), st.integers(1, 8))
def test_more_units_never_reach_less(known: int, blocks: int) -> None:
    before, after = Units(known).steps(blocks), Units(known + 1).steps(blocks)
    assert before is not None
    assert after is not None
    assert 0 <= (after[0] * blocks + after[1]) - (before[0] * blocks + before[1]) <= 1


def test_budgets_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Units(3).known = 4  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Clock(lambda: True).allows = lambda: False  # type: ignore[misc]
