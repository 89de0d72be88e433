"""Data sets, who owns which rows, which rows are read when and how, and what a model is worth to each owner."""

from lanterne.data.augment import Augmentation, augmentation
from lanterne.data.batches import Streams
from lanterne.data.dataset import Dataset
from lanterne.data.load import data_files, load
from lanterne.data.measure import client_means, held_out, label_shares
from lanterne.data.partition import check_partition, partition
from lanterne.data.shared import Shared, different

__all__ = [
    "Augmentation",
    "Dataset",
    "Shared",
    "Streams",
    "augmentation",
    "check_partition",
    "client_means",
    "data_files",
    "different",
    "held_out",
    "label_shares",
    "load",
    "partition",
]
