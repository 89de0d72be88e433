"""One paper, one file. Adding an algorithm adds its file and its line in this table."""

from typing import Any

from lanterne.algorithms.drop import Drop
from lanterne.algorithms.fedavg import FedAvg
from lanterne.algorithms.fedbuff import FedBuff
from lanterne.algorithms.salf import Salf

ALGORITHMS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "drop": Drop,
    "fedbuff": FedBuff,
    "salf": Salf,
}

__all__ = ["ALGORITHMS", "Drop", "FedAvg", "FedBuff", "Salf"]
