"""What a request costs, before any number is known: its work in FLOPs, its memory, and the shapes of its reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lanterne.budget import Units
from lanterne.errors import LanterneError, ProtocolError
from lanterne.fleet import Job, Work
from lanterne.learn import Task
from lanterne.models import BlockCost, InputCost, LayerStack, block_costs, input_costs
from lanterne.protocol import Handler, Inbox, Local, Pass, Request
from lanterne.runtime.call import Signature, signature
from lanterne.tree import Spec, empty, nbytes, spec_of


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
        x: `[n, ...]`, the resident samples, for their shape and dtype.
        y: `[n, ...]`, their labels, likewise.
        networks: the stacks that the algorithm has besides the model, by name.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        task: Task,
        batch: int,
        dtype: torch.dtype,
        x: Tensor,
        y: Tensor,
        networks: Mapping[str, LayerStack] | None = None,
    ) -> None:
        self.handlers, self.task, self.batch, self.dtype = handlers, task, batch, dtype
        self.sample, self.label = (tuple(x.shape[1:]), x.dtype), (tuple(y.shape[1:]), y.dtype)
        self.networks = {"": task.stack, **(networks or {})}
        self._costs: dict[str, tuple[BlockCost, ...]] = {}
        self._input_costs: dict[str, tuple[InputCost, ...]] = {}
        self._work: dict[tuple[Pass, ...], Work] = {}
        self._memory: dict[tuple[Pass, ...], Memory] = {}
        self._kept: dict[tuple[Pass, ...], int] = {}
        self._forwards: dict[tuple[Pass, ...], tuple[int, ...]] = {}
        self._replies: dict[Signature, Reply] = {}

    def costs(self, network: str = "") -> tuple[BlockCost, ...]:
        """The costs of a network's blocks, per sample; of the model by default."""
        if network not in self._costs:
            self._costs[network] = block_costs(self.networks[network], self.dtype)
        return self._costs[network]

    def work(self, passes: Sequence[Pass]) -> Work:
        """The units of some passes, each priced for all of its samples.

        The backward unit of block `b` is its parameters' gradient and the input gradient of block `b + 1`, through
        which it is reached: a pass that stops after any unit has cost exactly the units before it. Where the parameters
        are frozen it is the gradient of the block's input alone.

        Raises:
            ProtocolError: for a pass over a network or blocks that are not there.
        """
        key = tuple(passes)
        if key not in self._work:
            flops: list[float] = []
            backward: list[bool] = []
            starts: list[bool] = []
            for p in key:
                costs, samples = self._blocks(p), p.batches * (p.samples or self.batch)
                starts += [b == 0 and p.kind == "forward" for b in range(len(costs))]
                backward += [p.kind != "forward"] * len(costs)
                if p.kind == "forward":
                    flops += [c.forward * samples for c in costs]
                    continue
                if p.frozen or p.kind == "double_backward":
                    flops += [spent * samples for spent in self._input_work(p)]
                    continue
                for b in reversed(range(len(costs))):
                    through = costs[b + 1].input_gradient if b + 1 < len(costs) else 0.0
                    onward = costs[b].input_gradient if b == 0 and p.to_input else 0.0
                    flops.append((costs[b].weight_gradient + through + onward) * samples)
            self._work[key] = Work(tuple(flops), tuple(backward), tuple(starts))
        return self._work[key]

    def _input_work(self, p: Pass) -> list[float]:
        """FLOPs per sample of a frozen or a double backward pass, from the last block to the first."""
        if p.network not in self._input_costs:
            self._input_costs[p.network] = input_costs(self.networks[p.network], self.dtype)
        costs = self._input_costs[p.network][p.first : p.last]
        if p.kind == "backward":
            return [c.backward for c in reversed(costs)]
        return [c.double + (c.onward if b else 0.0) for b, c in reversed(list(enumerate(costs)))]

    def _blocks(self, p: Pass) -> tuple[BlockCost, ...]:
        if p.network not in self.networks:
            known = ", ".join(map(repr, self.networks))
            raise ProtocolError(f"{p} names a network that the algorithm does not have; its 'networks' are {known}.")
        costs = self.costs(p.network)
        if not 0 <= p.first <= p.last <= len(costs):
            raise ProtocolError(f"{p} is not a pass over a model of {len(costs)} blocks.")
        return costs[p.first : p.last]

    def memory(self, passes: Sequence[Pass], kept: int) -> Memory:
        """Peak bytes of some passes on a device that keeps `kept` bytes besides: its state and its optimiser's.

        Static are the parameters of the blocks touched, their gradients where there is a backward pass or one will
        come, and what is kept; working is what a forward pass saves for its backward pass, or two neighbouring outputs
        where there is none.
        """
        key = tuple(passes)
        if key not in self._memory:
            touched = {(p.network, b) for p in key for b in range(p.first, p.last)}
            training = [p for p in key if not p.frozen and (p.kind != "forward" or p.kept)]
            trained = {(p.network, b) for p in training for b in range(p.first, p.last)}
            static = sum(self.costs(network)[b].parameters for blocks in (touched, trained) for network, b in blocks)
            working = 0
            for p in key:
                costs = self._blocks(p)
                if p.kind != "forward" or p.kept:
                    held = sum(c.saved for c in costs)
                else:
                    outputs = [0, *(c.output for c in costs)]
                    held = max((a + b for a, b in pairwise(outputs)), default=0)
                working = max(working, held * p.batches * (p.samples or self.batch))
            self._memory[key] = Memory(static * self.dtype.itemsize, working)
        known = self._memory[key]
        return Memory(known.static + kept, known.working)

    def kept(self, passes: Sequence[Pass]) -> int:
        """Bytes that the forward passes of a request leave for backward passes that come with a later one."""
        key = tuple(passes)
        if key not in self._kept:
            saved = (
                sum(c.saved for c in self._blocks(p)) * p.batches * (p.samples or self.batch) for p in key if p.kept
            )
            self._kept[key] = sum(saved)
        return self._kept[key]

    def forwards(self, passes: Sequence[Pass]) -> Sequence[int]:
        """After how many units each forward pass has gone through what a client begins with: samples enter there.

        A pass over an auxiliary head, or from a cut on, takes in what an earlier pass gave and is none of them.
        """
        key = tuple(passes)
        if key not in self._forwards:
            units, ends, network = 0, [], None
            for p in key:
                units += p.last - p.first
                if p.kind == "forward" and p.first == 0 and network in (None, p.network):
                    network = p.network
                    ends.append(units)
                elif p.kind == "forward" and network is None:
                    break
            self._forwards[key] = tuple(ends)
        return self._forwards[key]

    def footprint(self, request: Request, state: Spec, arrays: Spec) -> Memory:
        """Peak bytes of a request on its device, which keeps the larger of the states before and after.

        Args:
            request: to a client.
            state: what the client will find at its address.
            arrays: what the request brings.
        """
        after = self.reply(signature(request, state, arrays, None)).state
        return self.memory(request.passes, max(nbytes(state), nbytes(after)) + request.optimiser)

    def job(self, request: Request, state: Spec, arrays: Spec) -> Job:
        """A request as a device sees it.

        Args:
            request: to a client.
            state: what the client will find at its address.
            arrays: what the request brings.
        """

        def up(units: int | None) -> int:
            return self.reply(signature(request, state, arrays, units)).nbytes

        work, answers = self.work(request.passes), not request.silent
        return Job(nbytes(arrays), work, up, request.deadline, request.stop, request.indivisible, answers)

    def reply(self, key: Signature) -> Reply:
        """The specs of the next state and of the reply, by running the handler on the `meta` device once.

        Raises:
            ProtocolError: if the handler looks at numbers, which do not exist yet when time is decided.
        """
        if key not in self._replies:
            handler, config, state, arrays, steps, units = key
            x, y = (
                torch.empty(steps, self.batch, *shape, dtype=dtype, device="meta")
                for shape, dtype in (self.sample, self.label)
            )
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
            self._replies[key] = Reply(spec_of(after), spec, nbytes(spec))
        return self._replies[key]
