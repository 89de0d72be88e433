"""The half of the simulator that knows numbers: what has started is computed when something of it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor

from lanterne.data import Streams
from lanterne.errors import ProtocolError
from lanterne.protocol import Address, Handler, Output
from lanterne.rng import fold
from lanterne.runtime.call import Call
from lanterne.runtime.job import Executor, Job, Result
from lanterne.tree import Spec, fits, spec_of


class Numerics:
    """The states of all addresses, and the calls that have started but are not computed.

    Args:
        handlers: the algorithm's table.
        executor: computes them.
        streams: which rows a client reads.
        seed: of the run.
        unread_bytes: bound on what is computed before anybody asked for it: replies, and states to roll back to.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], executor: Executor, streams: Streams, seed: int, unread_bytes: int
    ) -> None:
        self.handlers, self.executor, self.streams, self.seed = handlers, executor, streams, seed
        self.unread_bytes = unread_bytes
        self.states: dict[Address, Mapping[str, Tensor]] = {}
        self.pending: list[Call] = []
        self.unread = 0
        self.waves = 0

    def state_spec(self, call: Call) -> Spec:
        """The spec of the state that a call will find at its address."""
        previous = call.previous
        if previous is None or previous.value is not None:
            return spec_of(self.states.get(call.request.to, {}))
        return previous.state_spec

    def need(self, missing: list[Call]) -> None:
        """Compute these calls, and all else that has started as long as the unread replies stay within their bound."""
        if not missing:
            return
        wanted: dict[Call, None] = {}
        _closure(missing, wanted)
        unread = self.unread + sum(c.held for c in wanted)
        for call in sorted(self.pending, key=lambda c: c.seq):
            if call in wanted:
                continue
            more: dict[Call, None] = {}
            _closure([call], more)
            cost = sum(c.held for c in more if c not in wanted)
            if unread + cost <= self.unread_bytes:
                wanted.update(more)
                unread += cost
        self._compute(wanted)

    def settle_states(self) -> None:
        """Compute what has arrived and changed a state that nobody has read yet.

        So a checkpoint between two rounds changes nothing.
        """
        wanted: dict[Call, None] = {}
        _closure([c for c in self.pending if c.ended and c.state_spec], wanted)
        self._compute(wanted)

    def read(self, call: Call) -> Mapping[str, Tensor]:
        """The arrays of a reply that is given to the algorithm now."""
        call.claimed = True
        if not call.usable:
            return {}
        self.unread -= call.held
        assert call.value is not None
        return call.value

    def forget(self, call: Call) -> None:
        """A reply that arrived will never be read."""
        call.claimed = True
        if call.value is not None:
            self.unread -= call.held
        elif not call.state_spec and all(after.ended for after in call.next):
            self.pending = [c for c in self.pending if c is not call]

    def roll_back(self, cancelled: Iterable[Call]) -> None:
        """Take back what cancelled calls did: state computed ahead of its arrival is as it was before."""
        for c in sorted(cancelled, key=lambda c: -c.seq):
            if c.value is not None and c.usable:
                self.states[c.request.to], c.value = c.state_before or {}, None
                self.unread -= c.held
        self.pending = [c for c in self.pending if c.stage != "cancelled"]

    def _compute(self, calls: Iterable[Call]) -> None:
        ordered = sorted(calls, key=lambda c: c.seq)
        if ordered:
            self.waves += 1
            self.executor.run(ordered, self._job, self._done)
            self.pending = [c for c in self.pending if c.value is None]

    def _job(self, call: Call) -> Job:
        q = call.request
        arrays: dict[str, Tensor] = {}
        for name, array in q.arrays.items():
            value = call.sources[name].value if isinstance(array, Output) else None
            arrays[name] = array if isinstance(array, Tensor) else value[array.name]  # type: ignore[index]
        number, kind = (q.to, "client") if isinstance(q.to, int) else (q.to[1], "server")
        return Job(
            to=q.to,
            handler=q.handler,
            signature=call.signature,
            function=self.handlers[q.handler],
            state=self.states.get(q.to, {}),
            arrays=arrays,
            config=q.config,
            rows=partial(self.streams.rows, *((number, q.batches) if kind == "client" else (0, range(0)))),
            key=fold(self.seed, kind, number, q.batches.start),
            budget=call.budget,
        )

    def _done(self, call: Call, result: Result) -> None:
        state, out = result
        if not (fits(out, call.spec) and fits(state, call.state_spec)):
            raise ProtocolError(
                f"The handler {call.request.handler!r} of {call.request.to} gave {spec_of(out)} and the state "
                f"{spec_of(state)}, but promised {call.spec} and {call.state_spec} when it was run on shapes. "
                "Shapes must not depend on values."
            )
        if not call.ended:  # what has arrived is never taken back
            call.state_before = self.states.get(call.request.to, {})
        self.states[call.request.to], call.value = state, out
        if not call.claimed:  # else nobody will read it: it is computed for those that take it in
            self.unread += call.held
        call.sources, call.before = {}, None


def _closure(calls: Iterable[Call], into: dict[Call, None]) -> None:
    """Add calls and all that they need."""
    todo = list(calls)
    while todo:
        call = todo.pop()
        if call not in into:
            into[call] = None
            todo += call.needs
