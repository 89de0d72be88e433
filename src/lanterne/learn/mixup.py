"""Mixup of smashed data across clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from lanterne.learn.task import Task
from lanterne.models import ParamView


class Mix(NamedTuple):
    """Which rows are mixed with which, and how: for each of `A` clients, `n` partners from a pool.

    Attributes:
        partners: `[A, n]` int64, numbers of the pool.
        rows: `[A, n, 2, batch]` int64, which rows of the client and of the partner meet.
        share: `[A, n, batch]` or `[A, n, 1]`, lambda: the client's part of the mixture.
    """

    partners: Tensor
    rows: Tensor
    share: Tensor


def mixed(values: Tensor, clients: int, mix: Mix) -> tuple[Tensor, Tensor]:
    """The rows of the clients and of their partners that meet, each `[A, n, batch, ...]`.

    Args:
        values: `[pool, batch, ...]`; the first `A` of the pool are the clients.
        clients: `A`.
        mix: who meets whom.
    """
    own = torch.arange(clients, device=values.device)[:, None, None]
    return values[own, mix.rows[:, :, 0]], values[mix.partners[:, :, None], mix.rows[:, :, 1]]


def mixup_gradient(
    task: Task, view: ParamView, w: Tensor, smashed: Sequence[Tensor], labels: Sequence[Tensor], mix: Mix, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient on mixtures of smashed data.

        s~ = lambda s_i + (1 - lambda) s_j;   L~_ij = lambda loss(f(s~), y_i) + (1 - lambda) loss(f(s~), y_j)

    is the loss for soft labels wherever a loss is linear in them, as cross-entropy is. The loss has to be a mean over
    rows; it is taken row by row.

    Args:
        task: the model and the loss.
        view: blocks that end with the model's last.
        w: `[view.size]`.
        smashed: `[batch, ...]` each, the pool.
        labels: `[batch]` each.
        mix: who is mixed with whom.
        shares: `[A]`, what each mixture of a client counts.

    Returns:
        `[view.size]`, of `sum_i shares_i sum_j L~_ij`, and `[pool, batch, ...]`, with respect to the smashed data; who
        does not send the latter on has a mixup that is detached from the clients.
    """
    clients, _ = mix.partners.shape
    pool, classes = torch.stack(list(smashed)).detach(), torch.stack(list(labels))
    (mine, theirs), (first, second) = mixed(pool, clients, mix), mixed(classes, clients, mix)
    share = mix.share.expand(first.shape)
    part = share.reshape(*share.shape, *[1] * (mine.dim() - share.dim()))
    together = part * mine + (1 - part) * theirs
    weight = (shares[:, None, None] / first.shape[2]).expand(first.shape).reshape(-1)
    lam, one, other = share.reshape(-1), first.reshape(-1), second.reshape(-1)

    def loss(output: Tensor, _: Tensor) -> Tensor:
        by_row = vmap(lambda o, y: task.loss(o[None], y[None]))
        return (weight * (lam * by_row(output, one) + (1 - lam) * by_row(output, other))).sum()

    # The loss is another one at every call: nothing of it is to be recorded.
    g, up = replace(task, loss=loss, recordings=None).gradient_with_input(view, w, together.flatten(0, 2), one)
    up = up.reshape(together.shape)
    back, own = torch.zeros_like(pool), torch.arange(clients, device=pool.device)[:, None, None]
    back.index_put_((own.expand(first.shape), mix.rows[:, :, 0]), part * up, accumulate=True)
    partners = mix.partners[:, :, None].expand(first.shape)
    back.index_put_((partners, mix.rows[:, :, 1]), (1 - part) * up, accumulate=True)
    return g, back
