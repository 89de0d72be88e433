"""Data sets, who owns which rows, which rows are read when, and what a model is worth to each owner."""

from lanterne.data.batches import Streams
from lanterne.data.dataset import Dataset
from lanterne.data.load import BUNDLED, data_files, load
from lanterne.data.measure import client_means, label_shares
from lanterne.data.partition import check_partition, partition

__all__ = [
    "BUNDLED",
    "Dataset",
    "Streams",
    "check_partition",
    "client_means",
    "data_files",
    "label_shares",
    "load",
    "partition",
]
