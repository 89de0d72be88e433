"""Named fleets: each a frozen set of parameters that is built for a number of clients and a seed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lanterne.errors import FleetError, nearest
from lanterne.fleet.device import Device, Pace
from lanterne.fleet.fleet import Classes, Fleet, Server
from lanterne.fleet.pace import ExponentialLayers, Loaded, Slower, SometimesSlower, UniformDepth
from lanterne.rng import fold, generator


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What all presets share: the numbers of a device at full speed, of the server, and of losses.

    Args:
        flops: sustained FLOP/s of a device.
        memory: bytes.
        down: bytes/s towards a device.
        up: bytes/s from it.
        latency: seconds, each way.
        overhead: fixed seconds per batch.
        dropout: probability that a request is lost in the middle of the work.
        failure: probability that a request ends in an error.
        server_flops: FLOP/s of a server machine.
        machines: server machines that the replicas share; None is one per replica.
        detection: seconds until a lost device is noticed.
        rejoin: seconds after which a lost device is back.
    """

    flops: float = 1e9
    memory: float = 2e9
    down: float = 1e7
    up: float = 5e6
    latency: float = 0.02
    overhead: float = 0.0
    dropout: float = 0.0
    failure: float = 0.0
    server_flops: float = math.inf
    machines: int | None = None
    detection: float = 0.0
    rejoin: float = 0.0

    def device(self, tier: str = "device", pace: Pace | None = None) -> Device:
        """A device of this fleet."""
        numbers = {
            n: getattr(self, n) for n in ("flops", "memory", "down", "up", "latency", "overhead", "dropout", "failure")
        }
        return Device(**numbers, tier=tier, pace=pace)

    def fleet(self, kinds: np.ndarray[Any, Any], table: list[Device], seed: int) -> Fleet:
        """A fleet of such devices."""
        devices = Classes(kinds.astype(np.uint8), table)
        return Fleet(
            devices, fold(seed, "fleet"), Server(self.server_flops, self.machines), self.detection, self.rejoin
        )


@dataclass(frozen=True, kw_only=True)
class Uniform(Preset):
    """All devices alike, none late."""

    name: ClassVar[str] = "uniform"

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        return self.fleet(np.zeros(clients), [self.device()], seed)


@dataclass(frozen=True, kw_only=True)
class Stragglers(Preset):
    """A share of the devices is slower.

    Args:
        share: of the devices, from 0 to 1.
        slowdown: `k`, how many times slower.
        redraw: `never`: the same devices throughout the run; `round`: each device straggles with probability `share`,
            drawn anew each round.
        load: `constant`: a straggler is always `k` times slower; `varying`: other work leaves it a share of its speed
            that is drawn anew each round, uniform in `[1/k, 1]`.
    """

    name: ClassVar[str] = "stragglers"
    share: float = 0.9
    slowdown: float = 10.0
    redraw: Literal["never", "round"] = "never"
    load: Literal["constant", "varying"] = "varying"

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        if not 0 <= self.share <= 1:
            raise FleetError(f"The share of stragglers is {self.share}. Give a number from 0 to 1 (0.9 is 90 %).")
        if not 1 <= self.slowdown < math.inf:
            raise FleetError(
                f"slowdown is {self.slowdown}: how many times slower a straggler is. Give a number of at least 1."
            )
        if self.redraw == "round":
            if self.load == "varying":
                raise FleetError(
                    "redraw = 'round' draws who straggles anew each round, at a constant load. "
                    "Set load = 'constant' with it."
                )
            return self.fleet(np.zeros(clients), [self.device(pace=SometimesSlower(self.share, self.slowdown))], seed)
        kinds = np.zeros(clients)
        who = generator(seed, "stragglers").permutation(clients)[: round(self.share * clients)]
        kinds[who] = 1
        pace = Slower(self.slowdown) if self.load == "constant" else Loaded(self.slowdown)
        return self.fleet(kinds, [self.device("fast"), self.device("straggler", pace)], seed)


