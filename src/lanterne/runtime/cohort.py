"""What an algorithm is told of the fleet, in a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lanterne.errors import ProtocolError
from lanterne.fleet import Device, Job, reach
from lanterne.protocol import Facts, Output, Request
from lanterne.rng import fold, generator
from lanterne.tree import spec_of

if TYPE_CHECKING:
    from torch import Tensor

    from lanterne.runtime.simulator import Simulator


class SimulatedCohort:
    """Who can be reached now, with the numbers of their devices. See `lanterne.protocol.Cohort`."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.round = simulator.rounds
        self.key = fold(simulator.seed, "cohort", simulator.rounds)

    @property
    def population(self) -> int:
        """How many clients there are, whether they can be reached now or not."""
        return len(self._simulator.fleet)

    @property
    def clients(self) -> Sequence[int]:
        """The clients that can be reached now."""
        return self._simulator.clock.reachable()

    def sample(self, n: int | None, key: int) -> tuple[int, ...]:
        """`n` clients at random without repetition, ascending; all where `n` is None or exceeds their number."""
        return sample(self.clients, n, key)

    def facts(self, client: int) -> Facts:
        """What is known of a client."""
        device = self._simulator.fleet.devices[client]
        samples = self._simulator.streams.samples(client)
        return Facts(samples, device.flops, device.memory, device.down, device.up, device.latency, device.tier)

    def seconds(self, request: Request) -> float:
        """Expected seconds until the whole work of a request would have arrived, its deadline ignored."""
        client, job = self._job(request)
        return expected_seconds(self._simulator.fleet.devices[client], job)

    def reach(self, request: Request) -> Sequence[float]:
        """For each unit of a request's work, the probability that it is done by the request's deadline."""
        client, job = self._job(request)
        device = self._simulator.fleet.devices[client]
        heard = (1.0 - device.dropout) * (1.0 - device.failure)
        return [heard * float(chance) for chance in reach(device, job)]

    def _job(self, q: Request) -> tuple[int, Job]:
        if isinstance(q.to, tuple) or any(isinstance(a, Output) for a in q.arrays.values()):
            raise ProtocolError(
                "Only a request to a client whose arrays are all known can be asked about before it is sent."
            )
        arrays: dict[str, Tensor] = {n: a for n, a in q.arrays.items() if not isinstance(a, Output)}
        s, client = self._simulator, q.to
        return client, s.pricing.job(q, spec_of(s.numerics.states.get(client, {})), spec_of(arrays))


def expected_seconds(device: Device, job: Job) -> float:
    """Mean seconds until the reply to the whole of a job would have arrived, its deadline ignored."""
    downloaded = device.latency + job.down / device.down
    return downloaded + device.expected(job.work) + device.latency + job.up(None) / device.up


def sample(clients: Sequence[int], n: int | None, key: int) -> tuple[int, ...]:
    """`n` of `clients` without repetition, ascending, as a function of the key alone.

    Examples:
        >>> sample(range(5), None, 0)
        (0, 1, 2, 3, 4)
        >>> sample(range(5), 2, 0) == sample(range(5), 2, 0)
        True
    """
    if n is None or n >= len(clients):
        return tuple(clients)
    chosen = generator(key, "sample").choice(len(clients), size=n, replace=False)
    return tuple(clients[int(i)] for i in np.sort(chosen))
