"""One device: what it can do, how long it is there, and how its speed varies. Numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import FleetError

Floats = NDArray[np.float64]

#: FLOP/s and bytes/s. A device that needs a quarter of an hour for one operation or byte is a mistake of units.
SLOWEST = 1e-3
#: Seconds; beyond them a clock in float64 does not count every second.
LONGEST = 2.0**53


@dataclass(frozen=True, eq=False)
class Work:
    """What a request asks of a device: its units, in order, priced in FLOPs.

    Args:
        flops: FLOPs of each unit, for the whole batch.
        backward: whether each unit is a block's backward.
        starts: whether each unit is the first of a batch (which is when a device pays its overhead).
    """

    flops: tuple[float, ...] = ()
    backward: tuple[bool, ...] = ()
    starts: tuple[bool, ...] = ()

    def __len__(self) -> int:
        """How many units there are."""
        return len(self.flops)

    @cached_property
    def total(self) -> float:
        """FLOPs of all units."""
        return float(self.cumulative[-1]) if self.flops else 0.0

    @cached_property
    def begun(self) -> float:
        """Batches of all units."""
        return float(self.batches[-1]) if self.flops else 0.0

    @cached_property
    def cumulative(self) -> Floats:
        """FLOPs up to the end of each unit."""
        return np.cumsum(np.asarray(self.flops, dtype=np.float64))

    @cached_property
    def batches(self) -> Floats:
        """Batches begun up to each unit."""
        return np.cumsum(np.asarray(self.starts, dtype=np.float64))

    @cached_property
    def layers(self) -> NDArray[np.int64]:
        """Backward units up to each unit."""
        return np.cumsum(np.asarray(self.backward, dtype=np.int64))


class Draw(NamedTuple):
    """Where a random duration belongs: what it is a function of."""

    seed: int
    client: int
    round: int
    nth: int


class TimeLeft(NamedTuple):
    """What a unit's end has to fit into: `before + t + after[unit] <= deadline`.

    Kept as three numbers, so that whoever needs exactly the deadline is in time here as well as on the clock.
    """

    before: float
    after: Floats
    deadline: float

    def allows(self, times: Floats) -> NDArray[np.bool_]:
        """Whether units that end after so many seconds of computation are in time."""
        return (self.before + times) + self.after <= self.deadline

    @property
    def seconds(self) -> Floats:
        """The seconds that are left for the computation."""
        return self.deadline - self.before - self.after


class Pace(Protocol):
    """How a device's speed varies from one request to the next."""

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds from the start of the computation to the end of each unit, `[units]`, never decreasing."""

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units; there is at least one."""

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """For each unit, the probability that it ends in time."""


def too_slow(what: str, value: float, unit: str) -> FleetError:
    """What to say of a speed that is above 0, but below `SLOWEST`.

    Args:
        what: the beginning of the sentence.
        value: so many units per second.
        unit: what is done or sent.
    """
    return FleetError(
        f"{what} {value!r}, so slow that one {unit} takes more than {1 / SLOWEST:g} seconds: these are other units. "
        f"Give {unit}s per second, at least {SLOWEST:g}; a million is 1e6."
    )


def uncounted(what: str, value: float) -> FleetError:
    """What to say of seconds below 0 or beyond `LONGEST`.

    Args:
        what: the beginning of the sentence.
        value: seconds.
    """
    return FleetError(f"{what} {value!r} seconds. Give a finite number, 0 or more and at most 2^53.")


