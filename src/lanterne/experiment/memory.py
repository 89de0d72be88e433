"""Whether a model has room: on devices that train it, on the server, on the machine that draws its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lanterne.data import Streams
from lanterne.errors import FleetError, ModelError
from lanterne.fleet import Classes, Fleet
from lanterne.fleet.population import told_apart
from lanterne.learn import Task
from lanterne.models import LayerStack
from lanterne.protocol import Algorithm
from lanterne.runtime import Simulator
from lanterne.runtime.job import Job, Result
from lanterne.tree import Spec

#: Weights are drawn in float64, and joined before they are rounded.
_DRAWN = 2 * torch.float64.itemsize


def most_memory(devices: Classes) -> float:
    """The bytes of the device that has the most.

    Args:
        devices: of a fleet.
    """
    column = devices.columns.get("memory")
    return max(device.memory for device in devices.table) if column is None else float(column.max())


def check_size(stack: LayerStack, fleet: Fleet, dtype: torch.dtype, algorithms: Iterable[Algorithm[Any]] = ()) -> None:
    """Refuse a model of which no device, or not this machine, could hold as much as the parameters.

    A client of a split method holds its half alone.

    Args:
        stack: the model; what its weights are is not looked at.
        fleet: the devices.
        dtype: of parameters.
        algorithms: the competitors.

    Raises:
        FleetError: where no device could.
        ModelError: where this machine could not.
    """
    size = stack.size * dtype.itemsize
    most = most_memory(told_apart(fleet.devices))
    if size > most and not any(hasattr(a, "cut") for a in algorithms):
        raise FleetError(
            f"No device has the memory for this model: its {stack.size} parameters alone are {size} bytes, and the "
            f"largest has {most:g}. Give the devices more, or take a smaller model."
        )
    need, there = stack.size * (_DRAWN + dtype.itemsize), _machine_memory()
    if need > there and any(p.is_meta for p in stack.net.parameters()):
        raise ModelError(
            f"This machine has {there:g} bytes of memory, and to draw the model's {stack.size} starting weights takes "
            f"{need}. Take a smaller model."
        )


def check_server(
    algorithms: Mapping[str, Algorithm[Any]], stack: LayerStack, fleet: Fleet, streams: Streams, w: Tensor, seed: int
) -> None:
    """Refuse a method whose first round the server does not have the memory for.

    The round is played through in time, with zeros for numbers: what the server holds follows from shapes and times.

    Args:
        algorithms: the competitors.
        stack: the model.
        fleet: of the first seed.
        streams: of the first seed.
        w: starting weights.
        seed: of the simulator.

    Raises:
        FleetError: for the first one for which it does not.
    """
    if math.isinf(fleet.server.memory):
        return
    for label, algorithm in algorithms.items():
        rehearsal = _Rehearsal(stack, w)
        simulator = Simulator(algorithm, fleet, rehearsal, streams, seed=seed, dtype=w.dtype)
        rehearsal.simulator = simulator
        try:
            simulator.round(algorithm, algorithm.init(w))
        except FleetError as error:
            raise FleetError(f"{label}: {error}") from None


class _Rehearsal:
    """An executor that computes nothing: every reply and state has its shape and takes no memory."""

    def __init__(self, stack: LayerStack, w: Tensor) -> None:
        self.task = Task(stack)
        self.x, self.y = w.new_empty(0, *stack.sample_shape), torch.empty(0, dtype=torch.int64)
        self.simulator: Simulator

    def run(self, nodes: Sequence[Any], job: Callable[[Any], Job], done: Callable[[Any, Result], None]) -> None:
        """Zeros for everything, in order."""
        for node in nodes:
            _ = job(node)
            found = self.simulator.pricing.reply(node.signature)
            done(node, (_zeros(found.state), _zeros(found.arrays)))

    def close(self) -> None:
        """Nothing."""


def _zeros(spec: Spec) -> dict[str, Tensor]:
    return {a.name: torch.zeros((), dtype=a.dtype).expand(a.shape) for a in spec}


def _machine_memory() -> float:
    """Bytes; inf where the operating system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
