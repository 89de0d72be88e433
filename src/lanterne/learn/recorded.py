"""Gradients as recorded programs: the operators of a forward and backward pass, replayed without Python.

Between two operators of a small model Python works longer than the processor, under a lock that two threads share. A
recording is the list of operators that autograd has called for one signature: blocks, shapes, types. TorchScript's
interpreter replays it with the lock given back: the same operators on the same arguments in the same order, so the same
bits. That is checked before a recording is used, and what cannot be recorded is computed as ever; a run does not depend
on which. A pass that waits at a cut is recorded as one and replayed in two: what does not depend on the gradient that
is to come, and the rest.

What is recorded has to be a function of its tensors, as all that handlers call has to be: a module or a loss whose own
attributes change from call to call would be replayed as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

from lanterne.learn.graphs import Backward
from lanterne.learn.operators import halves, program_text
from lanterne.tree import laid_out_as

#: The gradients of some tensors, as a function of a batch, its labels and these tensors.
Gradients = Callable[[Tensor, Tensor, Sequence[Tensor]], Sequence[Tensor]]

#: The output of a forward pass, without a graph, and the way back, as a function of a batch and the pass's tensors.
Forth = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Backward]]

#: A program of the interpreter.
Interpreted = Callable[..., list[Tensor]]

#: After so many calls of one signature it is recorded: the first recording of a process costs a second, a later one as
#: much as some tens of steps.
CALLS = 300


#: The most signatures that are kept track of; the oldest that were never recorded make room.
SIGNATURES = 256


@dataclass
class _Program:
    """What is known of a signature: how often it was called; how to record it by an example; at last the recording."""

    calls: int = 0
    record: Callable[[], Callable[..., Any] | None] | None = None
    replay: Callable[..., Any] | None = None


class Recordings:
    """The recordings of one executor. Several threads may ask; one records, while the others rest.

    Args:
        calls: after how many calls of a signature it is recorded.

    Examples:
        >>> def gradients(x, y, tensors):
        ...     return [2 * x * tensors[0]]
        >>> recordings, x = Recordings(calls=1), torch.arange(3.0)
        >>> recordings.replay("twice", gradients, x, x, [x]) is None
        True
        >>> recordings.record()
        >>> recordings.replay("twice", gradients, x, x, [x])
        [tensor([0., 2., 8.])]
    """

    def __init__(self, calls: int = CALLS) -> None:
        self.calls = calls
        self._programs: dict[Hashable, _Program] = {}
        self._waiting: list[_Program] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recordings], tuple[int]]:
        """A copy begins anew: the interpreter's programs can be neither copied nor sent."""
        return type(self), (self.calls,)

    def replay(
        self, what: Hashable, gradients: Gradients, x: Tensor, y: Tensor, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor] | None:
        """The gradients by a recording; None where there is none, and the caller computes them: always but on a CPU.

        Args:
            what: all that the operators depend on besides shapes and types; nothing is recorded for what has no hash.
            gradients: what to record; it must not depend on numbers, nor draw any.
            x: `[batch, ...]`.
            y: `[batch]`.
            tensors: on which the gradients are taken.
        """
        key = (what, x.shape, x.stride(), x.dtype, y.shape, y.dtype, tensors[0].dtype)
        return self._replay(key, lambda *example: _recorded(gradients, *example), x, y, tensors)  # type: ignore[no-any-return]

    def replay_forth(
        self, what: Hashable, forth: Forth, x: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Backward] | None:
        """The output of a forward pass and the way back from it, in the same manner.

        Args:
            what: all that the operators depend on besides shapes and types.
            forth: what to record; the way back takes a gradient of any layout, and makes it its output's.
            x: `[batch, ...]`.
            tensors: of the pass.
        """
        key = (what, x.shape, x.stride(), x.dtype, tensors[0].dtype)
        return self._replay(key, lambda *example: _recorded_forth(forth, *example), x, tensors)  # type: ignore[no-any-return]

    def _replay(
        self, key: Hashable, record: Callable[..., Callable[..., Any] | None], *inputs: Tensor | Sequence[Tensor]
    ) -> Any:  # noqa: ANN401
        """What a recording gives for these inputs; else they are counted, and perhaps kept as its example."""
        [x, *_] = inputs
        if not isinstance(x, Tensor) or x.device.type != "cpu":
            return None
        try:
            program = self._programs.get(key)
        except TypeError:
            return None
        if program is not None and program.replay is not None:
            try:
                return program.replay(*inputs)
            except RuntimeError:
                program.replay = None  # the caller's own way has the better message
                return None
        with self._lock:
            program = self._programs.get(key) or self._new(key)
            program.calls += 1
            if program.calls == self.calls:
                copies = [
                    t.detach().clone() if isinstance(t, Tensor) else [o.detach().clone() for o in t] for t in inputs
                ]
                program.record = partial(record, *copies)
                self._waiting.append(program)
        return None

    def _new(self, key: Hashable) -> _Program:
        if len(self._programs) >= SIGNATURES:
            oldest = next((k for k, p in self._programs.items() if p.replay is None and p.record is None), None)
            self._programs.pop(oldest, None)
        program = self._programs[key] = _Program()
        return program

    @property
    def pending(self) -> bool:
        """Whether there is something to record."""
        return bool(self._waiting)

    def record(self) -> None:
        """Record what has been called often enough; nobody may be asking meanwhile, for the modules are changed."""
        while self._waiting:
            program = self._waiting.pop()
            if program.record is not None:
                program.replay, program.record = program.record(), None


