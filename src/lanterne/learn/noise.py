"""Random numbers as a function of a key that is a tensor: for handlers, which are given one and may not read it.

Words come from the finaliser of SplitMix64 (Steele, Lea, Flood 2014) on a counter: int64 arithmetic that wraps around,
so the same bits on every device, and under `vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lanterne.rng import fold

_INCREMENT, _FIRST, _SECOND = (
    constant - (1 << 64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
#: So many bits of a word make a normal number of `normal_table`.
_BITS = 16


def normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Independent standard normal numbers, the same for the same key and shape, under `vmap` as well.

    The quantile `Phi^-1(u)` of a uniform number `u` from the finaliser of SplitMix64 (Steele, Lea, Flood 2014) on `key`
    and a counter.

    Args:
        key: 0-d, int64, such as the `local.key` of a handler.
        shape: of what is drawn.

    Returns:
        Of this shape, float64.

    Examples:
        >>> z = normal(torch.tensor(1), (100, 100))
        >>> bool(z.mean().abs() < 0.03), bool((z.std() - 1).abs() < 0.03)
        (True, True)
        >>> torch.equal(z, normal(torch.tensor(1), (100, 100))), torch.equal(z, normal(torch.tensor(2), (100, 100)))
        (True, False)
    """
    # The key is mixed before the counter is added, or near keys would give shifted copies of one stream.
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device) * _INCREMENT + _mixed(key)
    # 52 bits and a half: never 0, never 1.
    u = ((_mixed(counter) >> 12 & (1 << 52) - 1).to(torch.float64) + 0.5) * 2.0**-52
    numbers: Tensor = torch.special.ndtri(u)
    return numbers.reshape(tuple(shape))


def derived(key: Tensor, *parts: int | str | Tensor) -> Tensor:
    """Keys from a key and what says where they are used: a purpose, a step, a probe.

    The parts are absorbed one by one as by `lanterne.rng.fold`, but on the key's device, and many at a time where a
    part is a vector.

    Args:
        key: int64.
        parts: integers, words, or int64 tensors that broadcast with the key.

    Returns:
        int64, of the shape to which they broadcast.

    Examples:
        >>> key = torch.tensor(1)
        >>> torch.equal(derived(key, "probe", torch.arange(3))[2], derived(key, "probe", 2))
        True
        >>> torch.equal(derived(key, 1, 2), derived(key, 2, 1))
        False
    """
    for part in parts:
        key = _mixed((key ^ (fold(part) if isinstance(part, str) else part)) + _INCREMENT)
    return key


def streams(keys: Tensor) -> Tensor:
    """Where the words of each key begin and how far apart they are: what `words` takes.

    Each key has an odd distance of its own, so that two streams that meet do not go on together.

    Args:
        keys: `[...]`, int64.

    Returns:
        `[2, ...]`, int64.
    """
    begins = _mixed(keys)
    return torch.stack([begins, _mixed(begins ^ _SECOND) | 1])


def words(stream: Tensor, first: int, last: int) -> Tensor:
    """The random words `first .. last-1` of a stream, each of 64 bits.

    Args:
        stream: `[2]`, from `streams`.
        first: number of the first.
        last: one past the last.

    Returns:
        `[last - first]`, int64.

    Examples:
        >>> stream = streams(torch.tensor(1))
        >>> torch.equal(words(stream, 0, 9)[4:], words(stream, 4, 9))
        True
    """
    return _mixed(torch.arange(first + 1, last + 1, device=stream.device) * stream[1] + stream[0])


def in_bytes(drawn: Tensor) -> Tensor:
    """Words as numbers in `[0, 256)`, `[8 * words]` int32, the lowest byte of each word first."""
    return drawn.view(torch.uint8).to(torch.int32)


def in_halves(drawn: Tensor) -> Tensor:
    """Words as numbers in `[0, 65536)`, `[4 * words]` int32, the lowest 16 bits of each word first."""
    return drawn.view(torch.int16).to(torch.int32) & (1 << _BITS) - 1


@lru_cache(maxsize=16)
def sign_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[256, 8]`: for each byte its bits, the lowest first, as 1 (set) and -1."""
    with torch.inference_mode(False):
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        return (2 * bits - 1).to(dtype).to(device)


@lru_cache(maxsize=16)
def normal_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[65536]`: quantiles of the normal distribution at the middles of as many equal steps, of variance 1.

    They are numbers of float32 whatever the type. None is beyond 4.33, and the fourth moment is 2.9992 instead of 3.
    """
    with torch.inference_mode(False):
        z = torch.special.ndtri((torch.arange(1 << _BITS, dtype=torch.float64) + 0.5) * 2.0**-_BITS)
        table: Tensor = (z / z.square().mean().sqrt()).to(torch.float32)
        return table.to(dtype).to(device)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; products wrap around, and a shift to the right brings in zeros."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)
