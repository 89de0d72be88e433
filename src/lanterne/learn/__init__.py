"""How numbers change: pure functions on flat vectors, ignorant of rounds, clients and clocks."""

from lanterne.learn.aggregate import Update, coverage_mean, coverage_sum, polynomial_staleness
from lanterne.learn.first_order import local_sgd, sgd_step
from lanterne.learn.layerwise import budgeted_sgd, inputs_at, truncated_gradient
from lanterne.learn.losses import Loss, cross_entropy
from lanterne.learn.task import Task

__all__ = [
    "Loss",
    "Task",
    "Update",
    "budgeted_sgd",
    "coverage_mean",
    "coverage_sum",
    "cross_entropy",
    "inputs_at",
    "local_sgd",
    "polynomial_staleness",
    "sgd_step",
    "truncated_gradient",
]
