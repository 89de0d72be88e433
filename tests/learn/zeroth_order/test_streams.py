"""Random numbers from keys: frozen, apart from each other, and nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lanterne.learn import Task, noise
from lanterne.learn.noise import derived, in_bytes, in_halves, normal_table, sign_table, streams, words
from lanterne.learn.zeroth_order import Group, Probes, Segment, direction, directions, estimate, group_of, slope
from lanterne.models import LayerStack, full
from lanterne.rng import fold
from learn.zeroth_order.tools import KINDS, key, linear, numbers, total, u_of

WORD = (1 << 64) - 1
GOLDEN = fold(2026, "zeroth order", 3, 5, 7)  # run, purpose, round, client, step
GOLDEN_WORDS = [485148275717673277, 17086316024692997045, 12407637444312115408, 13105067323463901609]
GOLDEN_NORMAL = [0.1696195900440216, -0.5160549283027649]


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def by_hand(key: int, parts: tuple[int, ...], count: int) -> list[int]:
    """The words of a stream in Python's integers."""
    for part in parts:
        key = mixed(((key ^ part) + 0x9E3779B97F4A7C15) & WORD)
    begin = mixed(key)
    step = mixed(begin ^ 0x94D049BB133111EB) | 1
    return [mixed((begin + (i + 1) * step) & WORD) for i in range(count)]


def two_tensors(inside: bool = False) -> Group:
    stack = LayerStack(nn.Sequential(nn.Linear(70, 3), nn.Tanh(), nn.Linear(3, 2)), (70,))
    return group_of(Task(stack, functional=inside), full(stack))


def test_golden_vector() -> None:
    """Frozen: probe 1 of this step, second tensor (a bias) of the second block. Whoever replays must draw the same."""
    stream = streams(derived(torch.tensor(GOLDEN), 1, 0, 1, 1))
    found = [word & WORD for word in words(stream, 0, 4).tolist()]
    assert found == by_hand(GOLDEN, (1, 0, 1, 1), 4)
    assert found == GOLDEN_WORDS
    group = two_tensors()
    u = {}
    for kind in ("rademacher", "gaussian"):
        found_direction = direction(group, kind, torch.tensor(GOLDEN), 1, torch.float64)
        u[kind] = directions.drawn(found_direction, 3, 0, 2, torch.float64).tolist()
    assert u["rademacher"] == [1.0 if GOLDEN_WORDS[0] >> i & 1 else -1.0 for i in range(2)]
    assert u["gaussian"] == GOLDEN_NORMAL


def test_signs_are_the_bits_of_the_words_and_normal_numbers_their_sixteenths() -> None:
    drawn = words(streams(torch.tensor(9)), 0, 3)
    signs = sign_table(torch.float64, drawn.device).index_select(0, in_bytes(drawn)).view(-1)
    assert signs.tolist() == [1.0 if word >> i & 1 else -1.0 for word in drawn.tolist() for i in range(64)]
    assert in_halves(drawn).tolist() == [(word & WORD) >> 16 * i & 0xFFFF for word in drawn.tolist() for i in range(4)]


def test_the_normal_table_is_frozen_and_has_the_moments_of_a_normal_number() -> None:
    from statistics import NormalDist

    z = normal_table(torch.float64, torch.device("cpu"))
    assert torch.equal(z, normal_table(torch.float32, torch.device("cpu")).double())
    quantile = NormalDist().inv_cdf
    by_hand = np.array([quantile((i + 0.5) / 65536) for i in range(65536)])
    by_hand /= np.sqrt((by_hand**2).mean())
    assert np.abs(z.numpy() - by_hand).max() < 3e-7
    assert torch.equal(z, -z.flip(0))
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-8)
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=1e-3)


