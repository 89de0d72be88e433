"""Weighted mean and covariance of rows, label by label, as they arrive; and rows drawn from the Gaussians they make.

As Yang and Liu keep them of smashed data (GAS, AAAI 2025, arXiv 2409.01251). Of all rows `a_i` of one label with
weights `s_i`:

    mu = sum_i s_i a_i / sum_i s_i;    Sigma = sum_i s_i (a_i - mu) (a_i - mu)^T / sum_i s_i
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lanterne.learn.losses import NO_LABEL
from lanterne.learn.noise import normal

#: What is added to the diagonal of a covariance when rows are drawn, and never to what is kept.
RIDGE = 1e-5


class Moments(NamedTuple):
    """What has been seen of each label, in float64.

    `log_weight` is `[labels]`, the logarithm of the sum of weights (-inf before the first row: so weights may grow
    without bounds); `mean` is `[labels, q]`; `spread` is `[labels, q]`, variances, or `[labels, q, q]`, covariances.
    """

    log_weight: Tensor
    mean: Tensor
    spread: Tensor


def no_moments(labels: int, q: int, *, full: bool, device: torch.device | str = "cpu") -> Moments:
    """Before the first row.

    Args:
        labels: how many there are.
        q: numbers in a row.
        full: whether covariances are kept, or variances alone.
        device: where.
    """

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    return Moments(zeros(labels) - torch.inf, zeros(labels, q), zeros(labels, q, q) if full else zeros(labels, q))


def absorb(moments: Moments, x: Tensor, y: Tensor, log_weight: Tensor) -> Moments:
    """The moments with some more rows, all of one weight.

    Row by row this is, with `S` the sum of weights before and `d = mu' - mu`,

        mu' = (S mu + s a) / (S + s);    Sigma' = [S (Sigma + d d^T) + s (mu' - a) (mu' - a)^T] / (S + s)

    and here for all rows of a label at once, in the share `r` that they have in the sum of weights.

    Args:
        moments: before.
        x: `[rows, q]`.
        y: `[rows]`, their labels.
        log_weight: 0-d, `log s`.

    Returns:
        The moments after; those of a label without a row are as they were.

    Examples:
        >>> x, y = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1])
        >>> after = absorb(no_moments(2, 1, full=False), x, y, torch.tensor(0.0))
        >>> after.mean.tolist(), after.spread.tolist()
        ([[2.0], [7.0]], [[1.0], [0.0]])
    """
    labels, x = len(moments.mean), x.to(torch.float64)
    rows = torch.zeros_like(moments.log_weight).index_add(0, y, torch.ones_like(x[:, 0]))
    each = rows.clamp(min=1.0)[:, None]
    centre = torch.zeros_like(moments.mean).index_add(0, y, x) / each
    added = log_weight + torch.log(rows)
    total = torch.logaddexp(moments.log_weight, added)
    share = torch.where(rows > 0, torch.exp(added - total), 0.0)[:, None]
    shift, deviation = centre - moments.mean, x - centre[y]
    if moments.spread.dim() == 2:
        within = torch.zeros_like(moments.mean).index_add(0, y, deviation.square()) / each
        between = shift.square()
    else:
        mine = y == torch.arange(labels, device=y.device)[:, None]
        own = torch.where(mine[:, :, None], deviation, 0.0)
        within = torch.bmm(own.transpose(1, 2), own) / each[:, :, None]
        between = shift[:, :, None] * shift[:, None, :]
    part = share if moments.spread.dim() == 2 else share[:, :, None]
    spread = (1.0 - part) * moments.spread + part * within + part * (1.0 - part) * between
    return Moments(total, moments.mean + share * shift, spread)


def drawn(moments: Moments, noise: Tensor) -> Tensor:
    """Rows of each label's Gaussian, `mu + L z` with `L L^T = Sigma + RIDGE I`, or `mu + sqrt(Sigma) z` of variances.

    Args:
        moments: of the labels.
        noise: `[labels, rows, q]`, standard normal.

    Returns:
        `[labels, rows, q]`.

    Examples:
        >>> moments = Moments(torch.zeros(1), torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]]))
        >>> drawn(moments, torch.tensor([[[1.0, 1.0], [-1.0, 0.5]]])).tolist()
        [[[3.0, 2.0], [-1.0, 2.0]]]
    """
    mean, spread = moments.mean[:, None], moments.spread
    if spread.dim() == 2:
        return mean + torch.sqrt(spread)[:, None] * noise
    ridge = RIDGE * torch.eye(spread.shape[-1], dtype=spread.dtype, device=spread.device)
    root, _ = torch.linalg.cholesky_ex(spread + ridge)
    return mean + torch.bmm(noise, root.transpose(1, 2))


def topped_up(moments: Moments, x: Tensor, y: Tensor, rows: int, key: Tensor) -> tuple[Tensor, Tensor]:
    """A batch with rows drawn from each label's Gaussian, until there are `rows` of each label.

    Always as many rows are drawn as if none were there; those that are not needed, and those of labels that have never
    been seen, get `NO_LABEL`, so that they count for nothing in a cross-entropy.

    Args:
        moments: of the labels.
        x: `[batch, ...]`.
        y: `[batch]`, the labels.
        rows: how many rows of a label are enough.
        key: 0-d, int64, of the draw.

    Returns:
        `[batch + labels * rows, ...]` and `[batch + labels * rows]`, the batch first.

    Examples:
        >>> x, y = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 2])
        >>> moments = absorb(no_moments(3, 1, full=False), x, y, torch.tensor(0.0))
        >>> x, y = topped_up(moments, x, y, 2, torch.tensor(1))
        >>> y.tolist(), x[-1].tolist()
        ([0, 0, 2, -100, -100, -100, -100, -100, 2], [7.0])
    """
    labels, q = moments.mean.shape
    there = torch.zeros_like(moments.log_weight).index_add(0, y, torch.ones_like(y, dtype=torch.float64))
    missing = torch.arange(rows, device=y.device) >= there[:, None]
    wanted = missing & torch.isfinite(moments.log_weight)[:, None]
    made = torch.where(wanted, torch.arange(labels, device=y.device)[:, None], NO_LABEL)
    generated = drawn(moments, normal(key.to(y.device), (labels, rows, q))).to(x.dtype)
    return torch.cat([x, generated.reshape(-1, *x.shape[1:])]), torch.cat([y, made.flatten()])
