"""How good a model is, for everyone and for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lanterne.data import Dataset, client_means
from lanterne.models import LayerStack, batch_norms, batch_statistics, full, total_variance, with_statistics
from lanterne.runtime import Loop

_CHUNK = 256


@dataclass(frozen=True)
class Judge:
    """Judges a model on the test split, overall, by device class and over clients.

    A client's accuracy is `sum_k share_k accuracy_k`, with `share_k` the share of class k among its samples and
    `accuracy_k` the model's accuracy on class k of the test split: exact where clients differ in their mix of labels
    only. Where each has held-out rows of its own, it is the accuracy on those.

    A model with BatchNorm is judged by statistics of training samples, never by those of the test split.

    Args:
        executor: in whose threads the model runs.
        data: for its test split.
        shares: `[parts, classes]`, the mix of labels of each part of the data; client `c` holds part `c mod parts`.
        clients: how many there are.
        holdings: by device class, how many samples of each part its clients have, `[parts]`.
        rows: the training samples from which BatchNorm layers take their statistics.
        held: `[test rows]`, the part whose holders each row of the test split belongs to, -1 nobody's; None where
            that is not known.
    """

    executor: Loop
    data: Dataset
    shares: Tensor
    clients: int
    holdings: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    held: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def __call__(self, w: Tensor) -> dict[str, Any]:
        """Accuracy and loss as columns of a row.

        Args:
            w: `[size]`, the flat weights; or `[models, size]`, where every client has a model of its own: then accuracy
                and loss are means over the models.
        """
        found = [self._by_row(model) for model in w.reshape(-1, w.shape[-1])]
        correct, loss = (torch.stack(rows).mean(0) for rows in zip(*found, strict=True))
        by_part, losses = self._by_part(correct), self._by_part(loss)
        by_tier_a, by_tier_l = {}, {}
        for tier, samples in sorted(self.holdings.items()):
            (parts,) = samples.nonzero()
            weight = torch.from_numpy(samples[parts] / samples.sum())
            by_tier_a[tier], by_tier_l[tier] = float(weight @ by_part[parts]), float(weight @ losses[parts])
        order = by_part.argsort()
        holders = (self.clients - 1 - order) // len(order) + 1
        worst = by_part[order].repeat_interleave(holders)[: max(1, self.clients // 10)]
        by_client = by_part.repeat(math.ceil(self.clients / len(by_part)))[: self.clients]
        return {
            "accuracy": float(correct.mean()),
            "loss": float(loss.mean()),
            "accuracy_by_class": by_tier_a,
            "loss_by_class": by_tier_l,
            "accuracy_worst_tenth": float(worst.mean()),
            "accuracy_spread": float(by_client.std(correction=0)),
        }

    def _by_part(self, values: Tensor) -> Tensor:
        """What clients of each part should expect, `[parts]`, of values of the rows of the test split, `[rows]`."""
        if self.held is not None:
            whose = torch.from_numpy(self.held)
            mine = whose >= 0
            return _means(values[mine], whose[mine], len(self.shares))
        y = self.data.test_y.cpu()
        shares = self.shares * (torch.bincount(y, minlength=self.data.classes) > 0)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-300)
        return client_means(_means(values, y, self.data.classes), shares)

    def _by_row(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each row of the test split is answered right (1 or 0), and its loss, `[test rows]` float64."""
        data, stack = self.data, self._judged(w)
        leaves = full(stack).leaves(w)

        def judge(start: int) -> tuple[Tensor, Tensor]:
            with torch.inference_mode():
                y = data.test_y[start : start + _CHUNK]
                output = stack.forward(leaves, data.test_x[start : start + _CHUNK])
                loss = functional.cross_entropy(output, y, reduction="none")
                return (output.argmax(1) == y).to(torch.float64), loss.to(torch.float64)

        parts = self.executor.map(judge, range(0, len(data.test_y), _CHUNK))
        correct, loss = (torch.cat([p[i] for p in parts]).cpu() for i in (0, 1))
        return correct, loss

    def _judged(self, w: Tensor) -> LayerStack:
        """The model; where it has BatchNorm layers, with statistics under these weights."""
        stack = self.executor.task.stack
        if not batch_norms(stack):
            return stack
        chunks = np.array_split(self.rows, math.ceil(len(self.rows) / _CHUNK))
        parts = self.executor.map(lambda rows: batch_statistics(stack, w, self.data.x[torch.from_numpy(rows)]), chunks)
        return with_statistics(stack, total_variance(parts))


def _means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean of each group, 0 for an empty one."""
    sums = torch.zeros(groups, dtype=values.dtype).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=groups).clamp(min=1)
