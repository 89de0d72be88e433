"""Performs effects on a virtual clock. Time first: when a reply arrives and what it holds follow from shapes and devices;
tensors are computed at a `Gather` that gives one which is not known yet, and then everything else that has started.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lanterne.data import Streams
from lanterne.errors import FleetError, ProtocolError
from lanterne.fleet import Draw, Fleet, timing
from lanterne.fleet import Job as Priced
from lanterne.protocol import (
    Address,
    Algorithm,
    Deadline,
    Dispatch,
    Effect,
    First,
    Gather,
    Output,
    Reply,
    Request,
    S,
    category,
    drive,
)
from lanterne.rng import fold, uniform
from lanterne.runtime.call import Call, Signature
from lanterne.runtime.cohort import SimulatedCohort
from lanterne.runtime.job import Executor, Job, Result
from lanterne.runtime.ledger import Ledger
from lanterne.runtime.pricing import Pricing
from lanterne.tree import ArraySpec, Spec, nbytes, spec_of

#: Bytes of replies that are computed before anybody asked for them.
UNREAD_BYTES = 1 << 30

_SETTLE, _READY = 0, 1


class Simulator:
    """A fleet on a virtual clock.

    Args:
        algorithm: whose requests are served.
        fleet: the devices.
        executor: computes the handlers.
        streams: which rows a client reads.
        seed: of the run.
        dtype: of the parameters.
        sample_dtype: of the samples.
        unread_bytes: bound on the replies that are computed before anybody asked for them; the rest waits until it is
            asked for. It changes no result.
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
        sample_dtype: torch.dtype | None = None,
        unread_bytes: int = UNREAD_BYTES,
    ) -> None:
        self.handlers, self.traffic = algorithm.handlers, algorithm.traffic
        self.fleet, self.executor, self.streams, self.seed = fleet, executor, streams, seed
        sample = (executor.task.stack.sample_shape, sample_dtype or dtype)
        self.pricing = Pricing(self.handlers, executor.task, streams.batch, dtype, sample)
        self.unread_bytes = unread_bytes
        self.now, self.rounds, self.seq = 0.0, 0, 0
        self.events: list[tuple[float, int, int, Call]] = []
        self.calls: dict[Request, Call] = {}
        self.tail: dict[Address, Call] = {}
        self.pending: list[Call] = []
        self.running: dict[Hashable, Call] = {}
        self.queues: dict[Hashable, deque[Call]] = {}
        self.states: dict[Address, Mapping[str, Tensor]] = {}
        self.away: dict[int, float] = {}
        self.sent: dict[Address, int] = {}
        self.unread = 0
        self.waves = 0
        self.ledger = Ledger()
        self.timeline: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ rounds
    def round(self, algorithm: Algorithm[S], state: S) -> S:
        """One server version. What is still under way stays; what arrived and was not gathered is dropped, its effect on
        the state of its address is not.

        Args:
            algorithm: whose round it is.
            state: the state before it.

        Returns:
            The state after it.

        Raises:
            FleetError: if no client can ever be reached again.
        """
        self._wait_for_somebody()
        state = drive(algorithm.round(state, SimulatedCohort(self)), self)
        # State that nobody has read yet is computed here, so that a checkpoint between rounds changes nothing.
        settled: dict[Call, None] = {}
        self._closure([c for c in self.pending if c.ended and c.state_spec], settled)
        self.compute(sorted(settled, key=lambda c: c.seq))
        for call in list(self.calls.values()):
            if call.ended:
                self._drop(call)
        self.calls = {q: c for q, c in self.calls.items() if not c.ended}
        self.tail = {to: c for to, c in self.tail.items() if not c.ended}
        for call in self.calls.values():
            call.before = call.previous if call.value is None else None
            call.next = [after for after in call.next if not after.ended]
        self.rounds += 1
        return state

    def _drop(self, call: Call) -> None:
        if call.claimed or call.stage == "cancelled" or not call.usable:
            return
        if not call.consumed:
            self.ledger.regret(call.request.to, *self._spent(call))
        if call.value is not None:
            self.unread -= nbytes(call.spec)
        elif not call.state_spec and all(after.ended for after in call.next):
            self.pending = [c for c in self.pending if c is not call]

    def _wait_for_somebody(self) -> None:
        """Let time pass until a client can be reached."""
        while not len(self.reachable()):
            back = min(
                (max(self.fleet.devices[c].returns(max(self.now, self.away.get(c, 0.0))), self.away.get(c, 0.0)) for c in range(len(self.fleet))),
                default=math.inf,
            )
            if math.isinf(back):
                raise FleetError(
                    f"After {self.now:g} s no client of this fleet can ever be reached again. Give its devices later times in 'available'."
                )
            while self.events and self.events[0][0] <= back:
                self._step()
            self.now = max(self.now, back)

    def reachable(self) -> range | list[int]:
        """The clients that can be reached now."""
        self.away = {c: t for c, t in self.away.items() if t > self.now}
        if self.fleet.always_available:
            everybody = range(len(self.fleet))
            return [c for c in everybody if c not in self.away] if self.away else everybody
        return [c for c in range(len(self.fleet)) if c not in self.away and self.fleet.devices[c].online(self.now)]

    # ------------------------------------------------------------------ effects
    def perform(self, effect: Effect) -> list[Reply] | None:
        """Perform one effect."""
        if isinstance(effect, Dispatch):
            self._dispatch(effect.requests)
            return None
        return self._gather(effect)

    def _dispatch(self, requests: Iterable[Request]) -> None:
        for q in requests:
            self._check(q)
            nth = self.sent[q.to] = self.sent.get(q.to, -1) + 1
            call = Call(self.seq, q, self.now, self.rounds, nth)
            self.seq += 1
            for name, array in q.arrays.items():
                if isinstance(array, Output):
                    source = call.sources[name] = self.calls[array.request]
                    source.consumed = True
            call.before = self.tail.get(q.to)
            self.calls[q] = self.tail[q.to] = call
            inputs = [*call.sources.values()]
            if call.before is not None and call.before not in inputs:
                inputs.append(call.before)
            for source in dict.fromkeys(inputs):
                if not source.ended:
                    call.waits += 1
                    source.next.append(call)
            if any(s.ended and not (s.stage == "settled" and s.usable) for s in call.sources.values()):
                self._settle_lost(call)
            elif not call.waits:
                heapq.heappush(self.events, (self.now, _READY, call.seq, call))

    def _check(self, q: Request) -> None:
        if q in self.calls:
            raise ProtocolError(f"One request was dispatched twice: {q.handler!r} to {q.to}. Make a new one.")
        if q.handler not in self.handlers:
            raise ProtocolError(f"There is no handler {q.handler!r}; the table has {', '.join(self.handlers)}.")
        if isinstance(q.to, int) and not 0 <= q.to < len(self.fleet):
            raise ProtocolError(f"There is no client {q.to}; the fleet has {len(self.fleet)}.")
        for name, array in q.arrays.items():
            if isinstance(array, Output) and array.request not in self.calls:
                raise ProtocolError(f"{name!r} of {q.handler!r} is an output of a request that was not dispatched in this round.")

    def _gather(self, g: Gather) -> list[Reply]:
        if g.of is None:
            open_ = [c for c in self.calls.values() if not c.claimed and not c.consumed and c.stage != "cancelled"]
        else:
            for q in g.of:
                if q not in self.calls:
                    raise ProtocolError(f"{q.handler!r} to {q.to} was gathered but never dispatched, or was given in an earlier round.")
            open_ = [c for c in (self.calls[q] for q in g.of) if not c.claimed and c.stage != "cancelled"]
        first = g.until.k if isinstance(g.until, First) else None
        end = self.now + g.until.seconds if isinstance(g.until, Deadline) else math.inf
        unsettled = {id(c) for c in open_ if c.stage != "settled"}
        have = sum(c.stage == "settled" and c.usable for c in open_)
        while unsettled and (first is None or have < first) and self.events and self.events[0][0] <= end:
            for call in self._step():
                if id(call) in unsettled:
                    unsettled.discard(id(call))
                    have += call.usable
        if unsettled and end < math.inf:
            self.now = max(self.now, end)
        taken = [c for c in open_ if c.stage == "settled"]
        if first is not None:
            ranked = sorted((c for c in taken if c.usable), key=lambda c: (c.arrived, c.seq))
            chosen = set(map(id, ranked[:first]))
            taken = [c for c in taken if not c.usable or id(c) in chosen]
        taken.sort(key=lambda c: c.seq)
        if g.late == "cancel":
            for call in open_:
                if call.stage != "settled":
                    self._cancel(call)
        self._compute([c for c in taken if c.usable and c.value is None])
        for call in taken:
            call.claimed = True
            if call.usable:
                self.unread -= nbytes(call.spec)
        return [Reply(c.request, c.arrived, c.outcome, c.value if c.usable and c.value is not None else {}, self._why(c)) for c in taken]

    def _why(self, call: Call) -> str | None:
        if call.outcome == "refused" and isinstance(call.request.to, int):
            memory = self.pricing.memory(tuple(call.request.passes), 0)
            return f"needs {memory.static + memory.working} bytes of memory, has {self.fleet.devices[call.request.to].memory:g}"
        return "the device reported an error" if call.outcome == "failed" else None

    # ------------------------------------------------------------------ time
    def _step(self) -> list[Call]:
        """The next event; the calls that it settled."""
        self.now, kind, _, call = heapq.heappop(self.events)
        if call.stage == "cancelled":
            return []
        if kind == _SETTLE:
            return self._settle(call)
        lane = self.fleet.lane(call.request.to)
        if lane in self.running:
            call.stage = "queued"
            self.queues.setdefault(lane, deque()).append(call)
        else:
            self._begin(lane, call)
        return []

    def _begin(self, lane: Hashable, call: Call) -> None:
        """Start a call on its lane: from here on its times, its shapes and its outcome are known."""
        call.stage, call.start = "running", self.now
        self.running[lane] = call
        to = call.request.to
        if isinstance(to, tuple):
            self._predict(call, None)
            call.downloaded = self.now
            call.computed = call.arrived = self.now + self.pricing.work(call.request.passes).total / self.fleet.server.flops
        else:
            self._begin_on_device(to, call)
        if call.usable:
            self.pending.append(call)
        else:
            call.state_spec, call.value = self._state_spec(call), {}
        heapq.heappush(self.events, (call.arrived, _SETTLE, call.seq, call))

    def _begin_on_device(self, client: int, call: Call) -> None:
        q, device, draw = call.request, self.fleet.devices[client], Draw(self.fleet.seed, client, self.rounds, call.nth)
        if self.away.get(client, 0.0) > self.now or not device.online(self.now):
            call.outcome, call.arrived = "lost", self.now + self.fleet.detection
            call.downloaded = call.computed = self.now
            return
        state = self._state_spec(call)
        memory = self.pricing.memory(tuple(q.passes), nbytes(state))
        if memory.static + memory.working > device.memory:
            call.outcome, call.arrived = "refused", self.now + 2 * device.latency
            call.downloaded = call.computed = self.now + device.latency
            return
        arrays = self._in_spec(call)
        for array in arrays:
            self.ledger.carry(client, category(array.name, len(array.shape), self.traffic, "down"), array.nbytes)
        self.ledger.hold(client, memory)

        def up(units: int | None) -> int:
            return nbytes(self.pricing.shapes(self._signature(call, state, arrays, units))[1])

        priced = Priced(nbytes(arrays), self.pricing.work(q.passes), up, q.deadline, q.stop)
        t = timing(device, priced, draw, self.now - call.sent)
        call.downloaded, call.computed, call.arrived = call.sent + t.downloaded, call.sent + t.computed, call.sent + t.arrived
        call.units = t.units
        call.outcome = "complete" if t.units is None else "partial"
        lost = self._lost_at(client, call, draw)
        if lost is not None:
            call.outcome = "lost"
            self.away[client] = max(lost + self.fleet.rejoin, lost)
            call.downloaded, call.computed = min(call.downloaded, lost), min(call.computed, lost)
            call.arrived = lost + self.fleet.detection
        elif device.failure and uniform(draw.seed, "failure", client, draw.nth) < device.failure:
            call.outcome, call.arrived = "failed", call.computed + device.latency
        else:
            self._predict(call, t.units)

    def _lost_at(self, client: int, call: Call, draw: Draw) -> float | None:
        """When the device goes away in the middle of the call, if it does."""
        device = self.fleet.devices[client]
        leaves = device.leaves(self.now)
        if device.dropout and uniform(draw.seed, "dropout", client, draw.nth) < device.dropout:
            share = uniform(draw.seed, "dropout at", client, draw.nth)
            leaves = min(leaves, self.now + share * (call.arrived - self.now))
        return leaves if leaves < call.arrived else None

    def _settle(self, call: Call) -> list[Call]:
        call.stage = "settled"
        to = call.request.to
        lane = self.fleet.lane(to)
        seconds, flops = self._spent(call)
        self.ledger.spend(to, seconds, flops, wasted=not call.usable)
        if call.usable and isinstance(to, int):
            for array in call.spec:
                self.ledger.carry(to, category(array.name, len(array.shape), self.traffic, "up"), array.nbytes)
        self._record(call, call.arrived)
        self._free(lane)
        settled = [call]
        for after in call.next:
            after.waits -= 1
            if after.ended:
                continue
            if not call.usable and call in after.sources.values():
                settled += self._settle_lost(after)
            elif not after.waits:
                heapq.heappush(self.events, (self.now, _READY, after.seq, after))
        call.next = []
        return settled

    def _settle_lost(self, call: Call) -> list[Call]:
        """What was to be taken in will never come: neither will the reply."""
        call.stage, call.outcome, call.arrived, call.value = "settled", "lost", self.now, {}
        call.state_spec = self._state_spec(call)
        settled = [call]
        for after in call.next:
            after.waits -= 1
            if after.ended:
                continue
            if call in after.sources.values():
                settled += self._settle_lost(after)
            elif not after.waits:
                heapq.heappush(self.events, (self.now, _READY, after.seq, after))
        call.next = []
        return settled

    def _free(self, lane: Hashable) -> None:
        """Let the next call of a lane begin, in order of readiness."""
        self.running.pop(lane, None)
        queue = self.queues.get(lane)
        while queue:
            call = queue.popleft()
            if call.stage == "queued":
                self._begin(lane, call)
                return

    def _cancel(self, call: Call) -> None:
        """End a call, and with it all that waits for it and what was dispatched in this round for it alone."""
        todo, computed, lanes = [call], [], []
        while todo:
            c = todo.pop()
            if c.ended:
                continue
            if c.stage == "running":
                lanes.append(self.fleet.lane(c.request.to))
                seconds, flops = self._spent(c)
                self.ledger.spend(c.request.to, seconds, flops, wasted=True)
                self._record(c, self.now, cancelled=True)
            if c.value is not None and c.usable:
                computed.append(c)
                self.unread -= nbytes(c.spec)
            c.stage = "cancelled"
            todo += c.next
            inputs = [*c.sources.values()] + ([c.before] if c.before is not None and c.before.round == self.rounds else [])
            todo += [i for i in inputs if all(n.stage == "cancelled" for n in i.next)]
        for c in sorted(computed, key=lambda c: -c.seq):
            self.states[c.request.to], c.value = c.state_before or {}, None
        self.pending = [c for c in self.pending if c.stage != "cancelled"]
        for lane in lanes:
            self._free(lane)

    def _spent(self, call: Call) -> tuple[float, float]:
        """Seconds and FLOPs that an address has spent on a call by now."""
        end = min(call.arrived, self.now)
        if call.outcome == "lost":
            end = min(end, max(call.computed, call.downloaded))
        work = self.pricing.work(call.request.passes)
        if call.stage == "settled" and call.usable:
            units = len(work) if call.units is None else call.units
            flops = float(work.cumulative[units - 1]) if units else 0.0
        elif call.computed > call.downloaded:
            share = (min(end, call.computed) - call.downloaded) / (call.computed - call.downloaded)
            flops = work.total * min(max(share, 0.0), 1.0)
        else:
            flops = 0.0
        return max(end - call.start, 0.0), flops

    def _record(self, call: Call, end: float, *, cancelled: bool = False) -> None:
        to = call.request.to
        self.timeline.append({
            "round": call.round + 1,
            "client": to if isinstance(to, int) else f"server:{to[1]}",
            "class": self.fleet.devices[to].tier if isinstance(to, int) else "server",
            "handler": call.request.handler,
            "sent": call.sent,
            "start": call.start,
            "downloaded": min(call.downloaded, end),
            "computed": min(call.computed, end),
            "arrived": end,
            "outcome": "cancelled" if cancelled else call.outcome,
            "units": len(self.pricing.work(call.request.passes)) if call.units is None else call.units,
            "of": len(self.pricing.work(call.request.passes)),
        })  # fmt: skip

    # ------------------------------------------------------------------ shapes
    def _in_spec(self, call: Call) -> Spec:
        spec = []
        for name, array in call.request.arrays.items():
            if isinstance(array, Output):
                found = next((s for s in call.sources[name].spec if s.name == array.name), None)
                if found is None:
                    raise ProtocolError(f"The reply to {array.request.handler!r} holds no array {array.name!r}.")
                spec.append(ArraySpec(name, found.shape, found.dtype))
            else:
                spec.append(ArraySpec(name, tuple(array.shape), array.dtype))
        return tuple(spec)

    def _state_spec(self, call: Call) -> Spec:
        previous = call.previous
        if previous is None or previous.value is not None:
            return spec_of(self.states.get(call.request.to, {}))
        return previous.state_spec

    def _signature(self, call: Call, state: Spec, arrays: Spec, units: int | None) -> Signature:
        q = call.request
        steps = len(q.batches) if isinstance(q.to, int) else 0
        return (q.handler, tuple(q.config.items()), state, arrays, steps, units)

    def _predict(self, call: Call, units: int | None) -> None:
        call.signature = self._signature(call, self._state_spec(call), self._in_spec(call), units)
        call.state_spec, call.spec = self.pricing.shapes(call.signature)

    # ------------------------------------------------------------------ numerics
    def _compute(self, missing: list[Call]) -> None:
        """Compute these calls, and everything else that has started as long as the unread replies stay within their bound."""
        if not missing:
            return
        wanted: dict[Call, None] = {}
        self._closure(missing, wanted)
        unread = self.unread + sum(nbytes(c.spec) for c in wanted)
        for call in sorted(self.pending, key=lambda c: c.seq):
            if call in wanted:
                continue
            more: dict[Call, None] = {}
            self._closure([call], more)
            cost = sum(nbytes(c.spec) for c in more if c not in wanted)
            if unread + cost <= self.unread_bytes:
                wanted.update(more)
                unread += cost
        self.compute(sorted(wanted, key=lambda c: c.seq))

    def _closure(self, calls: Iterable[Call], into: dict[Call, None]) -> None:
        todo = list(calls)
        while todo:
            call = todo.pop()
            if call not in into:
                into[call] = None
                todo += call.needs

    def compute(self, calls: list[Call]) -> None:
        """Compute calls, in an order in which none needs a later one."""
        if not calls:
            return
        self.waves += 1
        self.executor.run(calls, self._job, self._done)
        self.pending = [c for c in self.pending if c.value is None]

    def _job(self, call: Call) -> Job:
        q = call.request
        arrays: dict[str, Tensor] = {}
        for name, array in q.arrays.items():
            value = call.sources[name].value if isinstance(array, Output) else None
            arrays[name] = array if isinstance(array, Tensor) else value[array.name]  # type: ignore[index]
        steps = q.batches if isinstance(q.to, int) else range(0)
        number, kind = (q.to, "client") if isinstance(q.to, int) else (q.to[1], "server")
        return Job(
            to=q.to,
            handler=q.handler,
            signature=call.signature,
            function=self.handlers[q.handler],
            state=self.states.get(q.to, {}),
            arrays=arrays,
            config=q.config,
            rows=self.streams.rows(number if kind == "client" else 0, steps),
            key=fold(self.seed, kind, number, q.batches.start),
            budget=call.budget,
        )

    def _done(self, call: Call, result: Result) -> None:
        state, out = result
        if spec_of(out) != call.spec or spec_of(state) != call.state_spec:
            raise ProtocolError(
                f"The handler {call.request.handler!r} of {call.request.to} gave {spec_of(out)} and the state {spec_of(state)}, "
                f"but promised {call.spec} and {call.state_spec} when it was run on shapes. Shapes must not depend on values."
            )
        call.state_before, self.states[call.request.to], call.value = self.states.get(call.request.to, {}), state, out
        self.unread += nbytes(call.spec)
        call.sources, call.before = {}, None
