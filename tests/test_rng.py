"""Keys: frozen golden values, order, no collisions, and nothing that is shared with anybody."""

from __future__ import annotations

import random
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanterne.rng import fold, generator, uniform

# Computed once and frozen: a run that was started with one version of the library is resumed by the next.
GOLDEN: dict[tuple[int | str, ...], int] = {
    (): 0,
    (1,): 1227844342346046657,
    (-1,): 7266964230113668128,
    (2**63,): 5196802822362493915,
    ("batches",): 6004995466825574258,
    ("",): 9124346363744682920,
    ("é",): 5848471437526194044,
    (1, "batches", 7): 8341190573365372300,
    (7, "batches", 1): 6830766346442782054,
    (1, 2): 4384777280886605419,
    (2, 1): 6948438787131953797,
    (0, 0): 2812178212566171247,
    (0, 0, 0): 2558736989570252433,
    (2**31 - 1, "initial", "stem.weight"): 1973400060272400844,
}
parts = st.lists(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5), max_size=5)


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_keys_are_frozen(key: tuple[int | str, ...], expected: int) -> None:
    assert fold(*key) == expected


@pytest.mark.parametrize(("seed", "first"), [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)])
def test_one_number_gives_the_published_first_output_of_splitmix64(seed: int, first: int) -> None:
    assert fold(seed) == first % 2**63


def test_draws_are_frozen() -> None:
    assert uniform(1, "lost", 3) == 0.20655184088572043
    assert generator(1, "time").random(3).tolist() == [0.7807498373008467, 0.7804904405385336, 0.6606639672237585]
    assert generator(1, "order").permutation(6).tolist() == [0, 1, 3, 5, 4, 2]


@given(parts)
def test_a_key_has_63_bits_and_is_a_function_of_its_parts(key: list[int | str]) -> None:
    assert 0 <= fold(*key) < 2**63
    assert fold(*key) == fold(*key)
    assert uniform(*key) == (fold(*key) >> 10) / 2**53 < 1


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_order_counts(a: int, b: int) -> None:
    assert (fold(a, b) == fold(b, a)) == (a == b)


def test_a_longer_key_is_another_key() -> None:
    keys = [fold(*range(n)) for n in range(50)] + [fold(*[0] * n) for n in range(2, 50)]
    assert len(set(keys)) == len(keys)


def test_no_two_of_a_hundred_thousand_small_keys_are_equal() -> None:
    keys = {fold(*key) for key in product(range(5), ("x", "y"), range(100), range(100))}
    assert len(keys) == 5 * 2 * 100 * 100
    # The wrong variant: a sum of multiples, as is often written, has collisions by the thousand.
    assert len({31 * (31 * seed + a) + b for seed, a, b in product(range(5), range(100), range(100))}) < 10_000


def test_near_keys_are_far_apart() -> None:
    keys = [fold("near", i) for i in range(4000)]
    flipped = np.array([(a ^ b).bit_count() for a, b in pairwise(keys)])
    # 63 fair coins each: mean 31.5, variance 63/4, and the standard error of the mean is sqrt(63/4/4000) = 0.063
    assert abs(flipped.mean() - 31.5) < 4 * 0.063
    draws = np.array([uniform("near", i) for i in range(4000)])
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 400 - 4 * np.sqrt(4000 * 0.09)


def test_whole_numbers_of_any_kind_are_equal_and_nothing_else_is_taken() -> None:
    assert fold(np.int64(3), np.uint8(200), True) == fold(3, 200, 1)
    assert fold(np.int64(-1)) == fold(-1) == fold(2**64 - 1)
    with pytest.raises(TypeError):
        fold(1.5)  # type: ignore[arg-type]


def test_ambient_random_states_are_left_alone() -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    fold(1, "a")
    uniform(1, "a")
    generator(1, "a").normal(size=100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]  # noqa: NPY002


def test_a_generator_is_never_shared() -> None:
    first, second = generator(1, "x"), generator(1, "x")
    assert first is not second
    first.random(10)
    assert second.random() == generator(1, "x").random()
    assert generator(1, "x").random() != generator(1, "y").random()
