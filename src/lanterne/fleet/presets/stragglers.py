"""Fleets of two kinds at most: all devices alike, or a share of them slower."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.pace import Loaded, Slower, SometimesSlower
from lanterne.fleet.presets.base import Preset, Speeds, check_share
from lanterne.rng import generator


@dataclass(frozen=True, kw_only=True)
class Uniform(Preset, Speeds):
    """All devices alike, none late."""

    name: ClassVar[str] = "uniform"

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        return self.fleet(np.zeros(clients, dtype=np.uint8), [self.device()], seed)


@dataclass(frozen=True, kw_only=True)
class Stragglers(Preset, Speeds):
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
        check_share(self.share)
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
            return self.fleet(
                np.zeros(clients, dtype=np.uint8), [self.device(pace=SometimesSlower(self.share, self.slowdown))], seed
            )
        kinds = np.zeros(clients, dtype=np.uint8)
        who = generator(seed, "stragglers").permutation(clients)[: round(self.share * clients)]
        kinds[who] = 1
        pace = Slower(self.slowdown) if self.load == "constant" else Loaded(self.slowdown)
        return self.fleet(kinds, [self.device("fast"), self.device("straggler", pace)], seed)
