"""Measured phones: three classes of them and nineteen networks, as FLASH simulates them.

The numbers are those of FLASH (Yang et al., "Characterizing Impacts of Heterogeneity in Federated Learning upon
Large-Scale Smartphone Data", WWW 2021, arXiv 2006.06983; PKU-Chengxu/FLASH at 55cbede, BSD-2-Clause): the times of a
training batch and the mix of classes from `models/utils/device_util/device_util.py`, the networks from
`models/speed_distri.json`. Its authors measured the times on a Nexus 6, a Redmi Note 8 and a Galaxy Note 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from lanterne.errors import FleetError
from lanterne.fleet.device import Floats
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.pace import NormalTime
from lanterne.fleet.presets.base import Preset
from lanterne.rng import generator

CLASSES = ("slow", "middle", "fast")
#: How many of FLASH's unknown phones are of each class: 53.2 %, 46.4 % and 0.45 %.
MIX = (18820, 16428, 159)


class Workload(NamedTuple):
    """A network that was timed.

    Attributes:
        flops: of one training batch, 2 per multiply-add: products and convolutions, forward and backward.
        mean: milliseconds per batch on a phone of each class.
        deviation: the standard deviation of it.
    """

    flops: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


#: The networks of FLASH's `models/`, in batches of 10; of Shakespeare's, 100.
WORKLOADS = {
    "femnist": Workload(1_020_170_240, (1642, 588, 179), (99.5, 23.9, 2.3)),
    "celeba": Workload(1_530_178_560, (5392, 1355, 561), (982.5, 54.6, 20.3)),
    "reddit": Workload(2_165_145_600, (2596, 916, 527.7), (335.5, 20.6, 49.0)),
    "shakespeare": Workload(38_154_240_000, (28621, 13579, 10681), (1720.7, 104.6, 125.6)),
}
#: Of each network profile the mean and the standard deviation of its speed downwards, and of its speed upwards, KB/s.
NETWORKS = (
    (7491.4, 3369.2984195526524, 4935.2, 2767.319309367822),
    (4054.8, 1819.527894812278, 3006.2, 890.0824456195055),
    (2370.212121212121, 1388.1842458618873, 2774.242424242424, 1096.948965148141),
    (9913.0, 1551.0399654293162, 6635.410256410257, 1459.5417039385452),
    (4208.662790697675, 1481.6159751831085, 2974.4651162790697, 833.157174061475),
    (3778.4545454545455, 2843.4362490619233, 2631.6136363636365, 1576.3594741150355),
    (3472.7419354838707, 1276.7312336902096, 5140.580645161291, 2277.3561464316263),
    (4668.421052631579, 612.6053778987505, 3205.4736842105262, 419.3541234880451),
    (3297.695652173913, 771.3279590523599, 2336.608695652174, 1609.9481692745492),
    (4283.575757575758, 1560.9717647418854, 3641.6060606060605, 1495.0172784933197),
    (3658.1428571428573, 1315.8921936489032, 2546.8571428571427, 1089.0442308440433),
    (7214.076923076923, 3363.2134121434074, 4039.6923076923076, 2189.0224331919835),
    (8885.471698113208, 1999.11133656719, 6278.566037735849, 489.10085040350583),
    (5125.0, 2087.6044791910326, 3729.75, 461.4794301191299),
    (7271.266666666666, 1914.0137396464936, 5742.533333333334, 1964.1279953766305),
    (4317.628571428571, 1264.952220118876, 3285.6857142857143, 1018.296638549707),
    (6708.066666666667, 6738.474896361111, 664.6, 312.0001709401241),
    (17332.68181818182, 11181.572207660422, 5641.454545454545, 2549.76887949535),
    (3176.8064516129034, 1837.991547935125, 430.96774193548384, 157.72689419679085),
)


@dataclass(frozen=True, kw_only=True)
class Phones(Preset):
    """Three measured classes of phones (slow, middle, fast) behind nineteen measured networks.

    A phone of class `i` trains at the speed at which the timed network would take its measured time,
    `flops of a batch / mean[i]`, so that other models take longer or shorter in proportion to their FLOPs; in each
    round its time varies normally with the measured deviation. Its class is drawn from FLASH's mix, its network is one
    of nineteen, and its bandwidths are drawn from the network's normal laws, once: at any moment they are spread over
    the phones as in FLASH, which draws them anew for each transfer.

    Args:
        workload: the network whose measured times count: FLASH's CNN on FEMNIST or on CelebA, or its LSTM on Reddit or
            on Shakespeare.
    """

    name: ClassVar[str] = "phones"
    workload: Literal["femnist", "celeba", "reddit", "shakespeare"] = "femnist"

    def build(self, clients: int, seed: int, layers: int) -> Fleet:
        """The fleet of so many clients."""
        del layers
        if self.workload not in WORKLOADS:
            raise FleetError(f"workload is {self.workload!r}. Choose from: {', '.join(WORKLOADS)}.")
        timed = WORKLOADS[self.workload]
        table = [
            self.device(tier, NormalTime(sd / ms), flops=1e3 * timed.flops / ms, down=1.0, up=1.0)
            for tier, ms, sd in zip(CLASSES, timed.mean, timed.deviation, strict=True)
        ]
        shares = np.cumsum(MIX) / sum(MIX)
        kinds = np.searchsorted(shares, generator(seed, "classes").random(clients), side="right")
        network = generator(seed, "networks").integers(len(NETWORKS), size=clients, dtype=np.uint8)
        down, down_sd, up, up_sd = np.array(NETWORKS).T
        columns = {
            "down": _positive(down, down_sd, network, generator(seed, "down").random(clients)),
            "up": _positive(up, up_sd, network, generator(seed, "up").random(clients)),
        }
        return self.fleet(kinds, table, seed, columns)


def _positive(mean: Floats, deviation: Floats, network: NDArray[np.uint8], u: Floats) -> Floats:
    """Bytes/s from normal laws in KB/s whose negative values are drawn again: the inverses at `u`, which is reused."""
    negative = ndtr(-mean / deviation)
    np.subtract(1.0, u, out=u)  # never 0
    u *= (1.0 - negative)[network]
    u += negative[network]
    ndtri(u, out=u)
    u *= deviation[network]
    u += mean[network]
    u *= 1e3
    return u
