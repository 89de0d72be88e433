"""The same programs on a real clock: one thread per address, as a deployment has one process per device. Nothing polls.

A device's deadline is kept by its own clock through a `Clock` budget: its backward pass really stops.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lanterne.budget import Clock, Units
from lanterne.data import Streams
from lanterne.errors import LanterneError, ProtocolError
from lanterne.protocol import (
    Address,
    Algorithm,
    Dispatch,
    Effect,
    Facts,
    First,
    Gather,
    Outcome,
    Output,
    Reply,
    Request,
    S,
    drive,
    judged,
    patience,
)
from lanterne.rng import fold
from lanterne.runtime.checks import check_batches, check_gather, check_request
from lanterne.runtime.cohort import sample
from lanterne.runtime.job import Job
from lanterne.runtime.loop import Loop


class Flight:
    """A request under way on the real clock."""

    def __init__(self, seq: int, request: Request, sources: dict[str, Flight], round: int, sent: float) -> None:
        self.seq, self.request, self.sources, self.round, self.sent = seq, request, sources, round, sent
        self.before: Flight | None = None
        self.inputs: tuple[Flight, ...] = ()
        self.waits = 0
        self.next: list[Flight] = []
        self.outcome: Outcome | None = None
        self.value: Mapping[str, Tensor] = {}
        self.error: str | None = None
        self.at = math.inf
        self.consumed = self.claimed = self.cancelled = self.begun = False

    def unheard(self, since: float) -> bool:
        """Whether its reply has come since then, is wanted, and was not given to anybody."""
        return self.at >= since and not (self.claimed or self.consumed or self.request.silent)

    @property
    def usable(self) -> bool:
        """Whether it is settled and brought arrays."""
        return self.outcome in ("complete", "partial")


def _standing(flight: Flight | None) -> Flight | None:
    """This flight, or the last before it at its address, that was neither cancelled nor ended without a reply."""
    while flight is not None and (flight.cancelled or (flight.outcome is not None and not flight.usable)):
        flight = flight.before
    return flight


class InProcessCohort:
    """What an algorithm is told of the fleet here: no clock model, all clients alike.

    See `lanterne.protocol.Cohort`.
    """

    def __init__(self, runtime: InProcess) -> None:
        self._runtime = runtime
        self.round = runtime.rounds
        self.key = fold(runtime.seed, "cohort", runtime.rounds)
        self.population = len(runtime.streams)
        self.clients: Sequence[int] = [c for c in range(len(runtime.streams)) if c not in runtime.gone]

    def sample(self, n: int | None, key: int) -> tuple[int, ...]:
        """`n` clients at random without repetition, ascending; all where `n` is None or exceeds their number."""
        return sample(self.clients, n, key)

    def facts(self, client: int) -> Facts:
        """What is known of a client: its samples."""
        return Facts(self._runtime.streams.samples(client), math.inf, math.inf, math.inf, math.inf, 0.0, "device")

    def seconds(self, request: Request) -> float:
        """The mean of what this client has needed for this handler so far; 0 before the first time."""
        count, seconds = self._runtime.measured.get((request.to, request.handler), (0, 0.0))
        return seconds / count if count else 0.0

    def reach(self, request: Request) -> Sequence[float] | None:
        """Certain without a deadline; unknown with one, for there is no clock model of real devices."""
        return [1.0] * sum(p.last - p.first for p in request.passes) if math.isinf(request.deadline) else None


class InProcess:
    """A fleet of threads on the wall clock.

    Args:
        algorithm: whose requests are served.
        executor: calls the handlers; its threads are not used.
        streams: which rows a client reads.
        seed: of the run.
        on_error: `raise` ends the round with a handler's error, as is right for one's own code; `fail` makes it a reply
            with the outcome `failed`, as a fleet would.
        gone: clients that have left: what is sent to them is lost. May change at any time.
        grace: seconds that a `Gather` waits beyond its deadline for devices that were told to stop by then: one that
            stops in time is heard a moment later, when the unit that it was at is done.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        executor: Loop,
        streams: Streams,
        *,
        seed: int = 0,
        on_error: str = "raise",
        gone: set[int] | None = None,
        grace: float = 1.0,
    ) -> None:
        check_batches(executor.task.stack, streams)
        self.handlers, self.executor, self.streams, self.seed = algorithm.handlers, executor, streams, seed
        self.on_error, self.gone = on_error, gone if gone is not None else set()
        self.grace = grace
        self.rounds, self.seq = 0, 0
        self.started = time.monotonic()
        self.measured: dict[tuple[Address, str], tuple[int, float]] = {}
        self.states: dict[Address, Mapping[str, Tensor]] = {}
        self._changed = threading.Condition()
        self._flights: dict[Request, Flight] = {}
        self._tail: dict[Address, Flight] = {}
        self._queues: dict[Address, queue.SimpleQueue[Flight | None]] = {}
        self._threads: list[threading.Thread] = []
        self._failure: Exception | None = None

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def round(self, algorithm: Algorithm[S], state: S) -> S:
        """One server version; what is still under way stays.

        So does a reply that has come in this round and was not heard: real time goes on between the last `Gather` and
        the end of a round, and whoever waits for that reply would wait for ever. It has the next round to be heard.
        """
        begun = self.now
        state = drive(algorithm.round(state, InProcessCohort(self)), self)
        with self._changed:
            kept = {q: f for q, f in self._flights.items() if f.outcome is None or f.unheard(begun)}
            self._flights = {q: f for q, f in kept.items() if not f.cancelled}
            tails = ((to, _standing(f)) for to, f in self._tail.items())
            self._tail = {to: f for to, f in tails if f is not None and f.outcome is None}
            self.rounds += 1
        return state

    def models(self, algorithm: Algorithm[S], state: S) -> Tensor:
        """What is judged after a round, see `protocol.judged`."""
        return judged(algorithm, state, self.states)

    def perform(self, effect: Effect) -> list[Reply] | None:
        """Perform one effect."""
        with self._changed:
            if isinstance(effect, Dispatch):
                for request in effect.requests:
                    self._dispatch(request)
                return None
            return self._gather(effect)

    def close(self) -> None:
        """End all threads; work under way is finished first."""
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------ under the lock
    def _dispatch(self, request: Request) -> None:
        check_request(request, self.handlers, len(self.streams), self._flights)
        sources = {n: self._flights[a.request] for n, a in request.arrays.items() if isinstance(a, Output)}
        flight = self._flights[request] = Flight(self.seq, request, sources, self.rounds, time.monotonic())
        self.seq += 1
        before = _standing(self._tail.get(request.to))
        self._tail[request.to], flight.before = flight, before
        for source in sources.values():
            source.consumed = True
        if any(s.cancelled or (s.outcome is not None and not s.usable) for s in sources.values()):
            self._settle(flight, "lost")
            return
        inputs = dict.fromkeys([*sources.values(), *([flight.before] if flight.before is not None else [])])
        flight.inputs = tuple(i for i in inputs if i.outcome is None and not i.cancelled)
        flight.waits = len(flight.inputs)
        for i in flight.inputs:
            i.next.append(flight)
        if not flight.waits:
            self._send(flight)

    def _send(self, flight: Flight) -> None:
        to = flight.request.to
        if to in self.gone:
            self._settle(flight, "lost")
            return
        if to not in self._queues:
            self._queues[to] = queue.SimpleQueue()
            thread = threading.Thread(target=self._serve, args=(to,), daemon=True, name=f"lanterne-{to}")
            self._threads.append(thread)
            thread.start()
        self._queues[to].put(flight)

    def _settle(
        self, flight: Flight, outcome: Outcome, value: Mapping[str, Tensor] | None = None, error: str | None = None
    ) -> None:
        if flight.outcome is not None or flight.cancelled:
            return
        flight.outcome, flight.value, flight.error, flight.at = outcome, value or {}, error, self.now
        for after in flight.next:
            after.waits -= 1
            if not flight.usable:
                self._settle(after, "lost")
            elif not after.waits and not after.cancelled and after.outcome is None:
                self._send(after)
        flight.next, flight.inputs = [], ()
        if flight.usable:
            flight.before = None
        self._changed.notify_all()

    def _cancel(self, flight: Flight) -> None:
        """End a flight and all that waits for it. One that a thread is at work on ends unheard, its state unchanged."""
        todo = [flight]
        while todo:
            f = todo.pop()
            if f.outcome is None and not f.cancelled:
                f.cancelled = True
                todo += f.next
                inputs = [i for i in f.inputs if i.round == self.rounds and (i.consumed or i.request.silent)]
                todo += [i for i in inputs if all(n.cancelled for n in i.next)]

    def _gather(self, g: Gather) -> list[Reply]:
        check_gather(g, self._flights)
        if g.of is None:
            waiting = (f for f in self._flights.values() if not (f.consumed or f.request.silent))
            open_ = [f for f in waiting if not f.claimed and not f.cancelled]
        else:
            open_ = [f for f in (self._flights[q] for q in g.of) if not f.claimed and not f.cancelled]
        first = g.until.k if isinstance(g.until, First) else None
        limit = patience(g.until) if patience(g.until) < math.inf else None

        def enough() -> bool:
            return (
                self._failure is not None
                or all(f.outcome is not None for f in open_)
                or (first is not None and sum(f.usable for f in open_) >= first)
            )

        if not self._changed.wait_for(enough, limit):
            told = [f for f in open_ if f.begun and time.monotonic() >= f.sent + f.request.deadline]
            self._changed.wait_for(lambda: enough() or all(f.outcome is not None for f in told), self.grace)
        if self._failure is not None:
            raise self._failure
        taken = [f for f in open_ if f.outcome is not None]
        if first is not None:
            chosen = set(map(id, sorted((f for f in taken if f.usable), key=lambda f: (f.at, f.seq))[:first]))
            taken = [f for f in taken if not f.usable or id(f) in chosen]
        if g.late == "cancel":
            for f in open_:
                self._cancel(f)
        for f in open_ if g.late == "cancel" else taken:
            f.claimed = True
        return [
            Reply(f.request, f.at, f.outcome or "lost", f.value, f.error, f.at - (f.sent - self.started))
            for f in sorted(taken, key=lambda f: f.seq)
        ]

    # ------------------------------------------------------------------ an address's thread
    def _serve(self, to: Address) -> None:
        while (flight := self._queues[to].get()) is not None:
            if flight.cancelled:
                continue
            flight.begun, begun = True, time.monotonic()
            end = flight.sent + flight.request.deadline
            stopped = False

            def allows(end: float = end) -> bool:
                nonlocal stopped
                stopped = stopped or time.monotonic() >= end
                return not stopped

            try:
                job = self._job(flight, Units() if math.isinf(end) else Clock(allows))
                state, value = self.executor.one(job)
            except Exception as error:
                # Whatever it is, the thread has to answer: silence would be waited for.
                known = (
                    error
                    if isinstance(error, LanterneError)
                    else ProtocolError(f"{flight.request.handler!r}: {error!r}")
                )
                with self._changed:
                    if self.on_error == "raise":
                        self._failure = known
                    self._settle(flight, "failed", error=str(known))
                    self._changed.notify_all()
                continue
            with self._changed:
                count, seconds = self.measured.get((to, flight.request.handler), (0, 0.0))
                self.measured[to, flight.request.handler] = (count + 1, seconds + time.monotonic() - begun)
                if to in self.gone:
                    self._settle(flight, "lost")
                elif not flight.cancelled:
                    self.states[to] = state
                    self._settle(flight, "partial" if stopped else "complete", value)

    def _job(self, flight: Flight, budget: Units | Clock) -> Job:
        q = flight.request
        arrays = {n: flight.sources[n].value[a.name] if isinstance(a, Output) else a for n, a in q.arrays.items()}
        number, kind = (q.to, "client") if isinstance(q.to, int) else (q.to[1], "server")
        return Job(
            to=q.to,
            handler=q.handler,
            signature=(),
            function=self.handlers[q.handler],
            state=self.states.get(q.to, {}),
            arrays=arrays,
            config=q.config,
            rows=partial(self.streams.rows, *((number, q.batches) if kind == "client" else (0, range(0)))),
            key=fold(self.seed, kind, number, q.batches.start),
            budget=budget,
        )
