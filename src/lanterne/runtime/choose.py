"""Which executor: a fixed rule of shapes, parameter count and device kind, so that the same config gives the same bits.

The thresholds were calibrated by `python benchmarks/executors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lanterne.models import BlockCost
from lanterne.runtime.batched import Batched
from lanterne.runtime.loop import Loop

EXECUTORS: dict[str, type[Loop]] = {"loop": Loop, "batched": Batched}

#: Above these the stacked form loses on a CPU: parameters of the model, and FLOPs of one client's forward pass of a
#: batch.
CPU_PARAMETERS = 60_000
CPU_FORWARD_FLOPS = 4_000_000
#: Below this many clients a round stacking does not earn back what it costs.
CPU_CLIENTS = 8


def choose_executor(costs: Sequence[BlockCost], batch: int, clients: int, device: str) -> Literal["loop", "batched"]:
    """The executor for a model on a kind of device.

    Args:
        costs: of the model's blocks.
        batch: samples in a batch.
        clients: invited per round.
        device: `cpu` or `cuda`.

    Returns:
        `loop` or `batched`.
    """
    if not device.startswith("cpu"):
        return "batched"
    parameters, flops = sum(c.parameters for c in costs), sum(c.forward for c in costs) * batch
    small = parameters <= CPU_PARAMETERS and flops <= CPU_FORWARD_FLOPS
    return "batched" if small and clients >= CPU_CLIENTS else "loop"
