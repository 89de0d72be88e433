"""Normal numbers as a function of a key that is a tensor: for handlers, which are given one and may not read it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_INCREMENT, _FIRST, _SECOND = (
    constant - (1 << 64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


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


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; products wrap around, and a shift to the right brings in zeros."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)
