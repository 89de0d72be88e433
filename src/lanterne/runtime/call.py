"""A request under way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from lanterne.budget import Units
from lanterne.fleet import Work
from lanterne.protocol import Outcome, Request
from lanterne.tree import Spec, nbytes

Stage = Literal["waiting", "queued", "running", "settled", "cancelled"]


class Call:
    """A request under way, from its dispatch until its reply is taken.

    It waits until its inputs have arrived, queues at its lane, runs, and is settled; or it is cancelled on the way. Its
    shapes are known when it starts to run, its tensors when somebody needs them.
    """

    __slots__ = (
        "arrived",
        "before",
        "claimed",
        "computed",
        "consumed",
        "downloaded",
        "inputs",
        "nbytes",
        "next",
        "nth",
        "outcome",
        "request",
        "round",
        "sent",
        "seq",
        "signature",
        "sources",
        "spec",
        "stage",
        "start",
        "state_before",
        "state_spec",
        "units",
        "until",
        "uploaded",
        "useful",
        "value",
        "waits",
        "work",
    )

    def __init__(self, seq: int, request: Request, work: Work, sent: float, round: int, nth: int) -> None:
        self.seq, self.request, self.work = seq, request, work
        self.sent, self.round, self.nth = sent, round, nth
        self.sources: dict[str, Call] = {}
        self.before: Call | None = None
        self.inputs: tuple[Call, ...] = ()
        self.next: list[Call] = []
        self.waits = 0
        self.stage: Stage = "waiting"
        self.outcome: Outcome = "complete"
        self.start = self.downloaded = self.useful = self.computed = sent
        self.arrived = self.uploaded = self.until = math.inf
        self.units: int | None = None
        self.consumed = self.claimed = False
        self.signature: Signature | None = None
        self.state_spec: Spec = ()
        self.spec: Spec = ()
        self.nbytes = 0
        self.state_before: Mapping[str, Tensor] | None = None
        self.value: Mapping[str, Tensor] | None = None

    @property
    def usable(self) -> bool:
        """Whether the reply brings arrays."""
        return self.outcome in ("complete", "partial")

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.stage in ("settled", "cancelled")

    @property
    def standing(self) -> Call | None:
        """This call, or the last before it at its address, that was neither cancelled nor ended without a reply."""
        last: Call | None = self
        while last is not None and last.ended and (last.stage == "cancelled" or not last.usable):
            last = last.before
        return last

    @property
    def previous(self) -> Call | None:
        """The last call at the same address before this one whose state counts, while its tensors are not known."""
        last = self.before
        while last is not None and (last.stage == "cancelled" or not last.usable):
            last = last.before
        return last

    @property
    def needs(self) -> list[Call]:
        """The calls that have to be computed before this one."""
        calls = [*self.sources.values()]
        previous = self.previous
        if previous is not None:
            calls.append(previous)
        return [c for c in calls if c.value is None]

    @property
    def held(self) -> int:
        """Bytes that its result occupies until it is read: the reply, and the state to roll back to."""
        return self.nbytes + nbytes(self.state_spec)

    @property
    def budget(self) -> Units:
        """The budget that its handler is given."""
        return Units(self.units)


#: Handler, config, state spec, input spec, steps, units: calls with equal signatures are one computation on other
#: numbers.
Signature = tuple[str, tuple[tuple[str, object], ...], Spec, Spec, int, "int | None"]


def signature(request: Request, state: Spec, arrays: Spec, units: int | None) -> Signature:
    """What decides the shapes of a reply, and which calls may be stacked.

    Args:
        request: whose handler, configuration and number of batches count.
        state: what it finds at its address.
        arrays: what it brings.
        units: after how many units it is cut off; None is not at all.
    """
    steps = len(request.batches) if isinstance(request.to, int) else 0
    return (request.handler, tuple(request.config.items()), state, arrays, steps, units)