@dataclass(frozen=True)
class Device:
    """A device's numbers.

    Args:
        flops: sustained FLOP/s.
        memory: bytes for training.
        down: bytes/s towards the device.
        up: bytes/s from it.
        latency: seconds, each way.
        overhead: fixed seconds per batch.
        dropout: probability that a request is lost in the middle of the work.
        failure: probability that a request ends in an error.
        available: the times at which it can be reached, `(from, to)` in seconds, ascending; None is always.
        period: seconds after which `available` repeats; inf is never.
        tier: the name of its class.
        pace: how its speed varies; None is not at all.

    Raises:
        FleetError: for numbers that no device has.
    """

    flops: float = 1e9
    memory: float = math.inf
    down: float = math.inf
    up: float = math.inf
    latency: float = 0.0
    overhead: float = 0.0
    dropout: float = 0.0
    failure: float = 0.0
    available: tuple[tuple[float, float], ...] | None = None
    period: float = math.inf
    tier: str = "device"
    pace: Pace | None = None

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for name in ("flops", "memory", "down", "up"):
            value = getattr(self, name)
            if not value > 0:
                raise FleetError(
                    f"{name} of a device is {value!r}, but work and bytes take finite time. Give a number above 0."
                )
            if value < SLOWEST and name != "memory":
                raise too_slow(f"{name} of a device is", value, "FLOP" if name == "flops" else "byte")
        for name in ("latency", "overhead"):
            if not 0 <= getattr(self, name) <= LONGEST:
                raise uncounted(f"{name} of a device is", getattr(self, name))
        for name in ("dropout", "failure"):
            if not 0 <= getattr(self, name) <= 1:
                raise FleetError(
                    f"{name} of a device is {getattr(self, name)!r}, but it is a probability. "
                    "Give a number from 0 to 1."
                )
        if not self.period > 0:
            raise FleetError(f"period of a device is {self.period!r}. Give seconds above 0, or leave it out.")
        last = 0.0
        for start, end in self.available or ():
            if not last <= start < end or (end > self.period):
                raise FleetError(
                    f"available of a device holds {start:g}:{end:g}, but its times must ascend, not overlap, "
                    "and fit its period. Sort them."
                )
            last = end

    def online(self, t: float) -> bool:
        """Whether the device can be reached at `t` seconds."""
        if self.available is None:
            return True
        phase = self._phase(t)
        return any(start <= phase < end for start, end in self.available)

    def _phase(self, t: float) -> float:
        """The time that `available` speaks of."""
        return t % self.period if math.isfinite(self.period) else t

    def leaves(self, t: float) -> float:
        """When a device that is online at `t` goes away; inf if never."""
        if self.available is None:
            return math.inf
        phase, n = self._phase(t), len(self.available)
        i = next(i for i, (start, end) in enumerate(self.available) if start <= phase < end)
        turns = 0.0
        for _ in range(n):  # times that follow each other without a gap are one
            end, last = self.available[i][1], i + 1 == n
            if (self.available[0][0] + self.period if last else self.available[i + 1][0]) != end:
                return max(t, (t - phase) + turns + end)
            i, turns = (i + 1) % n, turns + (self.period if last else 0.0)
        return math.inf

    def returns(self, t: float) -> float:
        """When the device can be reached next, `t` at the earliest; inf if never again."""
        if self.online(t):
            return t
        phase = self._phase(t)
        later = [start for start, _ in self.available or () if start >= phase]
        if not later and math.isfinite(self.period) and self.available:
            later = [self.period + self.available[0][0]]
        if not later:
            return math.inf
        back = max(t, (t - phase) + later[0])
        for _ in range(4):  # the sum may have been rounded to just before the device is there
            if self.online(back):
                return back
            back = math.nextafter(back, math.inf)
        return math.inf  # it is there for less than the clock can tell apart

    def finished(self, work: Work, draw: Draw) -> Floats:
        """Seconds from the start of the computation to the end of each unit."""
        return self.steady(work) if self.pace is None else self.pace.finished(self, work, draw)

    def whole(self, work: Work, draw: Draw) -> float:
        """Seconds for all units: the last of `finished`, to the bit."""
        if not work.flops:
            return 0.0
        if self.pace is None:
            return work.total / self.flops + self.overhead * work.begun
        return float(self.pace.finished(self, work, draw)[-1])

    def expected(self, work: Work) -> float:
        """Mean seconds of the computation."""
        if not len(work):
            return 0.0
        return float(self.steady(work)[-1]) if self.pace is None else self.pace.expected(self, work)

    def reach(self, work: Work, left: TimeLeft) -> Floats:
        """For each unit, the probability that it ends in time."""
        if self.pace is None:
            return left.allows(self.steady(work)).astype(np.float64)
        return self.pace.reach(self, work, left)

    def steady(self, work: Work) -> Floats:
        """The same at full speed: `FLOPs so far / flops + overhead * batches so far`."""
        return work.cumulative / self.flops + self.overhead * work.batches


NUMBERS = tuple(f.name for f in fields(Device) if f.name not in ("available", "tier", "pace"))
