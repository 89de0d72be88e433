"""Numbers as people read them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanterne.report.units import log_ticks, percent, quantity, unit, unit_name


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("seconds", 0.0, "0 s"),
        ("seconds", 3.2e-9, "3.2e-03 µs"),
        ("seconds", 0.0042, "4.20 ms"),
        ("seconds", 59.0, "59.0 s"),
        ("seconds", 119.0, "119 s"),
        ("seconds", 121.0, "2.02 min"),
        ("seconds", 86_400.0, "24.0 h"),
        ("seconds", 1e9, "11,574 d"),
        ("bytes", 0.0, "0 B"),
        ("bytes", 999.0, "999 B"),
        ("bytes", 1000.0, "1.00 kB"),
        ("bytes", 18_432_000.0, "18.4 MB"),
        ("bytes", 3e22, "3.00e+07 PB"),
        ("count", 60.0, "60"),
        ("count", 60.5, "60.5"),
        ("count", math.nan, "-"),
        ("seconds", math.inf, "-"),
    ],
)
def test_a_quantity_has_three_figures_and_the_unit_that_fits(kind, value, text) -> None:
    assert quantity(kind, value) == text


def test_an_axis_writes_out_units_of_time_only() -> None:
    assert unit_name("seconds", unit("seconds", 500.0)[1]) == "minutes"
    assert unit_name("bytes", unit("bytes", 5e6)[1]) == "MB"
    assert unit_name("count", unit("count", 5e6)[1]) == ""


def test_what_is_not_known_has_a_dash() -> None:
    assert percent(None) == percent(math.nan) == "-"


@given(
    kind=st.sampled_from(["seconds", "bytes", "count"]),
    low=st.floats(1e-8, 1e15),
    ratio=st.floats(4.0, 1e12),
)
def test_ticks_of_a_logarithmic_axis_are_few_distinct_and_inside(kind, low, ratio) -> None:
    high = low * ratio
    ticks, texts, finer = log_ticks(kind, low, high)
    assert 1 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in [*ticks, *finer])
    assert ticks == sorted(set(ticks))
    assert len(set(texts)) == len(texts)
    places = [30 * math.log(tick / low) / math.log(ratio) for tick in ticks]
    for (left, one), (right, other) in itertools.pairwise(zip(places, texts, strict=True)):
        assert right - left > (len(one) + len(other)) / 2


def test_ticks_of_time_are_those_of_a_clock() -> None:
    assert log_ticks("seconds", 4, 2000)[1] == ["10 s", "1 min", "10 min"]
    assert log_ticks("seconds", 0.5, 3.0)[1] == ["500 ms", "1 s", "2 s"]
    assert log_ticks("bytes", 5e5, 5e8)[1] == ["1 MB", "10 MB", "100 MB"]
