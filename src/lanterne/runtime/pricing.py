"""What a request costs, before any number is known: its work in FLOPs, its memory, and the shapes of its reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lanterne.budget import Units
from lanterne.errors import LanterneError, ProtocolError
from lanterne.fleet import Work
from lanterne.learn import Task
from lanterne.models import block_costs
from lanterne.protocol import Handler, Inbox, Local, Pass
from lanterne.runtime.call import Signature
from lanterne.tree import Shape, Spec, empty, nbytes, spec_of


class Memory(NamedTuple):
    """Peak bytes of a request on its device: what stays throughout, and what is held in between."""

    static: int
    working: int


class Reply(NamedTuple):
    """The specs of the state after a call and of its reply, and the bytes of the reply."""

    state: Spec
    arrays: Spec
    nbytes: int


class Pricing:
    """Costs of requests, each derived once per signature.

    Args:
        handlers: the algorithm's table.
        task: the model and the loss.
        batch: samples in a batch.
        dtype: of the parameters.
        sample: shape and dtype of one sample.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        task: Task,
        batch: int,
        dtype: torch.dtype,
        sample: tuple[Shape, torch.dtype],
    ) -> None:
        self.handlers, self.task, self.batch, self.dtype, self.sample = handlers, task, batch, dtype, sample
        self.costs = block_costs(task.stack, dtype)
        self._work: dict[tuple[Pass, ...], Work] = {}
        self._memory: dict[tuple[Pass, ...], Memory] = {}
        self._replies: dict[Signature, Reply] = {}

    def work(self, passes: Sequence[Pass]) -> Work:
        """The units of some passes, priced for a whole batch.

        The backward unit of block `b` is its parameters' gradient and the input gradient of block `b + 1`, through
        which it is reached: a pass that stops after any unit has cost exactly the units before it.
        """
        key = tuple(passes)
        if key not in self._work:
            flops: list[float] = []
            backward: list[bool] = []
            starts: list[bool] = []
            for i, p in enumerate(key):
                if not 0 <= p.first <= p.last <= len(self.costs):
                    raise ProtocolError(f"{p} is not a pass over a model of {len(self.costs)} blocks.")
                follows = i > 0 and key[i - 1].kind == "forward" and p.kind == "backward"
                starts += [b == 0 and not follows for b in range(p.last - p.first)]
                backward += [p.kind == "backward"] * (p.last - p.first)
                if p.kind == "forward":
                    flops += [c.forward * self.batch for c in self.costs[p.first : p.last]]
                    continue
                for b in reversed(range(p.first, p.last)):
                    through = self.costs[b + 1].input_gradient if b + 1 < p.last else 0.0
                    onward = self.costs[b].input_gradient if b == p.first and p.to_input else 0.0
                    flops.append((self.costs[b].weight_gradient + through + onward) * self.batch)
            self._work[key] = Work(tuple(flops), tuple(backward), tuple(starts))
        return self._work[key]

    def memory(self, passes: Sequence[Pass], state: int) -> Memory:
        """Peak bytes of some passes on a device that keeps `state` bytes between requests.

        Static are the parameters of the blocks touched, their gradients where there is a backward pass, and the state;
        working is what a forward pass saves for its backward pass, or two neighbouring outputs where there is none.
        """
        key = tuple(passes)
        if key not in self._memory:
            touched = {b for p in key for b in range(p.first, p.last)}
            trained = {b for p in key if p.kind == "backward" for b in range(p.first, p.last)}
            size = self.dtype.itemsize
            static = sum(self.costs[b].parameters for b in touched) + sum(self.costs[b].parameters for b in trained)
            working = 0
            for p in key:
                blocks = self.costs[p.first : p.last]
                if p.kind == "backward":
                    held = sum(c.saved for c in blocks)
                else:
                    held = max(
                        (a + b.output for a, b in zip([0, *(c.output for c in blocks)], blocks, strict=False)),
                        default=0,
                    )
                working = max(working, held * self.batch)
            self._memory[key] = Memory(static * size, working)
        known = self._memory[key]
        return Memory(known.static + state, known.working)

    def reply(self, signature: Signature) -> Reply:
        """The specs of the next state and of the reply, by running the handler on the `meta` device once.

        Raises:
            ProtocolError: if the handler looks at numbers, which do not exist yet when time is decided.
        """
        if signature not in self._replies:
            handler, config, state, arrays, steps, units = signature
            shape, dtype = self.sample
            x = torch.empty(steps, self.batch, *shape, dtype=dtype, device="meta")
            y = torch.empty(steps, self.batch, dtype=torch.int64, device="meta")
            local = Local(x, y, torch.empty((), dtype=torch.int64, device="meta"), Units(units))
            try:
                after, out = self.handlers[handler](self.task, empty(state), Inbox(empty(arrays), dict(config)), local)
            except LanterneError:
                raise
            except Exception as error:
                raise ProtocolError(
                    f"The handler {handler!r} cannot run on shapes alone ({type(error).__name__}: {error}). "
                    "Time is decided before numbers are computed, so a handler must not read values "
                    "(no .item(), no branch on a tensor)."
                ) from error
            spec = spec_of(out)
            self._replies[signature] = Reply(spec_of(after), spec, nbytes(spec))
        return self._replies[signature]
