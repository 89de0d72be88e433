"""Every random number is a function of integers: fold a key from them, draw from the key. Nothing here is ambient.

The first part of a key is the run's seed, the second the purpose (a word), the rest say where: round, client, step.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from operator import index

import numpy as np

_WORD = (1 << 64) - 1
_KEY = (1 << 63) - 1


@lru_cache(maxsize=4096)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little") & _KEY


def fold(*parts: int | str) -> int:
    """One 63-bit key from any number of integers and words.

    The parts are absorbed one by one through the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so that the order
    counts and near keys are far apart.

    Args:
        parts: integers (a seed, a round, a client ...) or words (the purpose).

    Returns:
        An integer in `[0, 2**63)`.

    Examples:
        >>> fold(1, "batches", 7) == fold(1, "batches", 7)
        True
        >>> fold(1, 2) == fold(2, 1)
        False
    """
    z = 0
    for part in parts:
        word = _number(part) if isinstance(part, str) else index(part) & _WORD
        z = ((z ^ word) + 0x9E3779B97F4A7C15) & _WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        z ^= z >> 31
    return z & _KEY


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator of its own for a key: counter-based (Philox), never shared, never ambient.

    Args:
        parts: what `fold` takes.

    Returns:
        A generator whose stream depends on the parts alone.

    Examples:
        >>> bool(generator(1, "time").random() == generator(1, "time").random())
        True
    """
    return np.random.Generator(np.random.Philox(key=fold(*parts)))


def uniform(*parts: int | str) -> float:
    """One number, uniform in `[0, 1)`, for a key: cheap where a whole generator would be too much.

    Args:
        parts: what `fold` takes.

    Examples:
        >>> 0.0 <= uniform(1, "lost", 3) < 1.0
        True
    """
    return (fold(*parts) >> 10) * 2.0**-53
