"""Requests and replies, what they carry, and what the bytes of it are counted as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

Address = int | tuple[str, int]
Outcome = Literal["complete", "partial", "refused", "failed", "lost"]
Arrays = Mapping[str, Tensor]
Late = Literal["keep", "cancel"]
Direction = Literal["down", "up"]

#: What bytes on a link are counted as. The first word is what it is, the last its direction as the client sees it.
CATEGORIES = (
    "model_down", "model_up", "act_up", "act_down", "grad_down", "grad_up", "labels_up",
    "scalar_up", "scalar_down", "aux_up", "aux_down", "handoff",
)  # fmt: skip


class Output(NamedTuple):
    """A promise: the array `name` of the reply to `request`.

    It stands wherever an array may stand in a later request.
    """

    request: Request
    name: str


class Pass(NamedTuple):
    """One pass over the blocks `first .. last-1`; each block of it is a unit of work.

    A backward pass goes from the last block to the first. A unit of it is the gradient of the block's parameters and
    what it takes to get there from the block behind: so a pass that stops after any unit has cost exactly its units.
    `to_input` asks for the gradient of the pass's own input as well, which a split server sends to its client.

    `network` names the one of the algorithm's `networks` whose blocks these are (an auxiliary head, a submodel); by
    default it is the model. `samples` is how many samples a batch has where it is not a client's; 0 is a client's.
    `batches` is how many of them go through together, where a server works on the smashed data of several clients.
    `kept` says of a forward pass that what its backward pass needs is kept until that comes with a later request:
    memory that is held while the device waits.
    `frozen` says of a backward pass that the parameters are held fixed: nothing but the gradient of the pass's own
    input is computed. A pass of kind `double_backward` comes after a forward and a frozen backward pass over the same
    blocks, and differentiates the gradient that they gave with respect to the parameters.
    """

    kind: Literal["forward", "backward", "double_backward"]
    first: int
    last: int
    to_input: bool = False
    network: str = ""
    samples: int = 0
    kept: bool = False
    batches: int = 1
    frozen: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One message to one address. Its identity is the ticket under which its reply is asked for.

    Args:
        to: a client's number, or `("server", replica)`.
        handler: which handler of the algorithm's table answers.
        arrays: tensors, or outputs of earlier requests. A scalar is a 0-d array.
        config: static values that are part of what makes two calls equal.
        batches: steps of the client's own stream of batches. The same span gives the same batches and the same key.
        passes: the work, symbolically, as often as it is done.
        deadline: seconds after dispatch at which the device stops and sends what it has. A server has none.
        stop: what has to happen by the deadline: the reply's arrival, or only the end of the computation.
        indivisible: so many units in a row count only together (those of a local step, say): a device that its deadline
            cuts off among them has done none of them. 1 is every unit by itself.
        silent: its reply is never asked for: it only changes the state of its address. A `Gather` without `of` does not
            wait for it, and it is cancelled with the requests that it prepares.
        optimiser: bytes of what the optimiser holds during the work and not between requests (a velocity, say).
        note: the server's own memo (a model version, say); it never leaves the server.
    """

    to: Address
    handler: str
    arrays: Mapping[str, Tensor | Output] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    batches: range = range(0)
    passes: Sequence[Pass] = ()
    deadline: float = math.inf
    stop: Literal["arrive", "compute"] = "arrive"
    indivisible: int = 1
    silent: bool = False
    optimiser: int = 0
    note: Any = None

    def __getitem__(self, name: str) -> Output:
        """The promise of one array of the reply."""
        return Output(self, name)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a request.

    Args:
        request: the request.
        at: when it was settled, in seconds of the runtime's clock.
        outcome: `complete`; `partial` (cut off by its deadline, with what was done by then); `refused` (the device
            cannot do this, for lack of memory for one); `failed` (it tried, and reported an error); `lost` (nothing
            came back, and nothing will).
        arrays: what was sent; empty unless complete or partial.
        error: what a device said that refused or failed.
        seconds: from its dispatch until it was settled.
    """

    request: Request
    at: float
    outcome: Outcome
    arrays: Arrays
    error: str | None = None
    seconds: float = math.nan

    @property
    def usable(self) -> bool:
        """Whether there are arrays to use: the outcome is complete or partial."""
        return self.outcome in ("complete", "partial")

    def __getitem__(self, name: str) -> Tensor:
        """One array of the reply."""
        return self.arrays[name]


def usable(replies: Iterable[Reply]) -> list[Reply]:
    """Those replies that brought arrays, in their order."""
    return [reply for reply in replies if reply.usable]


def category(name: str, ndim: int, traffic: Mapping[str, str], direction: Direction) -> str:
    """What the bytes of an array are counted as.

    Args:
        name: of the array.
        ndim: its number of dimensions.
        traffic: the algorithm's table.
        direction: to the client or from it.

    Returns:
        A category of `CATEGORIES`; `other_down` or `other_up` for an array that the algorithm forgot, which
        `lanterne.testing.check_algorithm` refuses.
    """
    known = traffic.get(name)
    if known is not None and (known.endswith(direction) or known == "handoff"):
        return known
    return f"{'scalar' if ndim == 0 else 'other'}_{direction}"
