"""Random directions as functions of a key, made in pieces that stay near a core.

A direction has the number `u_i` for each trained parameter. What is unlike in the four kinds, and never mixed:

    kind          law of u                          factor of the estimate    smoothed objective
    gaussian      N(0, I)                           1                         Gaussian average of deviation mu
    sphere        uniform on |u| = sqrt(d)          1                         average over the ball of radius mu sqrt(d)
    unit-sphere   uniform on |u| = 1                d                         average over the ball of radius mu
    rademacher    each number 1 or -1, |u|^2 = d    1                         average over the corners mu {-1, 1}^d
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lanterne.errors import ConfigError, nearest
from lanterne.learn.noise import derived, in_bytes, in_halves, normal_table, sign_table, streams, words
from lanterne.learn.zeroth_order.group import Group

Kind = Literal["gaussian", "sphere", "unit-sphere", "rademacher"]

#: Words in a piece: what is drawn of a direction at once stays in a core's cache.
PIECE = {"rademacher": 1 << 11, "normal": 1 << 14}
#: A piece is so many times larger on other devices, which want much to do at a time.
ELSEWHERE = 256


class Direction(NamedTuple):
    """One direction, which nobody holds: from `streams` each piece of it is made when it is needed.

    `streams` is `[2, tensors]`, and `stretch` what its numbers are multiplied with, 0-d float64, or None for 1.
    """

    kind: Kind
    streams: Tensor
    stretch: Tensor | None


def factor(kind: Kind, dimension: int) -> float:
    """What an estimate along directions of a kind is multiplied with.

    Args:
        kind: of the directions.
        dimension: `d`, of the space.

    Raises:
        ConfigError: for a kind that there is not.

    Examples:
        >>> factor("unit-sphere", 100), factor("gaussian", 100)
        (100.0, 1.0)
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"{kind!r} is not a kind of directions. {nearest(kind, get_args(Kind))}")
    return float(dimension) if kind == "unit-sphere" else 1.0


def direction(group: Group, kind: Kind, key: Tensor, probe: int | Tensor, dtype: torch.dtype) -> Direction:
    """The direction of a probe.

    Args:
        group: what is perturbed.
        kind: of the direction.
        key: 0-d, int64: of the run, the purpose, the round, the client and the step.
        probe: its number.
        dtype: of the parameters.
    """
    found = Direction(kind, streams(derived(key, probe, *group.numbers(key.device))), None)
    if kind not in ("sphere", "unit-sphere"):
        return found
    square = torch.zeros((), dtype=torch.float64, device=key.device)
    for i, held in enumerate(group.trained):
        for first, last in pieces(kind, held.size, key.device, whole=group.functional):
            square = square + drawn(found, i, first, last, dtype).to(torch.float64).square().sum()
    radius = math.sqrt(group.dimension) if kind == "sphere" else 1.0
    return found._replace(stretch=radius / square.sqrt())


def pieces(kind: Kind, size: int, device: torch.device, *, whole: bool) -> Iterator[tuple[int, int]]:
    """First and one past the last of the numbers that are drawn at once.

    Args:
        kind: of the direction.
        size: how many numbers the tensor has.
        device: where they are drawn.
        whole: all of them at once, as inside a transform.
    """
    step = PIECE["rademacher"] * 64 if kind == "rademacher" else PIECE["normal"] * 4
    step = size if whole else step if device.type == "cpu" else step * ELSEWHERE
    yield from ((first, min(first + step, size)) for first in range(0, size, step))


def drawn(
    direction: Direction, tensor: int, first: int, last: int, dtype: torch.dtype, by: Tensor | None = None
) -> Tensor:
    """Some numbers of a direction before they are stretched, times another number.

    Args:
        direction: whose.
        tensor: which of the trained ones.
        first: number of the first in its tensor, the beginning of a word.
        last: one past the last.
        dtype: of the parameters.
        by: what they are multiplied with, 0-d of this type; 1 by default.

    Returns:
        `[last - first]`.
    """
    stream = direction.streams[:, tensor]
    per_word = 64 if direction.kind == "rademacher" else 4
    found = words(stream, first // per_word, -(-last // per_word))
    if direction.kind == "rademacher":
        table = sign_table(dtype, stream.device)
        # 2,048 products are fewer than those of a piece, and have the same bits.
        table = table if by is None else table * by
        return table.index_select(0, in_bytes(found)).view(-1)[: last - first]
    z = normal_table(dtype, stream.device).index_select(0, in_halves(found))[: last - first]
    return z if by is None else z * by


def scaled(direction: Direction, tensor: int, first: int, last: int, by: Tensor) -> Tensor:
    """`by * u` for some numbers of a direction.

    A product and, with the caller, a sum: each rounds by itself, so that the bits do not depend on the size of a piece.

    Args:
        direction: `u`.
        tensor: which of the trained ones.
        first: number of the first in its tensor, the beginning of a word.
        last: one past the last.
        by: 0-d, of the type of the parameters, which already holds the direction's stretch.

    Returns:
        `[last - first]`.
    """
    return drawn(direction, tensor, first, last, by.dtype, by)


def stretched(direction: Direction, by: float | Tensor, dtype: torch.dtype) -> Tensor:
    """A factor times the stretch of a direction, 0-d: what `scaled` takes."""
    device = direction.streams.device
    if not isinstance(by, Tensor):
        by = torch.full((), by, dtype=torch.float64, device=device)
    by = by.to(torch.float64)
    return (by if direction.stretch is None else by * direction.stretch).to(dtype)
