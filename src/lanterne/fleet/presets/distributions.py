"""Fleets in which no two devices are alike: speeds and bandwidths drawn once for each, from a law with a tail.

A larger fleet of the same seed begins with the devices of a smaller one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.device import Floats
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.presets.base import Preset, Speeds
from lanterne.rng import generator

#: exp(700) is the last that a float64 holds, and a normal draw beyond 9 deviations happens once in 10^19.
_LARGEST_SIGMA = 70.0


@dataclass(frozen=True, kw_only=True)
class Lognormal(Preset, Speeds):
    """Lognormal speeds, and bandwidths if wanted; the given ones are the medians.

        speed = flops · exp(sigma · z),    bandwidth = down or up · exp(link_sigma · z'),    z, z' ~ N(0, 1)

    With `sigma` = 0.6, the spread of FedScale's lognormal clients, one device in a hundred is four times slower than
    the median. A device's `z'` is the same for both directions.

    Args:
        sigma: standard deviation of the logarithm of the FLOP/s.
        link_sigma: standard deviation of the logarithm of the bytes/s; 0 makes all links alike. The nineteen measured
            profiles of the fleet `phones` show 0.5 down and 0.7 up.
    """

    name: ClassVar[str] = "lognormal"
    sigma: float = 0.6
    link_sigma: float = 0.0

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        for name, value in (("sigma", self.sigma), ("link_sigma", self.link_sigma)):
            if not 0 <= value <= _LARGEST_SIGMA:
                raise FleetError(
                    f"{name} is {value}, the standard deviation of a logarithm. "
                    f"Give a number from 0 (all alike) to {_LARGEST_SIGMA:g}."
                )
        speed = np.exp(self.sigma * generator(seed, "speeds").standard_normal(clients))
        link = np.exp(self.link_sigma * generator(seed, "links").standard_normal(clients)) if self.link_sigma else None
        return _varied(self, clients, seed, speed, link)


@dataclass(frozen=True, kw_only=True)
class Pareto(Preset, Speeds):
    """Slowness with a Pareto tail, of bandwidths as well if wanted; the given numbers are those of the fastest.

        speed = flops / min(X, slowest),    P[X > x] = x^(-alpha)  for x >= 1

    With `alpha` = 1 half of the devices are more than twice as slow as the fastest, a tenth more than ten times, and
    the mean without a bound is infinite. The defaults are those of Plato's simulated clients, whose waits are Pareto(1)
    and at most 60 seconds (TL-System/plato, `config.py`); theirs are seconds, these are factors.

    Args:
        alpha: the tail index of the FLOP/s: the smaller, the slower the slow. inf makes all speeds alike.
        link_alpha: the tail index of the bytes/s, one factor for both directions; inf makes all links alike.
        slowest: the largest factor; inf is no bound.
    """

    name: ClassVar[str] = "pareto"
    alpha: float = 1.0
    link_alpha: float = math.inf
    slowest: float = 60.0

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        for name, value in (("alpha", self.alpha), ("link_alpha", self.link_alpha)):
            if not value > 0:
                raise FleetError(f"{name} is {value}, a tail index. Give a number above 0, or inf for no tail.")
        if not self.slowest >= 1:
            raise FleetError(
                f"slowest is {self.slowest}: how many times slower than the fastest a device may be. "
                "Give a number of at least 1, or inf for no bound."
            )
        speed = self._factors(self.alpha, clients, seed, "speeds")
        link = None if math.isinf(self.link_alpha) else self._factors(self.link_alpha, clients, seed, "links")
        return _varied(self, clients, seed, speed, link)

    def _factors(self, alpha: float, clients: int, seed: int, purpose: str) -> Floats:
        """`1 / min(X, slowest)`, for which `1 / X = U^(1/alpha)`."""
        survival = 1.0 - generator(seed, purpose).random(clients)  # never 0
        return np.maximum(survival ** (1.0 / alpha), 1.0 / self.slowest)


def _varied(preset: Lognormal | Pareto, clients: int, seed: int, speed: Floats, link: Floats | None) -> Fleet:
    """The fleet whose devices have so many times the preset's numbers."""
    columns = {"flops": preset.flops * speed}
    if link is not None:
        columns |= {"down": preset.down * link, "up": preset.up * link}
    return preset.fleet(np.zeros(clients, dtype=np.uint8), [preset.device()], seed, columns)
