"""How numbers change: pure functions on flat vectors, ignorant of rounds, clients and clocks."""

from lanterne.learn.aggregate import Update, coverage_mean, coverage_sum, polynomial_staleness
from lanterne.learn.first_order import Correction, local_sgd, mean_gradient, momentum_step, sgd_step, velocity_bytes
from lanterne.learn.graphs import Graphs
from lanterne.learn.imitation import imitation_gradient, input_gradient
from lanterne.learn.layerwise import budgeted_sgd, inputs_at, truncated_gradient
from lanterne.learn.losses import NO_LABEL, Loss, cross_entropy, logit_adjusted
from lanterne.learn.mixup import Choice, Mix, Share, SoftLoss, draw_mix, mixtures, mixup_gradient
from lanterne.learn.moments import Moments, absorb, drawn, no_moments, topped_up
from lanterne.learn.noise import derived, normal
from lanterne.learn.optimiser import Optimiser, Slots
from lanterne.learn.recorded import Recordings
from lanterne.learn.stepwise import stepwise_sgd
from lanterne.learn.task import Task

__all__ = [
    "NO_LABEL",
    "Choice",
    "Correction",
    "Graphs",
    "Loss",
    "Mix",
    "Moments",
    "Optimiser",
    "Recordings",
    "Share",
    "Slots",
    "SoftLoss",
    "Task",
    "Update",
    "absorb",
    "budgeted_sgd",
    "coverage_mean",
    "coverage_sum",
    "cross_entropy",
    "derived",
    "draw_mix",
    "drawn",
    "imitation_gradient",
    "input_gradient",
    "inputs_at",
    "local_sgd",
    "logit_adjusted",
    "mean_gradient",
    "mixtures",
    "mixup_gradient",
    "momentum_step",
    "no_moments",
    "normal",
    "polynomial_staleness",
    "sgd_step",
    "stepwise_sgd",
    "topped_up",
    "truncated_gradient",
    "velocity_bytes",
]
