"""Aggregation against brute force, coordinate by coordinate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lanterne.learn import Update, coverage_mean, coverage_sum, polynomial_staleness
from lanterne.models import ParamView

SIZE = 7
slices = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: slice(min(p), max(p)))
indices = st.sets(st.integers(0, SIZE - 1)).map(lambda s: torch.tensor(sorted(s), dtype=torch.int64))
weights = st.floats(1e-3, 1e3)
cases = st.tuples(
    st.lists(slices | indices, min_size=1, max_size=4),  # the views that there are
    st.lists(st.tuples(st.integers(0, 3), weights), max_size=6),  # who uses which, with what weight
    st.integers(0, 999),
)


def held(view: ParamView) -> list[int]:
    """The coordinates of a view."""
    return list(range(SIZE))[view.index] if isinstance(view.index, slice) else view.index.tolist()


def made(case: tuple) -> tuple[Tensor, list[Update]]:
    """Current weights, negative zeros among them, and updates; several of them share a view."""
    places, users, seed = case
    views = [ParamView(p, (((len(range(SIZE)[p]) if isinstance(p, slice) else len(p),),),)) for p in places]
    g = torch.Generator().manual_seed(seed)
    current = torch.randn(SIZE, generator=g, dtype=torch.float64)
    current[seed % SIZE] = -0.0
    chosen = [(views[i % len(views)], weight) for i, weight in users]
    return current, [Update(v, torch.randn(v.size, generator=g, dtype=torch.float64), weight) for v, weight in chosen]


def brute_force(current: Tensor, updates: list[Update]) -> tuple[list[float], list[float]]:
    """Sums of deltas and weights, one coordinate of one update at a time."""
    total, cover = [0.0] * SIZE, [0.0] * SIZE
    for view, delta, weight in updates:
        for place, value in zip(held(view), delta.tolist(), strict=True):
            total[place] += weight * value
            cover[place] += weight
    return total, cover


@given(cases)
def test_sums_are_brute_force(case: tuple) -> None:
    current, updates = made(case)
    kept = current.clone(), [u.delta.clone() for u in updates]
    total, cover = coverage_sum(current, updates)
    expected = brute_force(current, updates)
    assert total.tolist() == pytest.approx(expected[0], rel=1e-12, abs=1e-10)
    assert cover.tolist() == pytest.approx(expected[1], rel=1e-12)
    assert torch.equal(current, kept[0])
    assert all(torch.equal(u.delta, delta) for u, delta in zip(updates, kept[1], strict=True))


@given(cases, st.sampled_from(["number", "vector"]))
def test_means_are_brute_force_and_what_nobody_covers_keeps_its_bits(case: tuple, kind: str) -> None:
    current, updates = made(case)
    factor = 0.7 if kind == "number" else torch.linspace(0.5, 2, SIZE, dtype=torch.float64)
    found = coverage_mean(current, updates, factor)
    total, cover = brute_force(current, updates)
    for i in range(SIZE):
        scale = factor if isinstance(factor, float) else float(factor[i])
        if cover[i]:
            assert float(found[i]) == pytest.approx(
                float(current[i]) + scale * total[i] / cover[i], rel=1e-12, abs=1e-12
            )
        else:
            assert found[i].view(torch.int64) == current[i].view(torch.int64)


@given(cases)
def test_the_wrong_variant_divides_by_everybody(case: tuple) -> None:
    """Where some do not cover a coordinate, the mean over all is another one."""
    current, updates = made(case)
    total, cover = brute_force(current, updates)
    everybody = sum(u.weight for u in updates)
    found = coverage_mean(current, updates)
    for i in range(SIZE):
        wrong = float(current[i]) + (total[i] / everybody if everybody else 0.0)
        if cover[i] and cover[i] < 0.9 * everybody and abs(total[i] / cover[i]) > 1e-3:
            assert float(found[i]) != pytest.approx(wrong, rel=1e-9)


@given(st.lists(weights, min_size=1, max_size=5), st.integers(0, 99))
def test_when_all_hold_everything_it_is_the_weighted_mean(ws: list[float], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    view = ParamView(slice(0, SIZE), (((SIZE,),),))
    current = torch.randn(SIZE, generator=g, dtype=torch.float64)
    theirs = [torch.randn(SIZE, generator=g, dtype=torch.float64) for _ in ws]
    found = coverage_mean(current, [Update(view, w - current, n) for w, n in zip(theirs, ws, strict=True)])
    mean = sum(n * w for n, w in zip(ws, theirs, strict=True)) / sum(ws)
    assert torch.allclose(found, mean, rtol=1e-11, atol=1e-11)


@given(cases, st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_scale_of_the_weights_does_not_matter(case: tuple, scale: float) -> None:
    """To the bit for powers of two."""
    current, updates = made(case)
    scaled = [Update(u.view, u.delta, scale * u.weight) for u in updates]
    assert torch.equal(coverage_mean(current, updates), coverage_mean(current, scaled))


def test_nobody_means_nothing_changes() -> None:
    current = torch.tensor([1.0, -0.0, math.inf])
    found = coverage_mean(current, [])
    assert found.view(torch.int32).tolist() == current.view(torch.int32).tolist()


def test_one_view_or_two_of_the_same_coordinates_is_the_same() -> None:
    """Views are grouped by identity, which is about speed: the sums do not depend on it but for rounding."""
    a, b = (ParamView(slice(1, 4), (((3,),),)) for _ in range(2))
    deltas = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-4.0, 5.0, 0.5])]
    shared = coverage_sum(torch.zeros(5), [Update(a, deltas[0], 1.0), Update(a, deltas[1], 3.0)])
    apart = coverage_sum(torch.zeros(5), [Update(a, deltas[0], 1.0), Update(b, deltas[1], 3.0)])
    assert torch.equal(shared[0], apart[0])
    assert shared[1].tolist() == apart[1].tolist() == [0, 4, 4, 4, 0]


@given(st.integers(0, 50), st.floats(0, 3))
def test_staleness(staleness: int, exponent: float) -> None:
    weight = polynomial_staleness(staleness, exponent)
    assert weight == pytest.approx(math.exp(-exponent * math.log1p(staleness)), rel=1e-12)
    assert polynomial_staleness(0, exponent) == polynomial_staleness(staleness, 0.0) == 1.0
    assert polynomial_staleness(staleness + 1, exponent) <= weight <= 1.0
