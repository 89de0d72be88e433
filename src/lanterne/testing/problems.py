"""Small problems in float64 on which exact statements can be checked in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lanterne.data import Dataset, Streams
from lanterne.fleet import Device, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack, initial_weights
from lanterne.rng import generator


@dataclass(frozen=True)
class Problem:
    """A data set, who holds which rows, a model and where training starts.

    Args:
        data: training and test samples.
        rows: the rows of each client.
        stack: the model.
        w: `[size]`, the starting weights.
        batch: samples in a batch.
        seed: of batches.
    """

    data: Dataset
    rows: Sequence[NDArray[np.int64]]
    stack: LayerStack
    w: Tensor
    batch: int = 4
    seed: int = 0

    @property
    def task(self) -> Task:
        """Model and loss."""
        return Task(self.stack)

    @property
    def streams(self) -> Streams:
        """The clients' batches."""
        return Streams(self.rows, self.batch, self.seed)


def tiny_mlp(features: int = 6, classes: int = 3) -> LayerStack:
    """Three linear layers with smooth activations: differences between executors stay those of rounding."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, classes))
    return LayerStack(net, (features,))


def tiny_cnn(classes: int = 3) -> LayerStack:
    """Two convolutions with a normalisation, and a linear layer, on 6x6 images."""
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, classes),
        )  # fmt: skip
    return LayerStack(net, (1, 6, 6))


def tiny_problem(
    clients: int = 6,
    *,
    stack: LayerStack | None = None,
    same: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Gaussian classes, divided unequally over a few clients.

    Args:
        clients: how many; client `c` holds `5 + c` rows.
        stack: the model; `tiny_mlp` by default.
        same: all rows are one and the same sample, so that all clients compute the same update.
        seed: of everything.
        dtype: of everything.
    """
    stack = stack or tiny_mlp()
    classes = stack.output_shape[0]
    sizes = [5 + c for c in range(clients)]
    g = generator(seed, "problem")
    labels = g.integers(0, classes, sum(sizes) + 30)
    centres = g.normal(size=(classes, *stack.sample_shape))
    x = torch.from_numpy(centres[labels] + 0.7 * g.normal(size=(len(labels), *stack.sample_shape))).to(dtype)
    y = torch.from_numpy(labels)
    if same:
        x, y = x[:1].expand_as(x).clone(), y[:1].expand_as(y).clone()
    n = sum(sizes)
    data = Dataset("tiny", x[:n], y[:n], x[n:], y[n:], classes)
    edges = np.cumsum([0, *sizes])
    rows = [np.arange(a, b) for a, b in pairwise(edges)]
    return Problem(data, rows, stack, initial_weights(stack, seed, dtype), seed=seed)


def uneven_fleet(clients: int = 6, **changes: Any) -> Fleet:
    """Devices of unlike speeds and links; times of a tiny problem are fractions of a second.

    Args:
        clients: how many.
        changes: fields of `Device` that are the same for all.
    """
    uneven: list[dict[str, Any]] = [
        {"flops": 1e5 * (1 + c % 4), "down": 1e5, "up": 5e4 * (1 + c % 3), "latency": 0.001 * (c % 2)}
        for c in range(clients)
    ]
    return Fleet([Device(**numbers | changes) for numbers in uneven], seed=1)
