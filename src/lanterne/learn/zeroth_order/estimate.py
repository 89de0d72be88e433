"""What forward passes alone say of the slope: one number for each direction.

    forward:  c_p = (f(w + mu u_p) - f(w)) / mu
    central:  c_p = (f(w + mu u_p) - f(w - mu u_p)) / (2 mu)
    g = factor (1/P) sum_p c_p u_p

Nobody holds `g`: the numbers `c_p` and the key of the `u_p` are all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import vmap

from lanterne.errors import ConfigError, nearest
from lanterne.learn.zeroth_order.directions import Direction, Kind, direction, factor
from lanterne.learn.zeroth_order.group import Group
from lanterne.learn.zeroth_order.perturbed import Perturbed, moved_

Difference = Literal["forward", "central"]
Restore = Literal["functional", "snapshot", "arithmetic"]

#: So many probes of a group of so many parameters at most go through together, under `vmap`: on a core they take half
#: the time or less. Larger groups are faster one probe after the other, and so are few probes.
TOGETHER_PROBES, TOGETHER_SIZE = 4, 1 << 14


@dataclass(frozen=True)
class Probes:
    """How slopes are measured.

    Args:
        directions: `gaussian`, `sphere` (of radius sqrt(d)), `unit-sphere` (and a factor d), or `rademacher`.
        difference: `forward` is one evaluation per probe and one at the weights themselves, `central` two per probe.
        count: `P`, probes per estimate.
        radius: `mu`, how far along a direction.
        restore: how the weights come back: `functional` makes each tensor where it is used and leaves them alone,
            `snapshot` moves a copy of all of them, `arithmetic` adds and subtracts in place, which does not give the
            same bits back: the weights must belong to the caller. Many probes of a small group go through together,
            and are functional.

    Raises:
        ConfigError: for a value that is none of these.
    """

    directions: Kind = "gaussian"
    difference: Difference = "forward"
    count: int = 1
    radius: float = 1e-3
    restore: Restore = "functional"

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        factor(self.directions, 1)
        for what, value, known in (
            ("difference", self.difference, get_args(Difference)),
            ("way to restore weights", self.restore, get_args(Restore)),
        ):
            if value not in known:
                raise ConfigError(f"{value!r} is not a {what}. {nearest(value, known)}")
        if self.count < 1:
            raise ConfigError(f"{self.count} probes measure nothing. Write 1 or more.")
        if not 0 < self.radius < float("inf"):
            raise ConfigError(
                f"A smoothing radius of {self.radius} gives no difference. Write a small number, as 1e-3."
            )

    def evaluations(self, *, base: bool = False) -> int:
        """Forward passes of an estimate, `1 + P` or `2P`: each is a `Pass("forward", ...)`.

        Args:
            base: whether the output at the weights themselves is wanted in any case.
        """
        return self.count * 2 + base if self.difference == "central" else self.count + 1

    def held(self, group: Group, dtype: torch.dtype) -> int:
        """Bytes that a device holds besides the weights and a forward pass: the tensor that is being perturbed.

        Args:
            group: what is perturbed.
            dtype: of the parameters.
        """
        most = {"functional": max(held.size for held in group.trained), "snapshot": group.size, "arithmetic": 0}
        return most[self.restore] * dtype.itemsize


class Estimate(NamedTuple):
    """What the forward passes of an estimate gave.

    `scalars` is `[P]`: with the key they are the estimate. One that is not finite counts for nothing. `loss` is that at
    the weights, or where nothing was evaluated there the mean over the probes; 0-d. `output` is what the first segment
    gave at the weights: smashed data, without a graph; None where nothing was evaluated there.
    """

    scalars: Tensor
    loss: Tensor
    output: Tensor | None

    @property
    def dropped(self) -> Tensor:
        """How many probes were dropped because their losses were not finite, 0-d int64."""
        return (~self.scalars.isfinite()).sum()


def estimate(
    group: Group, w: Tensor, x: Tensor, y: Tensor, key: Tensor, probes: Probes, *, base: bool = False
) -> Estimate:
    """Measure the slope of the loss along random directions, by forward passes without a graph.

    Args:
        group: what is perturbed, and what the samples go through; ends with what gives the loss its input.
        w: `[group.size]`, left as it is unless weights are restored by arithmetic.
        x: `[batch, ...]`, the input of the first segment.
        y: `[batch]`, labels.
        key: 0-d int64: of the run, the purpose, the round, the client and the step.
        probes: how.
        base: whether output and loss at the weights themselves are wanted in any case.

    Raises:
        ConfigError: for weights of less than 32 bits.

    Examples:
        >>> from torch import nn
        >>> from lanterne.learn import Task
        >>> from lanterne.learn.zeroth_order import group_of
        >>> from lanterne.models import LayerStack, full
        >>> stack = LayerStack(nn.Sequential(nn.Linear(3, 2)), (3,))
        >>> group = group_of(Task(stack), full(stack))
        >>> x, y, key = torch.ones(4, 3), torch.tensor([0, 1, 0, 0]), torch.tensor(7)
        >>> found = estimate(group, torch.zeros(8), x, y, key, Probes(count=2))
        >>> found.scalars.shape, int(found.dropped), found.output.shape
        (torch.Size([2]), 0, torch.Size([4, 2]))
    """
    _check(probes, w, functional=group.functional)
    together = probes.count >= TOGETHER_PROBES and group.size <= TOGETHER_SIZE
    if together:
        group = group.inside
    key = key.to(w.device)  # an executor makes keys on the CPU
    central, mu = probes.difference == "central", probes.radius
    task = group.segments[-1].task
    with torch.inference_mode():
        output = None
        loss = None
        if base or not central:
            outputs = through(group, [Perturbed(group, s, w, None, 0.0) for s in range(len(group.segments))], x)
            output, loss = outputs[0], task.loss(outputs[-1], y)

        def losses(probe: int | Tensor) -> tuple[Tensor, Tensor]:
            """At both ends of a difference."""
            u = direction(group, probes.directions, key, probe, w.dtype)

            def at(weights: Callable[[float], Sequence[Sequence[Tensor]]], shift: float) -> Tensor:
                return task.loss(through(group, weights(shift), x)[-1], y)

            with _Displaced(group, w, u, probes.restore) as weights:
                high = at(weights, mu)
                return high, at(weights, -mu) if central or loss is None else loss

        if together:
            high, low = vmap(losses)(torch.arange(probes.count, device=key.device))
        else:
            high, low = (torch.stack(side) for side in zip(*map(losses, range(probes.count)), strict=True))
        scalars = (high - low) / (2 * mu if central else mu)
        if loss is None:
            loss = (high + low).mean() / 2
    # What was made under inference mode must never meet autograd: the smashed data will.
    return Estimate(scalars.clone(), loss.clone(), None if output is None else output.clone())


def through(group: Group, leaves: Sequence[Sequence[Tensor]], x: Tensor) -> list[Tensor]:
    """The output of each segment.

    Args:
        group: the segments.
        leaves: the tensors of each.
        x: the input of the first.
    """
    outputs = []
    for segment, tensors in zip(group.segments, leaves, strict=True):
        x = segment.task.forward(tensors, x, segment.view.first, segment.view.last)
        outputs.append(x)
    return outputs


class _Displaced:
    """The weights along one direction, and at the end where they were."""

    def __init__(self, group: Group, w: Tensor, u: Direction, restore: Restore) -> None:
        self.group, self.w, self.u, self.restore = group, w, u, restore
        self.at = 0.0

    def __enter__(self) -> Callable[[float], Sequence[Sequence[Tensor]]]:
        return self

    def __call__(self, shift: float) -> Sequence[Sequence[Tensor]]:
        """The tensors of each segment, `shift` along the direction."""
        segments = range(len(self.group.segments))
        if self.restore == "functional" or self.group.functional or self.w.is_meta:
            return [Perturbed(self.group, s, self.w, self.u, shift) for s in segments]
        if self.restore == "snapshot":
            there = moved_(self.group, self.w.clone(), self.u, shift)
        else:
            there = moved_(self.group, self.w, self.u, shift - self.at)
            self.at = shift
        return [Perturbed(self.group, s, there, None, 0.0) for s in segments]

    def __exit__(self, *error: object) -> None:
        if self.at:
            moved_(self.group, self.w, self.u, -self.at)
            self.at = 0.0


def _check(probes: Probes, w: Tensor, *, functional: bool) -> None:
    """Refuse what would lose the steps in rounding."""
    if w.dtype.itemsize < 4:
        name = str(w.dtype).removeprefix("torch.")
        if probes.restore == "arithmetic":
            raise ConfigError(
                f"Weights of {name} do not come back from adding and subtracting a perturbation: they drift by a "
                "hundredth in a thousand steps. Write restore='functional', and keep the weights in float32."
            )
        raise ConfigError(
            f"Weights of {name} cannot be trained without back-propagation: the steps are smaller than their rounding. "
            "Keep them in float32."
        )
    if functional and probes.restore == "arithmetic":
        raise ConfigError(
            "restore='arithmetic' writes into the weights, which several clients that are computed together cannot. "
            "Write restore='functional', or take the executor 'loop'."
        )
