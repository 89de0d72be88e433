"""How good a model is, for everyone and for whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    only.

    A model with BatchNorm is judged by statistics of training samples, never by those of the test split.

    Args:
        executor: in whose threads the model runs.
        data: for its test split.
        shares: `[clients, classes]`, each client's mix of labels.
        samples: `[clients]`, how many samples each has.
        tiers: the device class of each client.
        rows: the training samples from which BatchNorm layers take their statistics.
    """

    executor: Loop
    data: Dataset
    shares: Tensor
    samples: np.ndarray[Any, np.dtype[np.int64]]
    tiers: Sequence[str]
    rows: np.ndarray[Any, np.dtype[np.int64]]

    def __call__(self, w: Tensor) -> dict[str, Any]:
        """Accuracy and loss as columns of a row.

        Args:
            w: `[size]`, the flat weights.
        """
        correct, loss, count = self._per_class(w)
        seen = count > 0
        accuracy = torch.where(seen, correct / count.clamp(min=1), 0.0)
        losses = torch.where(seen, loss / count.clamp(min=1), 0.0)
        shares = self.shares * seen
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-300)
        by_client = client_means(accuracy, shares)
        by_tier_a, by_tier_l = {}, {}
        for tier in sorted(set(self.tiers)):
            members = [c for c, t in enumerate(self.tiers) if t == tier]
            weight = torch.from_numpy(self.samples[members].astype(np.float64))
            mix = (shares[members] * weight[:, None]).sum(0) / weight.sum()
            by_tier_a[tier], by_tier_l[tier] = float(mix @ accuracy), float(mix @ losses)
        worst = by_client.sort().values[: max(1, len(by_client) // 10)]
        return {
            "accuracy": float(correct.sum() / count.sum()),
            "loss": float(loss.sum() / count.sum()),
            "accuracy_by_class": by_tier_a,
            "loss_by_class": by_tier_l,
            "accuracy_worst_tenth": float(worst.mean()),
            "accuracy_spread": float(by_client.std(correction=0)),
        }

    def _per_class(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per class: correct answers, summed loss, and samples of the test split, each `[classes]` float64."""
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
        y = data.test_y.cpu()
        zeros = torch.zeros(data.classes, dtype=torch.float64)
        return (
            zeros.index_add(0, y, correct),
            zeros.index_add(0, y, loss),
            torch.bincount(y, minlength=data.classes).to(torch.float64),
        )

    def _judged(self, w: Tensor) -> LayerStack:
        """The model; where it has BatchNorm layers, with statistics under these weights."""
        stack = self.executor.task.stack
        if not batch_norms(stack):
            return stack
        chunks = np.array_split(self.rows, math.ceil(len(self.rows) / _CHUNK))
        parts = self.executor.map(lambda rows: batch_statistics(stack, w, self.data.x[torch.from_numpy(rows)]), chunks)
        return with_statistics(stack, total_variance(parts))
