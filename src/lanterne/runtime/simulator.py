"""Performs effects on a virtual clock: time first, numbers second.

When a reply arrives and what it holds follow from shapes and devices; tensors are computed at a `Gather` that gives one
which is not known yet, and then everything else that has started.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lanterne.data import Streams
from lanterne.fleet import Fleet
from lanterne.protocol import (
    Address,
    Algorithm,
    Dispatch,
    Effect,
    First,
    Gather,
    Output,
    Reply,
    Request,
    S,
    drive,
    judged,
    patience,
)
from lanterne.runtime.call import Call
from lanterne.runtime.checks import check_batches, check_gather, check_request
from lanterne.runtime.clock import VirtualClock
from lanterne.runtime.cohort import SimulatedCohort
from lanterne.runtime.job import Executor
from lanterne.runtime.ledger import Ledger
from lanterne.runtime.numerics import Numerics
from lanterne.runtime.pricing import Pricing

#: Bytes of replies and states that are computed before anybody asked for them.
UNREAD_BYTES = 1 << 30


class Simulator:
    """A fleet on a virtual clock.

    Args:
        algorithm: whose requests are served.
        fleet: the devices.
        executor: computes the handlers.
        streams: which rows a client reads.
        seed: of the run.
        dtype: of the parameters.
        unread_bytes: bound on what is computed before anybody asked for it, replies and states to roll back to; the
            rest waits until it is asked for. It changes no result.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        fleet: Fleet,
        executor: Executor,
        streams: Streams,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        unread_bytes: int = UNREAD_BYTES,
    ) -> None:
        check_batches(executor.task.stack, streams)
        self.fleet, self.streams, self.seed = fleet, streams, seed
        self.pricing = Pricing(
            algorithm.handlers,
            executor.task,
            streams.batch,
            dtype,
            executor.x,
            executor.y,
            getattr(algorithm, "networks", None),
        )
        self.numerics = Numerics(algorithm.handlers, executor, streams, seed, unread_bytes)
        self.clock = VirtualClock(fleet, self.pricing, self.numerics, algorithm.traffic)
        self.rounds, self.seq = 0, 0
        self.calls: dict[Request, Call] = {}
        self.tail: dict[Address, Call] = {}
        self.sent: dict[Address, int] = {}

    @property
    def now(self) -> float:
        """Seconds of virtual time."""
        return self.clock.now

    @property
    def ledger(self) -> Ledger:
        """The books."""
        return self.clock.ledger

    @property
    def timeline(self) -> list[dict[str, Any]]:
        """What became of each request, in the order in which they ended."""
        return self.clock.timeline

    def round(self, algorithm: Algorithm[S], state: S) -> S:
        """One server version.

        What is still under way stays; what arrived and was not gathered is dropped, its effect on the state of its
        address is not.

        Args:
            algorithm: whose round it is.
            state: the state before it.

        Returns:
            The state after it.

        Raises:
            FleetError: if no client can ever be reached again.
        """
        self.clock.wait_for_somebody()
        state = drive(algorithm.round(state, SimulatedCohort(self)), self)
        self.numerics.settle_states()
        for call in self.calls.values():
            if call.stage == "settled" and call.usable and not call.claimed:
                if not (call.consumed or call.request.silent):
                    seconds, flops = self.clock.spent(call)
                    known = call.computed - call.useful if call.outcome == "partial" else 0.0
                    self.ledger.regret(call.request.to, seconds - known, flops)
                self.numerics.forget(call)
        self.calls = {q: c for q, c in self.calls.items() if not c.ended}
        self.clock.end_round(self.calls.values())
        tails = ((to, c.standing) for to, c in self.tail.items())
        self.tail = {to: c for to, c in tails if c is not None and not c.ended}
        for call in self.calls.values():
            call.before = call.previous if call.value is None else None
            call.inputs = tuple(i for i in call.inputs if not i.ended)
            call.next = [after for after in call.next if not after.ended]
        if self.clock.memory is not None:
            self.clock.memory.between_rounds(self.numerics.states, self.calls.values())
        self.rounds += 1
        return state

    def models(self, algorithm: Algorithm[S], state: S) -> Tensor:
        """What is judged after a round, see `protocol.judged`."""
        return judged(algorithm, state, self.numerics.states)

    def perform(self, effect: Effect) -> list[Reply] | None:
        """Perform one effect."""
        if isinstance(effect, Dispatch):
            self._dispatch(effect.requests)
            return None
        return self._gather(effect)

    # ------------------------------------------------------------------ effects
    def _dispatch(self, requests: Iterable[Request]) -> None:
        for q in requests:
            check_request(q, self.pricing.handlers, len(self.fleet), self.calls)
            nth = self.sent[q.to] = self.sent.get(q.to, -1) + 1
            call = Call(self.seq, q, self.pricing.work(q.passes), self.now, self.rounds, nth)
            self.seq += 1
            for name, array in q.arrays.items():
                if isinstance(array, Output):
                    source = call.sources[name] = self.calls[array.request]
                    source.consumed = True
            tail = self.tail.get(q.to)
            call.before = None if tail is None else tail.standing
            self.calls[q] = self.tail[q.to] = call
            before = [] if call.before is None else [call.before]
            call.inputs = tuple(i for i in dict.fromkeys([*call.sources.values(), *before]) if not i.ended)
            call.waits = len(call.inputs)
            for i in call.inputs:
                i.next.append(call)
            if any(s.ended and not (s.stage == "settled" and s.usable) for s in call.sources.values()):
                self.clock.settle_lost(call)
            elif not call.waits:
                self.clock.ready(call)

    def _open(self, g: Gather) -> list[Call]:
        """The calls that a `Gather` is about."""
        if g.of is None:
            waiting = (c for c in self.calls.values() if not (c.consumed or c.request.silent))
            return [c for c in waiting if not c.claimed and c.stage != "cancelled"]
        check_gather(g, self.calls)
        return [c for c in (self.calls[q] for q in g.of) if not c.claimed and c.stage != "cancelled"]

    def _gather(self, g: Gather) -> list[Reply]:
        open_ = self._open(g)
        first = g.until.k if isinstance(g.until, First) else None
        end = self.now + patience(g.until)
        unsettled = {c for c in open_ if c.stage != "settled"}
        have = sum(c.stage == "settled" and c.usable for c in open_)
        while unsettled and (first is None or have < first) and self.clock.before(end):
            for call in self.clock.step():
                if call in unsettled:
                    unsettled.discard(call)
                    have += call.usable
        if unsettled and end < math.inf and (first is None or have < first):
            self.clock.now = max(self.now, end)
        taken = [c for c in open_ if c.stage == "settled"]
        if first is not None:
            ranked = sorted((c for c in taken if c.usable), key=lambda c: (c.arrived, c.seq))
            chosen = set(ranked[:first])
            taken = [c for c in taken if not c.usable or c in chosen]
        if g.late == "cancel":
            self.clock.cancel((c for c in open_ if c.stage != "settled"), self.rounds)
        self.numerics.need([c for c in taken if c.usable and c.value is None])
        taken.sort(key=lambda c: c.seq)
        return [
            Reply(c.request, c.arrived, c.outcome, self.numerics.read(c), self._why(c), c.arrived - c.sent)
            for c in taken
        ]

    def _why(self, call: Call) -> str | None:
        if call.outcome == "refused" and isinstance(call.request.to, int):
            memory = self.pricing.footprint(call.request, call.state_spec, self.clock.in_spec(call))
            return (
                f"needs {memory.static + memory.working} bytes of memory, has "
                f"{self.fleet.devices[call.request.to].memory:g}"
            )
        return "the device reported an error" if call.outcome == "failed" else None
