"""A simulator as plain data, and back: numbers, strings, tuples, dictionaries and tensors; what is shared stays shared.

Everything in flight is kept: requests, their recorded times, what was computed ahead with the state to roll back to,
and what was not, which is computed after the restart.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from lanterne.protocol import Address, Output, Pass, Request
from lanterne.runtime.call import Call, signature
from lanterne.tree import ArraySpec, Spec

if TYPE_CHECKING:
    from lanterne.runtime.simulator import Simulator

_PLAIN = (
    "seq", "sent", "round", "nth", "stage", "outcome", "start", "downloaded",
    "useful", "computed", "uploaded", "until", "arrived", "units", "nbytes", "waits", "consumed", "claimed",
)  # fmt: skip

_KEPT = ("to", "handler", "config", "deadline", "stop", "indivisible", "silent", "optimiser", "note")


def snapshot(simulator: Simulator) -> dict[str, Any]:
    """The simulator as plain data, between two rounds.

    Args:
        simulator: left as it is.
    """
    calls: dict[int, Call] = {}
    todo = [*simulator.calls.values(), *simulator.tail.values(), *simulator.numerics.pending]
    while todo:
        call = todo.pop()
        if call.seq not in calls:
            calls[call.seq] = call
            todo += [*call.sources.values(), *call.inputs, *call.next, *([call.before] if call.before else [])]
    by_request = {c.request: c.seq for c in calls.values()}
    return {
        "now": simulator.clock.now,
        "rounds": simulator.rounds,
        "seq": simulator.seq,
        "unread": simulator.numerics.unread,
        "waves": simulator.numerics.waves,
        "away": dict(simulator.clock.away),
        "sent": dict(simulator.sent),
        "states": {to: dict(simulator.numerics.states[to]) for to in sorted(simulator.numerics.states, key=_order)},
        "ledger": simulator.ledger.snapshot(),
        "events": sorted((t, kind, seq) for t, kind, seq, call in simulator.clock.events if call.stage != "cancelled"),
        "calls": [_call(calls[seq], calls, by_request) for seq in sorted(calls)],
        "live": [call.seq for call in simulator.calls.values()],
        "tail": [(to, call.seq) for to, call in simulator.tail.items()],
        "pending": [call.seq for call in simulator.numerics.pending],
        "running": [(lane, call.seq) for lane, call in simulator.clock.running.items()],
        "queues": [(lane, [c.seq for c in queue if not c.ended]) for lane, queue in simulator.clock.queues.items()],
    }


def restore(simulator: Simulator, snap: dict[str, Any]) -> None:
    """Bring a fresh simulator of the same experiment to where a snapshot was taken.

    Args:
        simulator: as it was made.
        snap: from `snapshot`.
    """
    simulator.clock.now, simulator.rounds, simulator.seq = snap["now"], snap["rounds"], snap["seq"]
    simulator.numerics.unread, simulator.numerics.waves = snap["unread"], snap["waves"]
    simulator.clock.away, simulator.sent, simulator.numerics.states = snap["away"], snap["sent"], snap["states"]
    simulator.ledger.restore(snap["ledger"])
    calls: dict[int, Call] = {}
    for data in snap["calls"]:
        calls[data["seq"]] = _restored(simulator, data, calls)
    for data in snap["calls"]:
        call = calls[data["seq"]]
        call.inputs = tuple(calls[seq] for seq in data["inputs"])
        call.next = [calls[seq] for seq in data["next"]]
        call.before = None if data["before"] is None else calls[data["before"]]
    simulator.calls = {calls[seq].request: calls[seq] for seq in snap["live"]}
    simulator.tail = {to: calls[seq] for to, seq in snap["tail"]}
    simulator.numerics.pending = [calls[seq] for seq in snap["pending"]]
    simulator.clock.running = {lane: calls[seq] for lane, seq in snap["running"]}
    simulator.clock.queues = {lane: deque(calls[seq] for seq in seqs) for lane, seqs in snap["queues"]}
    simulator.clock.events = [(t, kind, seq, calls[seq]) for t, kind, seq in snap["events"]]
    heapq.heapify(simulator.clock.events)
    if simulator.clock.memory is not None:
        simulator.clock.memory.between_rounds(simulator.numerics.states, simulator.calls.values())


def _call(call: Call, calls: dict[int, Call], by_request: dict[Request, int]) -> dict[str, Any]:
    q = call.request
    arrays = {
        n: ("output", by_request[a.request], a.name) if isinstance(a, Output) and a.request in by_request else a
        for n, a in q.arrays.items()
    }
    shapes = None
    if call.signature is not None:
        _, _, state, inbox, _, units = call.signature
        shapes = (_plain(state), _plain(inbox), units)
    return {
        **{name: getattr(call, name) for name in _PLAIN},
        "sources": {name: source.seq for name, source in call.sources.items()},
        "before": None if call.before is None else call.before.seq,
        "inputs": [i.seq for i in call.inputs],
        "next": [after.seq for after in call.next if after.seq in calls],
        "value": None if call.value is None else dict(call.value),
        "state_before": None if call.state_before is None else dict(call.state_before),
        "spec": _plain(call.spec),
        "state_spec": _plain(call.state_spec),
        "signature": shapes,
        "request": {
            "to": q.to,
            # An output that was taken in already is known by its name alone: its value is in the past.
            "arrays": {n: ("past", "", a.name) if isinstance(a, Output) else a for n, a in arrays.items()},
            "config": dict(q.config),
            "batches": (q.batches.start, q.batches.stop),
            "passes": [tuple(p) for p in q.passes],
            "deadline": q.deadline,
            "stop": q.stop,
            "indivisible": q.indivisible,
            "silent": q.silent,
            "optimiser": q.optimiser,
            "note": q.note,
            "handler": q.handler,
        },
    }  # fmt: skip


def _restored(simulator: Simulator, data: dict[str, Any], calls: dict[int, Call]) -> Call:
    r = data["request"]
    past = Request(r["to"], r["handler"])
    arrays = {}
    for name, array in r["arrays"].items():
        if isinstance(array, tuple):
            kind, seq, output = array
            arrays[name] = Output(calls[seq].request if kind == "output" else past, output)
        else:
            arrays[name] = array
    passes = [Pass(*p) for p in r["passes"]]
    batches = range(*r["batches"])
    kept = {name: r[name] for name in _KEPT}
    q = Request(arrays=arrays, batches=batches, passes=passes, **kept)
    call = Call(data["seq"], q, simulator.pricing.work(passes), data["sent"], data["round"], data["nth"])
    for name in _PLAIN:
        setattr(call, name, data[name])
    call.sources = {name: calls[seq] for name, seq in data["sources"].items()}
    call.value, call.state_before = data["value"], data["state_before"]
    call.spec, call.state_spec = _spec(data["spec"]), _spec(data["state_spec"])
    if data["signature"] is not None:
        state, inbox, units = data["signature"]
        call.signature = signature(q, _spec(state), _spec(inbox), units)
    return call


def _order(to: Address) -> tuple[bool, Any]:
    """Clients by number, then replicas: threads must not decide what stands first."""
    return isinstance(to, tuple), to


def _plain(spec: Spec) -> list[tuple[str, tuple[int, ...], str]]:
    return [(a.name, a.shape, str(a.dtype).removeprefix("torch.")) for a in spec]


def _spec(plain: list[tuple[str, tuple[int, ...], str]]) -> Spec:
    return tuple(ArraySpec(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in plain)
