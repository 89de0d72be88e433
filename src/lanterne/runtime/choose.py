"""Which executor: a fixed rule of shapes, parameter count and device kind, so that the same config gives the same bits.

The thresholds were calibrated by `python benchmarks/executors.py`, for one local step and for five.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lanterne.models import BlockCost
from lanterne.runtime.batched import Batched
from lanterne.runtime.loop import Loop

EXECUTORS: dict[str, type[Loop]] = {"loop": Loop, "batched": Batched}


class Limits(NamedTuple):
    """Within these the stacked form wins on a CPU.

    Attributes:
        parameters: of the model, at most.
        forward: FLOPs of one client's forward pass of a batch, at most.
        clients: a round, at least: fewer do not earn back what stacking costs.
    """

    parameters: int
    forward: float
    clients: int


ONE_STEP = Limits(60_000, 4_000_000, 8)
#: A loop that takes several steps in one call works in place, and replays what it has recorded.
SEVERAL_STEPS = Limits(30_000, 1_000_000, 20)


def choose_executor(
    costs: Sequence[BlockCost], batch: int, clients: int, device: str, steps: int = 1
) -> Literal["loop", "batched"]:
    """The executor for a model on a kind of device.

    Args:
        costs: of the model's blocks.
        batch: samples in a batch.
        clients: invited per round.
        device: `cpu` or `cuda`.
        steps: local steps per round.

    Returns:
        `loop` or `batched`.
    """
    if not device.startswith("cpu"):
        return "batched"
    parameters, flops = sum(c.parameters for c in costs), sum(c.forward for c in costs) * batch
    limits = ONE_STEP if steps == 1 else SEVERAL_STEPS
    small = parameters <= limits.parameters and flops <= limits.forward
    return "batched" if small and clients >= limits.clients else "loop"
