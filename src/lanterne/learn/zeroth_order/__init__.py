"""Training by forward passes alone: random directions from keys, slopes along them, updates that can be replayed."""

from lanterne.learn.zeroth_order.directions import Direction, Kind, direction, factor
from lanterne.learn.zeroth_order.estimate import Difference, Estimate, Probes, Restore, estimate, through
from lanterne.learn.zeroth_order.gauge import STABLE, Steps, gauge, largest_steps, too_large
from lanterne.learn.zeroth_order.group import Group, Held, Segment, group_of
from lanterne.learn.zeroth_order.perturbed import Perturbed
from lanterne.learn.zeroth_order.replay import coefficients, replay, slope

__all__ = [
    "STABLE",
    "Difference",
    "Direction",
    "Estimate",
    "Group",
    "Held",
    "Kind",
    "Perturbed",
    "Probes",
    "Restore",
    "Segment",
    "Steps",
    "coefficients",
    "direction",
    "estimate",
    "factor",
    "gauge",
    "group_of",
    "largest_steps",
    "replay",
    "slope",
    "through",
    "too_large",
]
