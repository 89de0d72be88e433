"""The half of the simulator that knows time: events, lanes, devices and their books.

No number is known here, only shapes.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lanterne.errors import FleetError, ProtocolError
from lanterne.fleet import Draw, Fleet, timing
from lanterne.protocol import Address, Direction, Outcome, Output, Pass, category
from lanterne.rng import uniform
from lanterne.runtime.call import Call, signature
from lanterne.runtime.ledger import Ledger
from lanterne.runtime.numerics import Numerics
from lanterne.runtime.pricing import Pricing
from lanterne.runtime.progress import Spent, finished, received, sent, spent
from lanterne.runtime.server_memory import ServerMemory
from lanterne.runtime.unserved import ACROSS
from lanterne.tree import ArraySpec, Spec

_SETTLE, _READY = 0, 1


class VirtualClock:
    """What happens when on a fleet.

    Args:
        fleet: the devices.
        pricing: what requests cost.
        numerics: is told of every call that starts.
        traffic: the category of each array that crosses a link.
    """

    def __init__(self, fleet: Fleet, pricing: Pricing, numerics: Numerics, traffic: Mapping[str, str]) -> None:
        self.fleet, self.pricing, self.numerics, self.traffic = fleet, pricing, numerics, traffic
        self.now = 0.0
        self.events: list[tuple[float, int, int, Call]] = []
        self.running: dict[Hashable, Call] = {}
        self.queues: dict[Hashable, deque[Call]] = {}
        self.away: dict[int, float] = {}
        self.ledger = Ledger()
        limit = fleet.server.memory
        self.memory = None if math.isinf(limit) else ServerMemory(limit, pricing, traffic)
        self.timeline: list[dict[str, Any]] = []

    def ready(self, call: Call) -> None:
        """The inputs of a call are there: it may begin as soon as its lane is free."""
        heapq.heappush(self.events, (self.now, _READY, call.seq, call))

    def before(self, end: float) -> bool:
        """Whether anything happens until `end`."""
        return bool(self.events) and self.events[0][0] <= end

    def reachable(self) -> Sequence[int]:
        """The clients that can be reached now, ascending: at most eight bytes each."""
        self.away = {c: t for c, t in self.away.items() if t > self.now}
        if self.fleet.always_available and not self.away:
            return range(len(self.fleet))
        there = self.fleet.online(self.now)
        there[list(self.away)] = False
        return np.flatnonzero(there).data

    def wait_for_somebody(self) -> None:
        """Let time pass until a client can be reached."""
        while not len(self.reachable()):
            back = self.fleet.returns(self.now)
            for c, t in self.away.items():
                back = min(back, self.fleet.devices[c].returns(t))
            if math.isinf(back):
                raise FleetError(
                    f"After {self.now:g} s no client of this fleet can ever be reached again. "
                    "Give its devices later times in 'available'."
                )
            while self.before(back):
                self.step()
            self.now = max(self.now, back)

    def step(self) -> list[Call]:
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
            self._promise(call, self.numerics.state_spec(call), self.in_spec(call), None)
            if self.memory is not None:
                self.memory.begins(call)
            call.downloaded = self.now
            call.useful = call.computed = call.arrived = self.now + call.work.total / self.fleet.server.flops
            call.uploaded = call.until = call.arrived
        else:
            self._begin_on_device(to, call)
        if call.usable:
            self.numerics.pending.append(call)
        else:
            call.state_spec, call.value = self.numerics.state_spec(call), {}
        heapq.heappush(self.events, (call.arrived, _SETTLE, call.seq, call))

    def _begin_on_device(self, client: int, call: Call) -> None:
        q, device, draw = call.request, self.fleet.devices[client], Draw(self.fleet.seed, client, call.round, call.nth)
        if self.away.get(client, 0.0) > self.now or not device.online(self.now):
            self._nothing(call, "lost", self.now, self.now + self.fleet.detection)
            return
        state, arrays = self.numerics.state_spec(call), self.in_spec(call)
        memory = self.pricing.footprint(q, state, arrays)
        if memory.static + memory.working > device.memory:
            self._nothing(call, "refused", self.now + device.latency, self.now + 2 * device.latency)
            return
        self.ledger.hold(client, memory)
        t = timing(device, self.pricing.job(q, state, arrays), draw, self.now - call.sent)
        call.downloaded, call.useful, call.computed = (
            call.sent + t.downloaded,
            call.sent + t.useful,
            call.sent + t.computed,
        )
        call.arrived = call.uploaded = call.until = call.sent + t.arrived
        call.units = t.units
        call.outcome = "complete" if t.units is None else "partial"
        # Shapes are promised to nobody where the call is lost, but its upload may have begun.
        self._promise(call, state, arrays, t.units)
        lost = self._lost_at(client, call, draw)
        if lost is not None:
            call.outcome, call.until, call.arrived = "lost", lost, lost + self.fleet.detection
            self.away[client] = max(lost + self.fleet.rejoin, lost)
        elif not t.heard:
            call.outcome, call.spec = "lost", ()
        elif device.failure and uniform(draw.seed, "failure", client, draw.nth) < device.failure:
            call.outcome, call.spec = "failed", ()
            call.arrived = call.until = call.computed + device.latency

    def _nothing(self, call: Call, outcome: Outcome, until: float, arrived: float) -> None:
        """A call that moves no byte and does no work."""
        call.outcome, call.units = outcome, 0
        call.downloaded, call.uploaded = math.inf, math.inf
        call.useful = call.computed = call.until = until
        call.arrived = arrived

    def _promise(self, call: Call, state: Spec, arrays: Spec, units: int | None) -> None:
        """From here on the shapes of a call's reply and of the state after it are known."""
        call.signature = signature(call.request, state, arrays, units)
        call.state_spec, call.spec, call.nbytes = self.pricing.reply(call.signature)

    def _lost_at(self, client: int, call: Call, draw: Draw) -> float | None:
        """When the device goes away in the middle of the call, if it does."""
        device = self.fleet.devices[client]
        leaves = device.leaves(self.now)
        if device.dropout and uniform(draw.seed, "dropout", client, draw.nth) < device.dropout:
            share = uniform(draw.seed, "dropout at", client, draw.nth)
            leaves = min(leaves, self.now + share * (call.arrived - self.now))
        return leaves if leaves < call.arrived else None

    def _settle(self, call: Call) -> list[Call]:
        call.stage, call.state_before = "settled", None
        self._book(call, wasted=not call.usable)
        if call.outcome == "partial":
            self.ledger.regret(call.request.to, call.computed - call.useful, 0.0)
        self._served(call)
        self._record(call, call.arrived)
        if self.memory is not None:
            (self.memory.arrives if isinstance(call.request.to, int) else self.memory.ends)(call)
        self._free(self.fleet.lane(call.request.to))
        settled = [call]
        for after in call.next:
            after.waits -= 1
            if after.ended:
                continue
            if not call.usable:
                settled += self.settle_lost(after)
            elif not after.waits:
                heapq.heappush(self.events, (self.now, _READY, after.seq, after))
        call.next, call.inputs = [], ()
        return settled

    def _book(self, call: Call, *, wasted: bool) -> None:
        """Enter what a call has cost by now: it ends here, one way or another."""
        to = call.request.to
        self.ledger.spend(to, *self.spent(call), wasted=wasted)
        if not isinstance(to, int):
            return
        self._book_samples(to, call)
        waits = 0
        latency = self.fleet.devices[to].latency
        shares: list[tuple[Direction, Spec, float]] = [
            ("down", call.signature[3] if call.signature else (), received(call, latency, self.now)),
            ("up", call.spec, sent(call, latency, self.now)),
        ]
        for direction, arrays, share in shares:
            for array in arrays if share else ():
                name = category(array.name, len(array.shape), self.traffic, direction)
                self.ledger.carry(to, name, direction, int(share * array.nbytes))
                waits += array.nbytes if name in ACROSS else 0
        if waits and call.usable and call.stage == "settled":
            self.ledger.unserved.come(("sent", call.seq), waits)

    def _book_samples(self, client: int, call: Call) -> None:
        """Enter which samples have gone forward by now, and what is kept of them until the gradient comes."""
        q, units = call.request, finished(call, self.fleet, min(call.arrived, self.now, call.until))
        if units == len(call.work) and (kept := self.pricing.kept(q.passes)):
            self.ledger.keep(client, kept)
        ends = self.pricing.forwards(q.passes)
        if ends:
            done = len(q.batches) * sum(units >= end for end in ends) // len(ends)
            self.ledger.train(client, call.round, q.batches[:done], self.pricing.batch)

    def _served(self, call: Call) -> None:
        """A server's work has ended, one way or another: what it took in waits no longer."""
        if not isinstance(call.request.to, tuple):
            return
        unserved, replica = self.ledger.unserved, call.request.to[1]
        for source in call.sources.values():
            unserved.gone(("sent", source.seq))
        if call.stage == "settled" and call.usable and (kept := self.pricing.kept(call.request.passes)):
            unserved.come(("kept", replica), kept)
        elif any(p.kind == "backward" for p in call.request.passes):
            unserved.gone(("kept", replica))

    def end_round(self, open_: Iterable[Call]) -> None:
        """What came up across the cut and no call is still to take in is given up.

        Args:
            open_: the calls that have not ended.
        """
        keys: set[tuple[str, int]] = set()
        for call in open_:
            keys |= {("sent", source.seq) for source in call.sources.values()}
            if isinstance(call.request.to, tuple):
                keys.add(("kept", call.request.to[1]))
        self.ledger.unserved.only(keys)

    def settle_lost(self, call: Call) -> list[Call]:
        """What a call was to take in, or the state that it was to find, will never be: it and all after it are lost."""
        settled, todo = [], [call]
        while todo:
            c = todo.pop()
            if c.ended:
                continue
            c.stage, c.outcome, c.arrived, c.value = "settled", "lost", self.now, {}
            c.state_spec = self.numerics.state_spec(c)
            self._served(c)
            settled.append(c)
            todo += c.next
            c.next, c.inputs = [], ()
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

    def cancel(self, calls: Iterable[Call], round: int) -> None:
        """End calls, and with each all that waits for it, and what was dispatched in this round for its sake alone."""
        todo, cancelled, lanes = list(calls), [], []
        while todo:
            c = todo.pop()
            if c.ended:
                continue
            if c.stage == "running":
                lanes.append(self.fleet.lane(c.request.to))
                self._book(c, wasted=True)
                self._record(c, self.now, "cancelled")
                if self.memory is not None and isinstance(c.request.to, tuple):
                    self.memory.stops(c)
            c.stage = "cancelled"
            self._served(c)
            cancelled.append(c)
            todo += c.next
            inputs = [i for i in c.inputs if i.round == round and (i.consumed or i.request.silent)]
            todo += [i for i in inputs if all(n.stage == "cancelled" for n in i.next)]
        self.numerics.roll_back(cancelled)
        for lane in lanes:
            self._free(lane)

    def spent(self, call: Call) -> Spent:
        """What an address has spent on a call by now."""
        return spent(call, self.fleet, min(call.arrived, self.now))

    def under_way(self) -> list[dict[str, Any]]:
        """What devices are at work on now, as records like those of the timeline, with the outcome `running`."""
        before, self.timeline = self.timeline, []
        for call in sorted(self.running.values(), key=lambda c: c.seq):
            self._record(call, self.now, "running")
        found, self.timeline = self.timeline, before
        return found

    def _record(self, call: Call, end: float, outcome: str | None = None) -> None:
        to, stopped = call.request.to, min(end, call.until)
        self.timeline.append({
            "round": call.round + 1,
            "client": to if isinstance(to, int) else f"server:{to[1]}",
            "machine": self._machine(to),
            "class": self.fleet.devices[to].tier if isinstance(to, int) else "server",
            "handler": call.request.handler,
            "work": _work(call.request.passes),
            "sent": call.sent,
            "start": call.start,
            "downloaded": min(call.downloaded, stopped),
            "computed": min(call.computed, stopped),
            "stopped": stopped,
            "arrived": end,
            "outcome": outcome or call.outcome,
            "units": finished(call, self.fleet, stopped),
            "of": len(call.work),
            "version": call.request.note if isinstance(call.request.note, int) else None,
        })  # fmt: skip

    def _machine(self, to: Address) -> int | None:
        """The machine that works for a server replica; None for a client, and where every replica has its own."""
        machines = self.fleet.server.machines
        return to[1] % machines if isinstance(to, tuple) and machines is not None else None

    # ------------------------------------------------------------------ shapes
    def in_spec(self, call: Call) -> Spec:
        """The arrays that a call brings to its address."""
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


def _work(passes: Iterable[Pass]) -> str:
    """In which direction a request goes through blocks: `forward`, `backward`, `both` or `none`."""
    kinds = {p.kind for p in passes}
    return "both" if len(kinds) > 1 else next(iter(kinds), "none")
