"""Whether a model has room: on the devices that are to train it, and on the machine that draws its weights."""

from __future__ import annotations

import os

import torch

from lanterne.errors import FleetError, ModelError
from lanterne.fleet import Classes, Fleet
from lanterne.fleet.population import told_apart
from lanterne.models import LayerStack

#: Weights are drawn in float64, and joined before they are rounded.
_DRAWN = 2 * torch.float64.itemsize


def most_memory(devices: Classes) -> float:
    """The bytes of the device that has the most.

    Args:
        devices: of a fleet.
    """
    column = devices.columns.get("memory")
    return max(device.memory for device in devices.table) if column is None else float(column.max())


def check_size(stack: LayerStack, fleet: Fleet, dtype: torch.dtype) -> None:
    """Refuse a model of which no device, or not this machine, could hold as much as the parameters.

    Args:
        stack: the model; what its weights are is not looked at.
        fleet: the devices.
        dtype: of parameters.

    Raises:
        FleetError: where no device could.
        ModelError: where this machine could not.
    """
    size = stack.size * dtype.itemsize
    most = most_memory(told_apart(fleet.devices))
    if size > most:
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


def _machine_memory() -> float:
    """Bytes; inf where the operating system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