@dataclass(frozen=True, kw_only=True)
class ExponentialLayersFleet(Preset):
    """The model of SALF's theory: every layer's backward takes an exponential time, nothing else takes any.

    Args:
        mean: `m`, seconds per layer.
    """

    name: ClassVar[str] = "exponential-layers"
    mean: float = 1.0
    down: float = math.inf
    up: float = math.inf
    latency: float = 0.0

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        if not 0 < self.mean < math.inf:
            raise FleetError(f"mean is {self.mean} seconds per layer. Give a number above 0.")
        return self.fleet(np.zeros(clients), [self.device(pace=ExponentialLayers(self.mean))], seed)


@dataclass(frozen=True, kw_only=True)
class UniformDepthFleet(Preset):
    """The draw of SALF's authors as a clock: a straggler gets through a random number of layers in time.

    Args:
        share: of stragglers, the same throughout the run.
        within: seconds, to be given as the deadline as well.
        minimum: the least number of layers.
        maximum: the most; by default all of them, as the authors draw it, and then such a straggler is in time. One
            layer fewer makes stragglers that never finish.
    """

    name: ClassVar[str] = "uniform-depth"
    share: float = 0.9
    within: float = 1.0
    minimum: int = 1
    maximum: int | None = None
    down: float = math.inf
    up: float = math.inf
    latency: float = 0.0

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients and so many layers."""
        if not 0 <= self.share <= 1:
            raise FleetError(f"The share of stragglers is {self.share}. Give a number from 0 to 1 (0.9 is 90 %).")
        if not 0 < self.within < math.inf:
            raise FleetError(f"within is {self.within} seconds. Give a number above 0.")
        if not 0 <= self.minimum <= layers:
            raise FleetError(
                f"minimum is {self.minimum} layers, but the model has {layers}. Give a number from 0 to {layers}."
            )
        most = layers if self.maximum is None else self.maximum
        if not self.minimum <= most <= layers:
            raise FleetError(f"maximum is {most} layers. Give a number from minimum = {self.minimum} to {layers}.")
        kinds = np.zeros(clients)
        kinds[generator(seed, "stragglers").permutation(clients)[: round(self.share * clients)]] = 1
        fast = UniformDepth(self.within, layers, layers)
        slow = UniformDepth(self.within, self.minimum, most)
        return self.fleet(kinds, [self.device("fast", fast), self.device("straggler", slow)], seed)


PRESETS = {preset.name: preset for preset in (Uniform, Stragglers, ExponentialLayersFleet, UniformDepthFleet)}


def preset(name: str, /, **parameters: Any) -> Uniform | Stragglers | ExponentialLayersFleet | UniformDepthFleet:
    """A preset by name, its parameters checked by name and kind.

    Args:
        name: one of `PRESETS`.
        parameters: its fields.

    Raises:
        FleetError: for a name or a parameter that it does not have, with the nearest one that it has.

    Examples:
        >>> preset("stragglers", share=0.5).slowdown
        10.0
    """
    if name not in PRESETS:
        raise FleetError(f"There is no fleet called {name!r}, and no file of that name. {nearest(name, PRESETS)}")
    kind = PRESETS[name]
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in parameters.items():
        if key not in known:
            raise FleetError(f"The fleet {name!r} has no parameter {key!r}. {nearest(key, known)}")
        field, optional = known[key], key in ("machines", "maximum")
        if isinstance(field.default, str):
            choices = {"redraw": ("never", "round"), "load": ("constant", "varying")}[key]
            if value not in choices:
                raise FleetError(f"{key} of the fleet {name!r} is {value!r}. {nearest(str(value), choices)}")
        elif isinstance(value, bool) or not isinstance(value, int | float | None if optional else int | float):
            raise FleetError(f"{key} of the fleet {name!r} is {value!r}. Give a number.")
        elif isinstance(value, float) and key in ("machines", "minimum", "maximum"):
            raise FleetError(f"{key} of the fleet {name!r} is {value!r}. Give a whole number.")
    return kind(**parameters)
