"""Phones from FedScale's traces, for users who have the files.

Lai et al., "FedScale: Benchmarking Model and System Performance of Federated Learning at Scale", ICML 2022, arXiv
2105.11367; SymbioticLab/FedScale, Apache-2.0. The capacities come from AI Benchmark and MobiPerf, the times of
availability from FLASH's users (charging is available).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.presets.base import Preset
from lanterne.fleet.traces import read_availability, read_capacity
from lanterne.rng import generator


@dataclass(frozen=True, kw_only=True)
class FedScale(Preset):
    """Devices from FedScale's trace files: how fast each is, and when it is there.

    A device that needs `computation` ms for a sample's inference does `1000 reference_flops / computation` FLOP/s, and
    `communication` kbit/s are its bytes/s in both directions, times 125. Where the model is the one that was timed,
    this is FedScale's clock, which takes a training step for three times an inference; others take longer or shorter in
    proportion to their FLOPs. Clients are dealt the entries of both files in an order drawn from the seed; where there
    are more clients than entries, the entries are dealt again.

    Args:
        capacity: the path of `client_device_capacity`.
        availability: the path of `client_behave_trace`; without it, everybody is always there.
        reference_flops: FLOPs of a sample's forward pass through the network that was timed. The file does not say
            which it was; the default is MobileNetV2 (arXiv 1801.04381), 300 million multiply-adds. From 1e3 to 1e18.
    """

    name: ClassVar[str] = "fedscale"
    files: ClassVar[tuple[str, ...]] = ("capacity", "availability")
    capacity: str = ""
    availability: str = ""
    reference_flops: float = 6e8

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        if not self.capacity:
            raise FleetError(
                "The fleet 'fedscale' needs FedScale's file of capacities. Set capacity to the path of "
                "client_device_capacity (it comes with a clone of SymbioticLab/FedScale)."
            )
        if not 1e3 <= self.reference_flops <= 1e18:
            raise FleetError(
                f"reference_flops is {self.reference_flops}. Give the FLOPs of one sample, a number from 1e3 to 1e18."
            )
        known = read_capacity(self.capacity)
        dealt = np.resize(generator(seed, "capacity").permutation(len(known.computation)), clients)
        link = 125.0 * known.communication[dealt]
        columns = {"flops": 1e3 * self.reference_flops / known.computation[dealt], "down": link, "up": link}
        windows = None
        if self.availability:
            traces = read_availability(self.availability)
            windows = traces.take(generator(seed, "availability").permutation(len(traces))[:clients])
            if not len(windows.starts):
                raise FleetError(
                    f"{self.availability}: nobody is ever there of the entries that seed {seed} deals to {clients} "
                    "clients, so no round can begin. Leave availability out, or give a file with longer windows, or "
                    "more clients."
                )
        device = self.device(flops=1.0, down=1.0, up=1.0)
        return self.fleet(np.zeros(clients, dtype=np.uint8), [device], seed, columns, windows)
