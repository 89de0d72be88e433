"""The server's memory: one for all its machines, priced like a device's; a fleet is refused that does not have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lanterne.errors import FleetError
from lanterne.protocol import Address, Output, category
from lanterne.runtime.call import Call
from lanterne.runtime.pricing import Pricing
from lanterne.tree import nbytes, spec_of

#: What clients send to be worked on by a replica.
_WORKED_ON = ("act_up", "labels_up", "grad_up")


class ServerMemory:
    """What the server holds at a moment, in bytes.

        held = sum of the states of all replicas (a half, what its optimiser remembers, what it keeps by itself)
             + sum over the requests under way of what a device would hold for them, and of what they work on
             + what clients have sent and no replica has begun to work on

    Like the weights on a device, what a pass works on counts twice where the first block keeps it for its backward
    pass. The sum grows when a request begins: there it is compared with what there is.

    Args:
        bytes: that there are.
        pricing: what requests cost.
        traffic: the category of each array that crosses a link.
    """

    def __init__(self, bytes: float, pricing: Pricing, traffic: Mapping[str, str]) -> None:
        self.bytes, self.pricing, self.traffic = bytes, pricing, traffic
        self.states: dict[Address, int] = {}
        self.passes: dict[Address, int] = {}
        self.waiting: dict[int, int] = {}
        self.peak = 0

    @property
    def held(self) -> int:
        """Bytes now."""
        return sum(map(sum, (self.states.values(), self.passes.values(), self.waiting.values())))

    def arrives(self, call: Call) -> None:
        """A client's reply is there.

        Args:
            call: to a client, settled.
        """
        if call.usable and (size := self._sent(call)):
            self.waiting[call.seq] = size

    def begins(self, call: Call) -> None:
        """A replica begins with a request.

        Args:
            call: to a server, of which the shapes are known.

        Raises:
            FleetError: if the server does not have the memory.
        """
        for source in call.sources.values():
            self.waiting.pop(source.seq, None)
        self.states.pop(call.request.to, None)
        self.passes[call.request.to] = self._needed(call)
        self.peak = max(self.peak, self.held)
        if self.held > self.bytes:
            states, passes, waiting = (sum(d.values()) for d in (self.states, self.passes, self.waiting))
            raise FleetError(
                f"The server has {self.bytes:.17g} bytes of memory, but {call.request.handler!r} in round "
                f"{call.round + 1} brings it to {self.held}: replicas at work ({len(self.passes)}) hold {passes}, "
                f"idle ones ({len(self.states)}) {states}, and smashed data that wait {waiting}. Give it more "
                "(server_memory), fewer machines at a time, or a smaller batch, cohort or model."
            )

    def ends(self, call: Call) -> None:
        """A replica is done.

        Args:
            call: to a server, settled.
        """
        self.passes.pop(call.request.to, None)
        self.states[call.request.to] = nbytes(call.state_spec)

    def stops(self, call: Call) -> None:
        """What a replica was at is cancelled: its state is as it was before.

        Args:
            call: to a server, under way until now.
        """
        self.passes.pop(call.request.to, None)
        self.states[call.request.to] = nbytes(call.signature[2]) if call.signature else 0

    def between_rounds(self, states: Mapping[Address, Mapping[str, Tensor]], calls: Iterable[Call]) -> None:
        """What is left between two rounds: states, what is under way, and what waits for what is.

        Args:
            states: that the addresses hold.
            calls: that have not ended.
        """
        there = [c for c in calls if isinstance(c.request.to, tuple)]
        running = {c.request.to: self._needed(c) for c in there if c.stage == "running"}
        kept = {to: nbytes(spec_of(state)) for to, state in states.items() if isinstance(to, tuple)}
        later = [source for c in there if c.stage != "running" for source in c.sources.values()]
        self.states, self.passes = {to: size for to, size in kept.items() if to not in running}, running
        self.waiting = {c.seq: self._sent(c) for c in later if c.stage == "settled" and isinstance(c.request.to, int)}

    def _needed(self, call: Call) -> int:
        assert call.signature is not None
        _, _, state, arrays, _, _ = call.signature
        q = call.request
        taken_in = (a.nbytes for a in arrays if isinstance(q.arrays[a.name], Output))
        return sum(self.pricing.footprint(q, state, arrays)) + sum(taken_in)

    def _sent(self, call: Call) -> int:
        return sum(a.nbytes for a in call.spec if category(a.name, len(a.shape), self.traffic, "up") in _WORKED_ON)
