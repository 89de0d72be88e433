"""One paper, one file. Adding an algorithm adds its file and its line in this table."""

from typing import Any

from lanterne.algorithms.cse_fsl import CSEFSL
from lanterne.algorithms.cyclesl import CycleSL
from lanterne.algorithms.drop import Drop
from lanterne.algorithms.fedasync import FedAsync
from lanterne.algorithms.fedavg import FedAvg
from lanterne.algorithms.fedbuff import FedBuff
from lanterne.algorithms.fednova import FedNova
from lanterne.algorithms.fedopt import FedOpt
from lanterne.algorithms.fedprox import FedProx
from lanterne.algorithms.fsl_sage import FSLSAGE
from lanterne.algorithms.gas import GAS
from lanterne.algorithms.locfedmix_sl import LocFedMixSL
from lanterne.algorithms.locsplitfed import LocSplitFed
from lanterne.algorithms.overselect import OverSelect
from lanterne.algorithms.psl import PSL
from lanterne.algorithms.salf import Salf
from lanterne.algorithms.scaffold import Scaffold
from lanterne.algorithms.sglr import SGLR
from lanterne.algorithms.sl import SequentialSL
from lanterne.algorithms.splitfed_v1 import SplitFedV1
from lanterne.algorithms.splitfed_v2 import SplitFedV2
from lanterne.algorithms.timelyfl import TimelyFL

ALGORITHMS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "drop": Drop,
    "fedprox": FedProx,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "fedopt": FedOpt,
    "overselect": OverSelect,
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "salf": Salf,
    "timelyfl": TimelyFL,
    "sl": SequentialSL,
    "psl": PSL,
    "sglr": SGLR,
    "splitfed_v1": SplitFedV1,
    "splitfed_v2": SplitFedV2,
    "locsplitfed": LocSplitFed,
    "cse_fsl": CSEFSL,
    "locfedmix_sl": LocFedMixSL,
    "cyclesl": CycleSL,
    "fsl_sage": FSLSAGE,
    "gas": GAS,
}

__all__ = [
    "ALGORITHMS",
    "CSEFSL",
    "FSLSAGE",
    "GAS",
    "PSL",
    "SGLR",
    "CycleSL",
    "Drop",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedNova",
    "FedOpt",
    "FedProx",
    "LocFedMixSL",
    "LocSplitFed",
    "OverSelect",
    "Salf",
    "Scaffold",
    "SequentialSL",
    "SplitFedV1",
    "SplitFedV2",
    "TimelyFL",
]
