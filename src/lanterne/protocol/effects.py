"""What a server half may yield: to start requests, and to wait for replies."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from lanterne.protocol.messages import Late, Output, Pass, Reply, Request


@dataclass(frozen=True, slots=True)
class All:
    """Wait until every request is settled."""


@dataclass(frozen=True, slots=True)
class First:
    """Wait for the first `k` usable replies, or at most `within` seconds, counted from the `Gather`."""

    k: int
    within: float = math.inf


@dataclass(frozen=True, slots=True)
class Deadline:
    """Wait for so many seconds, counted from the `Gather`, or until every request is settled."""

    seconds: float


def patience(until: All | First | Deadline) -> float:
    """The most seconds that a rule waits."""
    return until.seconds if isinstance(until, Deadline) else until.within if isinstance(until, First) else math.inf


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start these requests and do not wait. Performed, it gives nothing back."""

    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Gather:
    """Wait until the rule holds; performed, it gives the replies settled by then, **in order of dispatch**.

    A `Gather` always ends: when no reply can come any more it gives what there is, be it nothing. A reply is given
    once. Replies without arrays (refused, failed, lost) are given as well, and never count towards `First`.

    Args:
        until: the rule.
        of: the requests to wait for; by default all under way whose outputs no other request takes in, silent ones left
            out.
        late: what happens to those of them that are not settled: `keep` leaves them running; `cancel` ends them, with
            each all that waits for it, and what was dispatched in this round for its sake alone: requests whose outputs
            only cancelled ones take in, or silent ones before it at its address. An earlier request there whose reply
            may be wanted goes on.
    """

    until: All | First | Deadline = All()
    of: Sequence[Request] | None = None
    late: Late = "keep"


Effect = Dispatch | Gather
S = TypeVar("S")
Program = Generator[Effect, "list[Reply] | None", S]


def training(to: int, arrays: Mapping[str, Tensor | Output], batches: range, blocks: int, **options: Any) -> Request:
    """The request that most methods make: a forward and a backward pass over the whole model for each batch.

    Args:
        to: a client.
        arrays: what its handler `train` is given.
        batches: steps of its stream.
        blocks: of the model.
        options: further fields of the `Request`.
    """
    passes = [Pass("forward", 0, blocks), Pass("backward", 0, blocks)] * len(batches)
    return Request(to, "train", arrays, batches=batches, passes=passes, **options)


def exchange(
    requests: Sequence[Request], until: All | First | Deadline = All(), late: Late = "keep"
) -> Generator[Effect, list[Reply] | None, list[Reply]]:
    """Send requests and wait for their replies: the common case, for `yield from`."""
    yield Dispatch(requests)
    return (yield Gather(until, requests, late)) or []
