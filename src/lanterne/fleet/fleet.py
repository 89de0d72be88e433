"""A fleet: its devices, its server, and how soon a lost device is noticed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import FleetError
from lanterne.fleet.classes import Classes, Mask
from lanterne.fleet.device import LONGEST, SLOWEST, Device, too_slow, uncounted


@dataclass(frozen=True)
class Server:
    """What runs the server's half.

    Args:
        flops: FLOP/s of one machine; inf takes no time.
        machines: how many machines the replicas share, one request at a time each; None gives each replica its own.
        memory: bytes, of all machines together: they share it.
    """

    flops: float = math.inf
    machines: int | None = None
    memory: float = math.inf

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not self.flops > 0:
            raise FleetError(
                f"The server's flops are {self.flops!r}. Give a number above 0, or inf for a server that takes no time."
            )
        if self.flops < SLOWEST:
            raise too_slow("The server's flops are", self.flops, "FLOP")
        if self.machines is not None and self.machines < 1:
            raise FleetError(
                f"The server has {self.machines} machines. Give 1 or more, or leave it out for one per replica."
            )
        if not self.memory > 0:
            raise FleetError(
                f"The server's memory is {self.memory!r} bytes. Give a number above 0, or leave it out for a server "
                "that holds everything."
            )


@dataclass(frozen=True)
class Fleet:
    """All devices, by client number.

    Args:
        devices: the device of each client.
        seed: of every random duration and loss.
        server: what runs the server's half.
        detection: seconds until a lost device is noticed.
        rejoin: seconds after which a device that was lost in the middle of its work is back.
        straggler: the name of the class whose devices are the stragglers, for the default deadline; None if unknown.
    """

    devices: Sequence[Device]
    seed: int = 0
    server: Server = Server()
    detection: float = 0.0
    rejoin: float = 0.0
    straggler: str | None = "straggler"

    def __post_init__(self) -> None:
        """Refuse an empty fleet and impossible numbers."""
        if not len(self.devices):
            raise FleetError("The fleet has no devices. Give it at least one.")
        for name in ("detection", "rejoin"):
            if not 0 <= getattr(self, name) <= LONGEST:
                raise uncounted(f"{name} of the fleet is", getattr(self, name))

    def __len__(self) -> int:
        """How many clients there are."""
        return len(self.devices)

    def lane(self, to: int | tuple[str, int]) -> Hashable:
        """Where a request's time passes: a client is its own lane, and replicas share the machines."""
        if isinstance(to, tuple) and self.server.machines is not None:
            return ("machine", to[1] % self.server.machines)
        return to

    @cached_property
    def always_available(self) -> bool:
        """Whether no device ever goes away."""
        if not isinstance(self.devices, Classes):
            return all(d.available is None for d in self.devices)
        return self.devices.windows is None and all(d.available is None for d in self.devices.table)

    def online(self, t: float) -> Mask:
        """Whether each device can be reached at `t` seconds, `[clients]`.

        Args:
            t: seconds.
        """
        if self.always_available:
            return np.ones(len(self), dtype=np.bool_)
        if isinstance(self.devices, Classes):
            return self.devices.online(t)
        return np.fromiter((device.online(t) for device in self.devices), np.bool_, len(self))

    def returns(self, t: float) -> float:
        """When the next of those comes who cannot be reached at `t` seconds; inf if none ever does.

        Args:
            t: seconds.
        """
        if self.always_available:
            return math.inf
        if isinstance(self.devices, Classes):
            return self.devices.returns(t)
        return min((device.returns(t) for device in self.devices if not device.online(t)), default=math.inf)

    @property
    def members(self) -> dict[str, NDArray[np.int64]]:
        """The clients of each class of devices, ascending, by the name of the class."""
        kinds = self.devices.kinds if isinstance(self.devices, Classes) else slice(None)
        tiers = self._tiers
        names = sorted(set(tiers))
        number = {name: i for i, name in enumerate(names)}
        code = np.array([number[tier] for tier in tiers], dtype=np.int32)[kinds]
        found = {name: np.flatnonzero(code == i) for i, name in enumerate(names)}
        return {name: clients for name, clients in found.items() if len(clients)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of devices, ascending, whether a device of each is there or not."""
        return tuple(sorted(set(self._tiers)))

    @property
    def _tiers(self) -> list[str]:
        return [d.tier for d in (self.devices.table if isinstance(self.devices, Classes) else self.devices)]
