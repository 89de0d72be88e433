"""What presets share: a frozen set of parameters that is built for a number of clients and a seed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import FleetError
from lanterne.fleet.classes import Classes, Windows
from lanterne.fleet.device import NUMBERS, Device, Floats, Pace
from lanterne.fleet.fleet import Fleet, Server
from lanterne.rng import fold


@dataclass(frozen=True, kw_only=True)
class Preset(ABC):
    """What all presets share: the numbers that are the same for all devices, those of the server, and of losses.

    Args:
        memory: bytes.
        latency: seconds, each way.
        overhead: fixed seconds per batch.
        dropout: probability that a request is lost in the middle of the work.
        failure: probability that a request ends in an error.
        server_flops: FLOP/s of a server machine.
        machines: server machines that the replicas share; None is one per replica.
        server_memory: bytes of the server, all machines together.
        detection: seconds until a lost device is noticed.
        rejoin: seconds after which a lost device is back.
    """

    name: ClassVar[str]
    #: Which parameters are paths of files.
    files: ClassVar[tuple[str, ...]] = ()
    memory: float = 2e9
    latency: float = 0.02
    overhead: float = 0.0
    dropout: float = 0.0
    failure: float = 0.0
    server_flops: float = math.inf
    machines: int | None = None
    server_memory: float = math.inf
    detection: float = 0.0
    rejoin: float = 0.0

    @abstractmethod
    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients.

        Args:
            clients: how many.
            seed: of the run.
            layers: of the model.
        """

    def device(self, tier: str = "device", pace: Pace | None = None, **numbers: float) -> Device:
        """A device of this fleet.

        Args:
            tier: the name of its class.
            pace: how its speed varies.
            numbers: in place of the preset's own.
        """
        own: dict[str, Any] = {n: getattr(self, n) for n in NUMBERS if hasattr(self, n)}
        return Device(**(own | numbers), tier=tier, pace=pace)

    def fleet(
        self,
        kinds: NDArray[np.integer[Any]],
        table: Sequence[Device],
        seed: int,
        columns: Mapping[str, Floats] | None = None,
        windows: Windows | None = None,
    ) -> Fleet:
        """A fleet of such devices.

        Args:
            kinds: the row of `table` of each client.
            table: a device of each kind.
            seed: of the run.
            columns: numbers in which all devices differ, by name.
            windows: when they can be reached.
        """
        devices = Classes(kinds.astype(np.uint8), table, columns, windows)
        server = Server(self.server_flops, self.machines, self.server_memory)
        return Fleet(devices, fold(seed, "fleet"), server, self.detection, self.rejoin)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """The numbers of a device at full speed.

    Args:
        flops: sustained FLOP/s of a device.
        down: bytes/s towards a device.
        up: bytes/s from it.
    """

    flops: float = 1e9
    down: float = 1e7
    up: float = 5e6


def check_share(share: float) -> None:
    """Refuse a share of stragglers that is none.

    Raises:
        FleetError: outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise FleetError(f"The share of stragglers is {share}. Give a number from 0 to 1 (0.9 is 90 %).")