def test_keys_do_not_collide_over_steps_probes_and_tensors() -> None:
    grid = [torch.arange(n).view([-1 if i == j else 1 for j in range(4)]) for i, n in enumerate((60, 8, 3, 40))]
    keys = derived(torch.tensor(GOLDEN), *grid)
    assert keys.shape == (60, 8, 3, 40)
    assert len(keys.unique()) == keys.numel()
    # Neighbours have nothing in common: no word of one is a word of another.
    flat = keys.reshape(-1)[:400]
    drawn = torch.stack([words(streams(k), 0, 50) for k in flat])
    assert len(drawn.unique()) == drawn.numel()


def test_rounds_clients_and_steps_have_keys_of_their_own() -> None:
    keys = {fold(0, "zeroth order", r, c, s) for r in range(20) for c in range(20) for s in range(20)}
    assert len(keys) == 8000


def test_streams_that_meet_do_not_go_on_together() -> None:
    """Each stream has a distance of its own, and it is odd: no word comes twice before 2^64."""
    found = streams(derived(torch.tensor(1), torch.arange(1000)))
    assert len(found[1].unique()) == 1000
    assert bool((found[1] & 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_does_not_depend_on_the_size_of_its_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = linear(1000, total)
    u = u_of(group, key(1), kind, torch.float32)
    monkeypatch.setitem(directions.PIECE, "rademacher", 2)
    monkeypatch.setitem(directions.PIECE, "normal", 3)
    again = u_of(group, key(1), kind, torch.float32)
    if kind in ("gaussian", "rademacher"):
        assert torch.equal(u, again)
    else:
        assert torch.allclose(u, again, rtol=1e-6)
    assert torch.allclose(u, u_of(linear(1000, total, functional=True), key(1), kind, torch.float32), rtol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_a_half_has_its_part_of_the_whole_direction(kind: str) -> None:
    """T2: the halves perturb together what the whole model would."""
    stack = two_tensors().segments[0].task.stack
    task = Task(stack)
    halves = [group_of(task, stack.span(0, 1)), group_of(task, stack.span(1, 2))]
    parts = [u_of(half, key(2), kind) for half in halves]
    assert torch.equal(torch.cat(parts), u_of(two_tensors(), key(2), kind))


def test_segments_do_not_share_directions() -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(64, 64)), (64,))
    segment = Segment(Task(stack), full(stack))
    u = u_of(Group((segment, segment)), key(1), "rademacher")
    assert abs(float(u[: stack.size] @ u[stack.size :])) < 4 * stack.size**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind: str) -> None:
    u = u_of(two_tensors(), key(1), kind)
    d = len(u)
    expected = {"sphere": d, "unit-sphere": 1, "rademacher": d}.get(kind)
    if expected is None:
        assert abs(float(u.square().sum()) - d) < 4 * (2 * d) ** 0.5
    else:
        assert float(u.square().sum()) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(u.abs().unique(), torch.ones(1).double()) == (kind == "rademacher")


def test_numbers_of_one_direction_are_not_correlated() -> None:
    u = u_of(linear(200_000, total), key(4), "gaussian")
    bound = 4 / len(u) ** 0.5
    assert abs(float(u.mean())) < bound
    for lag in (1, 2, 3, 4, 64, 1000):
        assert abs(float((u[lag:] * u[:-lag]).mean())) < bound
    signs = u_of(linear(200_000, total), key(4), "rademacher")
    for lag in (1, 8, 63, 64, 65):
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < bound


def test_global_generators_are_not_touched() -> None:
    group, w = linear(5, total), numbers(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for kind in KINDS:
        probes = Probes(kind, count=2)
        found = estimate(group, w, numbers(3, 5), numbers(3), key(1), probes)
        slope(group, key(1), found.scalars, probes, w.dtype)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_tables_drawn_under_inference_mode_can_be_used_outside() -> None:
    noise.sign_table.cache_clear()
    with torch.inference_mode():
        u_of(linear(5, total), key(1), "rademacher")
    assert not noise.sign_table(torch.float64, torch.device("cpu")).is_inference()
