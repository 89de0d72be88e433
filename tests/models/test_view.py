"""Views against brute force: what is taken, in which order, in which shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanterne.models import ParamView

blocks = st.lists(
    st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), max_size=3).map(tuple), min_size=1, max_size=4
).map(tuple)


@given(blocks, st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 9))
def test_take_and_leaves_are_brute_force(
    shapes: tuple[tuple[tuple[int, ...], ...], ...], before: int, behind: int, sliced: bool, seed: int
) -> None:
    size = sum(math.prod(shape) for block in shapes for shape in block)
    total = before + size + behind
    w = torch.randn(total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    held = list(range(before, before + size))
    if not sliced:
        held = sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:size].tolist())
    index = slice(before, before + size) if sliced else torch.tensor(held, dtype=torch.int64)
    view = ParamView(index, shapes, first=2)
    taken = view.take(w)
    assert taken.tolist() == [w[i].item() for i in held]
    assert (view.size, view.last) == (size, 2 + len(shapes))
    flat = [shape for block in shapes for shape in block]
    assert view.flat_shapes == flat
    assert view.sizes == [math.prod(shape) for shape in flat]
    values = iter(w[i].item() for i in held)
    for leaf, shape in zip(view.leaves(taken), flat, strict=True):
        assert leaf.shape == shape
        assert leaf.reshape(-1).tolist() == [next(values) for _ in range(math.prod(shape))]
    assert next(values, None) is None


def test_a_slice_is_a_window_on_the_vector_and_an_index_is_a_copy() -> None:
    """Whoever changes what a slice took changes the vector: handlers clone first."""
    w = torch.zeros(6)
    ParamView(slice(1, 3), (((2,),),)).take(w).add_(1)
    ParamView(torch.tensor([4, 5]), (((2,),),)).take(w).add_(1)
    assert w.tolist() == [0, 1, 1, 0, 0, 0]


def test_views_are_equal_by_identity() -> None:
    """Aggregation groups by view: two users of one view share it, equal coordinates of different shapes do not meet."""
    a, b = ParamView(slice(0, 2), (((2,),),)), ParamView(slice(0, 2), (((2,),),))
    assert a != b
    assert len({a, b}) == 2


def test_leaves_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(RuntimeError):
        ParamView(slice(0, 2), (((2,),),)).leaves(torch.zeros(3))
