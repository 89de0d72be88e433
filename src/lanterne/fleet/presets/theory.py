"""The clocks of SALF's theory and of its authors' code, on which a layer's time is drawn and nothing else takes any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.pace import ExponentialLayers, UniformDepth
from lanterne.fleet.presets.base import Preset, Speeds, check_share
from lanterne.rng import generator


@dataclass(frozen=True, kw_only=True)
class ExponentialLayersFleet(Preset, Speeds):
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
        return self.fleet(np.zeros(clients, dtype=np.uint8), [self.device(pace=ExponentialLayers(self.mean))], seed)


@dataclass(frozen=True, kw_only=True)
class UniformDepthFleet(Preset, Speeds):
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
        check_share(self.share)
        if not 0 < self.within < math.inf:
            raise FleetError(f"within is {self.within} seconds. Give a number above 0.")
        if not 0 <= self.minimum <= layers:
            raise FleetError(
                f"minimum is {self.minimum} layers, but the model has {layers}. Give a number from 0 to {layers}."
            )
        most = layers if self.maximum is None else self.maximum
        if not self.minimum <= most <= layers:
            raise FleetError(f"maximum is {most} layers. Give a number from minimum = {self.minimum} to {layers}.")
        kinds = np.zeros(clients, dtype=np.uint8)
        kinds[generator(seed, "stragglers").permutation(clients)[: round(self.share * clients)]] = 1
        fast = UniformDepth(self.within, layers, layers)
        slow = UniformDepth(self.within, self.minimum, most)
        return self.fleet(kinds, [self.device("fast", fast), self.device("straggler", slow)], seed)