def _recorded(
    gradients: Gradients, x: Tensor, y: Tensor, tensors: Sequence[Tensor]
) -> Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]] | None:
    """What does as `gradients` does to the bit, or None where that cannot be had."""

    def step(x: Tensor, y: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        return gradients(x, y, tensors)

    def replay(x: Tensor, y: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        return _interpreted(program, x, y, *tensors)

    try:
        program = _program(_traced(step, x, y, *tensors))
        # Other numbers must not lead elsewhere: a program has no branches.
        trials = [(x, y, tensors), (x.flip(0), y[:1].expand_as(y).contiguous(), _moved(tensors))]
        found = [replay(*trial) for trial in trials]
    except Exception:
        # Whatever PyTorch's internals raise: what cannot be recorded is computed as ever.
        return None
    wanted = [gradients(*trial) for trial in trials]
    return replay if all(map(_same, found, wanted)) else None


def _recorded_forth(forth: Forth, x: Tensor, tensors: Sequence[Tensor]) -> Forth | None:
    """What does as `forth` does to the bit, or None where that cannot be had."""
    up, _ = forth(x, tensors)

    def step(x: Tensor, up: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        output, backward = forth(x, tensors)
        return [output, *backward(up)]

    def replay(x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Backward]:
        output, *kept = _interpreted(there, x, *tensors)
        return output.detach(), lambda up: _interpreted(back, *kept, laid_out_as(up, output))

    def replayed(x: Tensor, up: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        output, backward = replay(x, tensors)
        return [output, *backward(up)]

    try:
        there, back = map(_program, halves(_traced(step, x, up, *tensors), 1))
        trials = [(x, up, *tensors), (x.flip(0), up.flip(0) * 0.5, *_moved(tensors))]
        found = [replayed(*trial) for trial in trials]
    except Exception:
        # As above.
        return None
    wanted = [step(*trial) for trial in trials]
    return replay if all(map(_same, found, wanted)) else None


def _traced(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Graph:
    """The operators that a function calls."""
    # This import alone takes a second.
    from torch.fx.experimental.proxy_tensor import make_fx

    # Fake tensors have no numbers: whoever reads some is refused, and does not become a constant.
    return make_fx(function, tracing_mode="fake")(*inputs).graph


def _program(graph: Graph) -> Interpreted:
    program: Interpreted = torch._C._create_function_from_graph("step", torch._C.parse_ir(program_text(graph)))
    return program


def _interpreted(program: Interpreted, *inputs: Tensor) -> list[Tensor]:
    """Call a program as it stands: optimised, it would add a bias after a product, and round twice."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)  # of this thread alone
    try:
        with torch.no_grad():
            return program(*inputs)
    finally:
        torch._C._set_graph_executor_optimize(before)


def _moved(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t * 0.5 + 0.01 for t in tensors]


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether these are the same tensors, to the bit and to their order in memory."""

    def same(one: Tensor, other: Tensor) -> bool:
        alike = one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
        return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)

    return all(map(same, found, wanted))
