"""Gradients as recorded programs: the operators of a forward and backward pass, replayed without Python.

Between two operators of a small model Python works longer than the processor, under a lock that two threads share. A
recording is the list of operators that autograd has called for one signature: blocks, shapes, types. TorchScript's
interpreter replays it with the lock given back: the same operators on the same arguments in the same order, so the same
bits. That is checked before a recording is used, and what cannot be recorded is computed as ever; a run does not depend
on which.

What is recorded has to be a function of its tensors, as all that handlers call has to be: a module or a loss whose own
attributes change from call to call would be replayed as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lanterne.learn.operators import program_text

#: The gradients of some tensors, as a function of a batch, its labels and these tensors.
Gradients = Callable[[Tensor, Tensor, Sequence[Tensor]], Sequence[Tensor]]

#: After so many calls of one signature it is recorded: the first recording of a process costs a second, a later one as
#: much as some tens of steps.
CALLS = 300


#: The most signatures that are kept track of; the oldest that were never recorded make room.
SIGNATURES = 256


@dataclass
class _Program:
    """What is known of a signature: how often it was called; an example to record it by; at last the recording."""

    calls: int = 0
    example: tuple[Gradients, Tensor, Tensor, list[Tensor]] | None = None
    replay: Callable[..., list[Tensor]] | None = None


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
        if x.device.type != "cpu":
            return None
        key = (what, x.shape, x.stride(), x.dtype, y.shape, y.dtype, tensors[0].dtype)
        try:
            program = self._programs.get(key)
        except TypeError:
            return None
        if program is not None and program.replay is not None:
            try:
                return _interpreted(program.replay, x, y, tensors)
            except RuntimeError:
                program.replay = None  # the caller's own way has the better message
                return None
        with self._lock:
            program = self._programs.get(key) or self._new(key)
            program.calls += 1
            if program.calls == self.calls:
                program.example = (gradients, x.clone(), y.clone(), [t.detach().clone() for t in tensors])
                self._waiting.append(program)
        return None

    def _new(self, key: Hashable) -> _Program:
        if len(self._programs) >= SIGNATURES:
            oldest = next((k for k, p in self._programs.items() if p.replay is None and p.example is None), None)
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
            if program.example is not None:
                program.replay, program.example = _recorded(*program.example), None


def _recorded(
    gradients: Gradients, x: Tensor, y: Tensor, tensors: Sequence[Tensor]
) -> Callable[..., list[Tensor]] | None:
    """A program that does what `gradients` does to the bit, or None where that cannot be had."""
    # This import alone takes a second.
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(x: Tensor, y: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        return gradients(x, y, tensors)

    try:
        # Fake tensors have no numbers: whoever reads some is refused, and does not become a constant.
        text = program_text(make_fx(step, tracing_mode="fake")(x, y, *tensors).graph)
        program: Callable[..., list[Tensor]] = torch._C._create_function_from_graph("step", torch._C.parse_ir(text))
        # Other numbers must not lead elsewhere: a program has no branches.
        trials = [(x, y, tensors), (x.flip(0), y[:1].expand_as(y).contiguous(), [t * 0.5 + 0.01 for t in tensors])]
        found = [_interpreted(program, x, y, tensors) for x, y, tensors in trials]
    except Exception:
        # Whatever PyTorch's internals raise: what cannot be recorded is computed as ever.
        return None
    wanted = [gradients(x, y, tensors) for x, y, tensors in trials]
    same = all(_same(a, b) for have, want in zip(found, wanted, strict=True) for a, b in zip(have, want, strict=True))
    return program if same else None


def _interpreted(program: Callable[..., list[Tensor]], x: Tensor, y: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Call a program as it stands: optimised, it would add a bias after a product, and round twice."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)  # of this thread alone
    try:
        with torch.no_grad():
            return program(x, y, *tensors)
    finally:
        torch._C._set_graph_executor_optimize(before)


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
