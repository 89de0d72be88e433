"""Flat parameters: what goes in comes out, views share memory, and a digest sees every bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanterne.tree import digest, empty, fits, flatten, laid_out_as, leaves, nbytes, spec_of

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes)
def test_flatten_and_leaves_are_inverse(all_shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in all_shapes]
    w = flatten(tensors)
    assert w.tolist() == [x for tensor in tensors for x in tensor.reshape(-1).tolist()]
    back = leaves(w, [math.prod(shape) for shape in all_shapes], all_shapes)
    assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))


def test_leaves_are_views_and_flatten_copies() -> None:
    source = torch.zeros(2, 2)
    w = flatten([source, torch.ones(1)])
    leaves(w, [4, 1], [(2, 2), (1,)])[0].fill_(5.0)
    assert w.tolist() == [5.0, 5.0, 5.0, 5.0, 1.0]
    assert source.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_leaves_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(RuntimeError):
        leaves(torch.zeros(5), [4], [(2, 2)])
    with pytest.raises(ValueError, match="zip"):
        leaves(torch.zeros(5), [4, 1], [(2, 2)])


@given(shapes, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]))
def test_bytes_follow_from_the_spec(all_shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    arrays = {str(i): torch.zeros(shape, dtype=dtype) for i, shape in enumerate(all_shapes)}
    spec = spec_of(arrays)
    assert nbytes(spec) == sum(array.untyped_storage().nbytes() for array in arrays.values())
    assert spec_of(empty(spec)) == spec
    assert all(array.is_meta for array in empty(spec).values())


def test_a_spec_keeps_the_order_of_its_message() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert [x.name for x in spec_of({"b": b, "a": a})] == ["b", "a"]
    assert spec_of({"b": b, "a": a}) != spec_of({"a": a, "b": b})


def test_a_digest_does_not_depend_on_order_or_layout() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert digest({"a": x, "b": x[0]}) == digest({"b": x[0].clone(), "a": x.T.contiguous().T})
    assert digest({"a": x.requires_grad_()}) == digest({"a": x.detach()})


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([0.0, -0.0])},  # equal numbers, other bits
        {"w": torch.zeros(2, dtype=torch.float64)},
        {"w": torch.zeros(2, dtype=torch.int32)},
        {"w": torch.zeros(1, 2)},
        {"w": torch.zeros(2, 1)},
        {"v": torch.zeros(2)},
        {"w": torch.zeros(2), "v": torch.zeros(0)},
        {},
    ],
)
def test_a_digest_sees_names_shapes_dtypes_and_bits(other: dict[str, torch.Tensor]) -> None:
    assert digest(other) != digest({"w": torch.zeros(2)})


def test_equal_numbers_are_not_enough() -> None:
    """The wrong variant of a digest, a comparison of values, does not see the sign of zero."""
    assert torch.equal(torch.tensor([-0.0]), torch.tensor([0.0]))
    assert digest({"w": torch.tensor([-0.0])}) != digest({"w": torch.tensor([0.0])})


@given(st.lists(st.floats(width=64), min_size=1, max_size=6))
def test_a_digest_is_equal_if_and_only_if_the_bits_are(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    y = x.clone()
    assert digest({"w": x}) == digest({"w": y})  # not a number is equal to itself here
    y.view(torch.int64)[0] ^= 1
    assert digest({"w": x}) != digest({"w": y})


def test_a_digest_takes_scalars_empty_arrays_and_small_types() -> None:
    arrays = {
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "half": torch.zeros(2, dtype=torch.bfloat16),
    }
    assert digest(arrays) == digest({name: array.clone() for name, array in arrays.items()})
    assert digest(arrays) != digest({**arrays, "scalar": torch.tensor(4)})


def test_arrays_fit_their_own_spec_and_no_other() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)
    tables = [{"a": a, "b": b}, {"b": b, "a": a}, {"a": a}, {}, {"a": a, "c": b}, {"a": a.double(), "b": b}]
    tables += [{"a": a.t(), "b": b}, {"a": a[0], "b": b}]
    for one in tables:
        for other in tables:
            assert fits(one, spec_of(other)) == (spec_of(one) == spec_of(other))
            assert fits(one, spec_of(other)) == (one is other)


def test_a_layout_is_another_order_of_the_same_numbers() -> None:
    images, like = torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    moved = laid_out_as(images, like)
    assert torch.equal(moved, images)
    assert moved.stride() == like.stride() != images.stride()
    assert laid_out_as(moved, like) is moved
