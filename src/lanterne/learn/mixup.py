"""Mixup of smashed data across clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from lanterne.learn.losses import Loss, cross_entropy
from lanterne.learn.task import Task
from lanterne.models import ParamView

Share = Literal["pair", "sample", "constant"]
Choice = Literal["random", "rotation", "replacement"]


class Mix(NamedTuple):
    """Who is mixed with whom, and how: for each of `A` clients, `n` partners from a pool that begins with them.

    Attributes:
        partners: `[A, n]` int64, numbers of the pool.
        rows: `[A, n, 2, batch]` int64, which rows of the client and of the partner meet.
        share: `[A, n, batch]` float64, lambda: a client's part of each mixture.
    """

    partners: Tensor
    rows: Tensor
    share: Tensor


def draw_mix(
    generator: np.random.Generator,
    clients: int,
    pool: int,
    partners: int,
    batch: int,
    *,
    alpha: float = 1.0,
    share: Share = "pair",
    choice: Choice = "random",
) -> Mix:
    """Draw who is mixed with whom.

        lambda ~ Beta(alpha, alpha)

    Args:
        generator: of the draws.
        clients: `A`.
        pool: how many there are to be mixed with, the clients first among them.
        partners: `n` for each client; `pool - 1` where that is less, unless they are drawn with replacement.
        batch: rows of each of the pool.
        alpha: of the distribution.
        share: one lambda for each `pair`, one for each `sample`, or the `constant` 0.5.
        choice: `random` without replacement and never oneself; `rotation`: those next in turn; `replacement`: anybody,
            oneself included.

    Examples:
        >>> mix = draw_mix(np.random.default_rng(0), clients=3, pool=3, partners=5, batch=4, choice="rotation")
        >>> mix.partners.tolist()
        [[1, 2], [2, 0], [0, 1]]
        >>> mix.rows.shape, mix.share.shape
        (torch.Size([3, 2, 2, 4]), torch.Size([3, 2, 4]))
    """
    if choice == "replacement":
        whom = generator.integers(0, pool, (clients, partners))
    else:
        steps = np.arange(1, min(partners, pool - 1) + 1)
        drawn = [
            steps if choice == "rotation" else 1 + generator.permutation(pool - 1)[: len(steps)] for _ in range(clients)
        ]
        whom = (np.arange(clients)[:, None] + np.array(drawn, dtype=np.int64).reshape(clients, -1)) % pool
    n = whom.shape[1]
    rows = generator.permuted(np.broadcast_to(np.arange(batch), (clients, n, 2, batch)), axis=-1)
    if share == "constant":
        lam = np.full((clients, n, 1), 0.5)
    else:
        lam = generator.beta(alpha, alpha, (clients, n, batch if share == "sample" else 1))
    return Mix(torch.from_numpy(whom), torch.from_numpy(rows), torch.from_numpy(lam).expand(clients, n, batch).clone())


def mixtures(values: Sequence[Tensor], mix: Mix) -> Tensor:
    """`lambda s_i + (1 - lambda) s_j` for each pair.

    Args:
        values: `[batch, ...]` each, the pool.
        mix: who is mixed with whom.

    Returns:
        `[A, n, batch, ...]`.

    Examples:
        >>> mix = Mix(torch.tensor([[1]]), torch.tensor([[[[0, 1], [1, 0]]]]), torch.tensor([[[0.75, 0.75]]]))
        >>> mixtures([torch.tensor([[4.0], [8.0]]), torch.tensor([[0.0], [2.0]])], mix).flatten()
        tensor([3.5000, 6.0000])
    """
    mine, theirs = _meeting(torch.stack(list(values)), mix)
    lam = _as_wide(mix.share.to(mine.dtype), mine)
    return lam * mine + (1 - lam) * theirs


def _meeting(pool: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """The rows of the clients and those of their partners that meet, each `[A, n, batch, ...]`."""
    own = torch.arange(len(mix.partners), device=pool.device)[:, None, None]
    return pool[own, mix.rows[:, :, 0]], pool[mix.partners[:, :, None], mix.rows[:, :, 1]]


def _as_wide(share: Tensor, like: Tensor) -> Tensor:
    """With as many dimensions."""
    return share.reshape(*share.shape, *[1] * (like.dim() - share.dim()))


@dataclass(frozen=True)
class SoftLoss:
    """A loss on mixed labels, `lambda loss(z, y_i) + (1 - lambda) loss(z, y_j)`, from one on labels.

    For cross-entropy it is that of the mixed one-hot labels, since that is linear in them.

    Args:
        loss: of the model's output and the labels, a mean over rows.
    """

    loss: Loss

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss.

        Args:
            output: `[batch, ...]`.
            labels: `[batch, 3, ...]`: both labels, and lambda.
        """
        by_row = _by_row(self.loss)
        first, second = labels[:, 0].to(torch.int64), labels[:, 1].to(torch.int64)
        lam = labels[:, 2].reshape(len(labels), -1)[:, 0].to(output.dtype)
        return (lam * by_row(output, first) + (1 - lam) * by_row(output, second)).mean()


def _by_row(loss: Loss) -> Loss:
    """`[batch]`: a loss of each row. Recordings know nothing of a transform, so the usual one goes without."""
    if loss is cross_entropy:
        return partial(functional.cross_entropy, reduction="none")
    return vmap(lambda o, y: loss(o[None], y[None]))


def mixup_gradient(
    task: Task,
    view: ParamView,
    w: Tensor,
    smashed: Sequence[Tensor],
    labels: Sequence[Tensor],
    mix: Mix,
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The gradient on mixtures of smashed data.

        s~_ij = lambda s_i + (1 - lambda) s_j;   L~_ij = lambda loss(f(s~_ij), y_i) + (1 - lambda) loss(f(s~_ij), y_j)

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`.
        smashed: `[batch, ...]` each, the pool.
        labels: `[batch, ...]` each.
        mix: who is mixed with whom.
        weights: for each of the clients, what each of its mixtures counts; none of them 0.

    Returns:
        `[view.size]`, of `sum_i weights_i sum_j L~_ij`, and `[pool, batch, ...]`, with respect to the smashed data: who
        does not send the latter on has a mixup that is detached from the clients.
    """
    together = mixtures(smashed, mix)
    first, second = _meeting(torch.stack(list(labels)).to(torch.float64), mix)
    classes = torch.stack([first, second, _as_wide(mix.share, first).expand_as(first)], 3)
    each = [weight for weight in weights for _ in range(mix.partners.shape[1])]
    pairs = together.flatten(0, 1).unbind(), classes.flatten(0, 1).unbind()
    g, ups = replace(task, loss=SoftLoss(task.loss)).gradient_with_inputs(view, w, *pairs, each)
    up = torch.stack([weight * up for weight, up in zip(each, ups, strict=True)]).reshape(together.shape)
    lam = _as_wide(mix.share.to(up.dtype), up)
    back, own = torch.zeros_like(torch.stack(list(smashed))), torch.arange(len(weights), device=up.device)
    back.index_put_((own[:, None, None], mix.rows[:, :, 0]), lam * up, accumulate=True)
    back.index_put_((mix.partners[:, :, None], mix.rows[:, :, 1]), (1 - lam) * up, accumulate=True)
    return g, back
