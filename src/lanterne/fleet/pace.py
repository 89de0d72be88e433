"""How a device's speed varies: slower for good or in some rounds, loaded, as it was measured, or as a theory has it.

Each pace gives the time of every unit for one draw, and the probability of reaching each unit, from which SALF's `p`
follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, ndtr, ndtri

from lanterne.fleet.device import Device, Draw, Floats, TimeLeft, Work
from lanterne.rng import generator, uniform


@dataclass(frozen=True)
class Slower:
    """`slowdown` times slower than the device's numbers say, always."""

    slowdown: float

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        del draw
        return device.steady(work) * self.slowdown

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units."""
        return float(device.steady(work)[-1]) * self.slowdown

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """0 or 1."""
        return left.allows(device.steady(work) * self.slowdown).astype(np.float64)


@dataclass(frozen=True)
class SometimesSlower:
    """In each round, with probability `share`, `slowdown` times slower."""

    share: float
    slowdown: float

    def slow(self, draw: Draw) -> bool:
        """Whether the device straggles in this round."""
        return uniform(draw.seed, "straggles", draw.client, draw.round) < self.share

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        return device.steady(work) * (self.slowdown if self.slow(draw) else 1.0)

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units."""
        return float(device.steady(work)[-1]) * (1.0 + self.share * (self.slowdown - 1.0))

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """A mixture of both speeds."""
        steady = device.steady(work)
        slow, fast = left.allows(steady * self.slowdown), left.allows(steady)
        return self.share * slow + (1.0 - self.share) * fast


@dataclass(frozen=True)
class Loaded:
    """Other work leaves the device a share of its speed that is drawn anew each round, uniform in `[1/slowdown, 1]`."""

    slowdown: float

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        low = 1.0 / self.slowdown
        share = low + (1.0 - low) * uniform(draw.seed, "load", draw.client, draw.round)
        return device.steady(work) / share

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units: `E[1 / share] = ln(slowdown) / (1 - 1/slowdown)` times the steady ones."""
        k = self.slowdown
        return float(device.steady(work)[-1]) * (1.0 if k == 1.0 else math.log(k) / (1.0 - 1.0 / k))

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """`P[share >= steady time / seconds]`."""
        low = 1.0 / self.slowdown
        steady, seconds = device.steady(work), left.seconds
        needed = np.divide(steady, seconds, out=np.full_like(steady, np.inf), where=seconds > 0)
        if self.slowdown == 1.0:
            return left.allows(steady).astype(np.float64)
        return np.where(steady > 0, np.clip((1.0 - needed) / (1.0 - low), 0.0, 1.0), left.allows(steady))


@dataclass(frozen=True)
class NormalTime:
    """In each round everything takes a factor of its usual time, drawn anew from `N(1, spread²)` until it is positive.

    Args:
        spread: the measured standard deviation over the measured mean, above 0.
    """

    spread: float

    @property
    def mean(self) -> float:
        """The mean factor: a little above 1, for nothing takes a negative time."""
        density = math.exp(-0.5 / self.spread**2) / math.sqrt(2.0 * math.pi)
        return 1.0 + self.spread * density / (1.0 - self._negative)

    @property
    def _negative(self) -> float:
        return float(ndtr(-1.0 / self.spread))

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        u = uniform(draw.seed, "time", draw.client, draw.round)
        z = ndtri(self._negative + (1.0 - self._negative) * u)
        return device.steady(work) * max(1.0 + self.spread * float(z), 0.0)

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units."""
        return float(device.steady(work)[-1]) * self.mean

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """`P[factor <= seconds / steady time]`."""
        steady, seconds = device.steady(work), left.seconds
        most = np.divide(seconds, steady, out=np.zeros_like(steady), where=steady > 0)
        law = (ndtr((most - 1.0) / self.spread) - self._negative) / (1.0 - self._negative)
        return np.where(steady > 0, np.clip(law, 0.0, 1.0), left.allows(steady))


@dataclass(frozen=True)
class ExponentialLayers:
    """The model of SALF's theory: each layer's backward takes an independent exponential time; nothing else takes any.

    The number of layers finished by a deadline `T` is `min(Poisson(T / mean), L)`.

    Args:
        mean: `m`, seconds per layer.
    """

    mean: float

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        del device
        backward = np.asarray(work.backward, dtype=bool)
        times = np.zeros(len(work))
        g = generator(draw.seed, "layers", draw.client, draw.nth)
        times[backward] = g.exponential(self.mean, int(backward.sum()))
        return np.cumsum(times)

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units."""
        del device
        return self.mean * int(work.layers[-1])

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """`P[Poisson(seconds / mean) >= layers so far]`, the regularised lower incomplete gamma function."""
        del device
        ready = np.maximum(left.seconds, 0.0) / self.mean
        layers = work.layers
        law: Floats = gammainc(np.maximum(layers, 1), ready)
        return np.where(layers == 0, (left.seconds >= 0).astype(np.float64), law)


@dataclass(frozen=True)
class UniformDepth:
    """The draw of SALF's authors as a clock: within `within` seconds the backward pass gets through `d` layers.

    `d` is drawn anew each round, uniform on `minimum .. maximum`, and a layer takes `within / (d + 1/2)` seconds;
    forward passes take no time.

    Args:
        within: seconds, meant to be the deadline.
        minimum: 1 as the authors have it; 0 lets a client reach nothing.
        maximum: `L` as the authors have it; `L - 1` for stragglers that never finish.
    """

    within: float
    minimum: int
    maximum: int

    def finished(self, device: Device, work: Work, draw: Draw) -> Floats:
        """Seconds to the end of each unit."""
        del device
        choices = self.maximum - self.minimum + 1
        depth = self.minimum + int(uniform(draw.seed, "depth", draw.client, draw.round) * choices)
        return np.multiply(work.layers, self.within / (depth + 0.5), dtype=np.float64)

    def expected(self, device: Device, work: Work) -> float:
        """Mean seconds of all units."""
        del device
        depths = np.arange(self.minimum, self.maximum + 1)
        return float(work.layers[-1] * (self.within / (depths + 0.5)).mean())

    def reach(self, device: Device, work: Work, left: TimeLeft) -> Floats:
        """The share of depths with which the unit is done in time."""
        del device
        depths = np.arange(self.minimum, self.maximum + 1)
        done = [left.allows(work.layers * (self.within / (d + 0.5))) for d in depths]
        share: Floats = np.mean(done, axis=0, dtype=np.float64)
        return share
