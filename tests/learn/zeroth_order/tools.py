"""Small problems of the zeroth-order tests: what can be said of them exactly, or by other means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lanterne.learn import Task
from lanterne.learn.noise import derived
from lanterne.learn.zeroth_order import Group, Probes, estimate, group_of, slope
from lanterne.models import LayerStack, full
from lanterne.rng import fold, generator

KINDS = ("gaussian", "sphere", "unit-sphere", "rademacher")


def key(*parts: int | str) -> Tensor:
    return torch.tensor(fold(0, "tests", *parts))


def total(output: Tensor, labels: Tensor) -> Tensor:
    return output.sum() - labels.sum()


def squares(output: Tensor, labels: Tensor) -> Tensor:
    return (output[:, 0] - labels).square().sum() / 2


def linear(size: int, loss: Any, *, functional: bool = False) -> Group:
    """`f(w) = loss(x w, y)` for a vector `w`."""
    stack = LayerStack(nn.Sequential(nn.Linear(size, 1, bias=False)), (size,))
    return group_of(Task(stack, loss, functional=functional), full(stack))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(generator(seed, "numbers", *shape).standard_normal(shape))


def u_of(group: Group, key: Tensor, kind: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """The direction itself."""
    probes = Probes(kind)
    g = slope(group, key, torch.ones(1, dtype=torch.float64), probes, dtype)
    return g / group.dimension if kind == "unit-sphere" else g


def estimates(group: Group, w: Tensor, x: Tensor, y: Tensor, probes: Probes, n: int, name: str) -> Tensor:
    """`[n, size]`: estimates at one point with keys of their own."""

    def one(k: Tensor) -> Tensor:
        return slope(group, k, estimate(group, w, x, y, k, probes).scalars, probes, w.dtype)

    keys = derived(key(name), torch.arange(n))
    return torch.cat([torch.func.vmap(one)(part) for part in keys.split(2000)])
