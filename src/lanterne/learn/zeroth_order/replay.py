"""An update from a key and numbers: whoever has them makes the same one, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lanterne.errors import ConfigError
from lanterne.learn.optimiser import Optimiser, Slots
from lanterne.learn.zeroth_order.directions import Direction, direction, factor, pieces, scaled, stretched
from lanterne.learn.zeroth_order.estimate import Probes
from lanterne.learn.zeroth_order.group import Group


def coefficients(group: Group, probes: Probes, scalars: Tensor) -> Tensor:
    """What each direction is multiplied with in the estimate, `factor c_p / P`; 0 for what is not finite.

    The mean is over the probes that are finite; where none is the estimate is 0.

    Args:
        group: what was perturbed.
        probes: how.
        scalars: `[P]`.

    Returns:
        `[P]`, float64.

    Raises:
        ConfigError: for another number of scalars than of probes.
    """
    if scalars.shape != (probes.count,):
        raise ConfigError(
            f"An update of {probes.count} probes needs scalars of shape ({probes.count},), not {tuple(scalars.shape)}: "
            "each belongs to one direction. Give those of one estimate."
        )
    finite = scalars.isfinite()
    kept = torch.where(finite, scalars, 0.0).to(torch.float64)
    return kept * (factor(probes.directions, group.dimension) / finite.sum().clamp(min=1).to(torch.float64))


def slope(group: Group, key: Tensor, scalars: Tensor, probes: Probes, dtype: torch.dtype) -> Tensor:
    """The estimate as a vector, `g = factor (1/P) sum_p c_p u_p`; what is not trained has slope 0.

    Args:
        group: what was perturbed.
        key: of the estimate.
        scalars: `[P]`, of the estimate.
        probes: of the estimate.
        dtype: of the parameters.

    Returns:
        `[group.size]`.
    """
    g = torch.zeros(group.size, dtype=dtype, device=key.device)
    return replay(group, g, key, scalars, probes, Optimiser(lr=-1.0))[0]


def replay(
    group: Group,
    w: Tensor,
    key: Tensor,
    scalars: Tensor,
    probes: Probes,
    optimiser: Optimiser,
    slots: Mapping[str, Tensor] | None = None,
    *,
    consume: bool = False,
) -> tuple[Tensor, Slots]:
    """One step of an optimiser along an estimate.

    There is no other way to make the step: so one that is made again from `(key, scalars)` has the same bits.

    Args:
        group: what was perturbed.
        w: `[group.size]`, left as it is.
        key: of the estimate.
        scalars: `[P]`, of the estimate.
        probes: of the estimate.
        optimiser: SGD or Adam.
        slots: what the optimiser remembers; nothing before the first step. Nothing else is in it.
        consume: step in place, where that can be done: `w` and the slots then belong to the caller.

    Returns:
        The new weights, and what is remembered now. What is not trained keeps its bits.

    Examples:
        >>> from torch import nn
        >>> from lanterne.learn import Task
        >>> from lanterne.learn.zeroth_order import estimate, group_of
        >>> from lanterne.models import LayerStack, full
        >>> stack = LayerStack(nn.Sequential(nn.Linear(3, 2)), (3,))
        >>> group, probes, key = group_of(Task(stack), full(stack)), Probes("rademacher"), torch.tensor(7)
        >>> scalars = torch.tensor([0.5])
        >>> w, _ = replay(group, torch.zeros(8), key, scalars, probes, Optimiser(lr=0.1))
        >>> w.abs().unique()
        tensor([0.0500])
    """
    key, by = key.to(w.device), coefficients(group, probes, scalars)
    whole = group.functional or w.is_meta
    found = [direction(group, probes.directions, key, p, w.dtype) for p in range(probes.count)]
    factors = [stretched(u, by[p], w.dtype) for p, u in enumerate(found)]
    remembered = {name: value for name, value in (slots or {}).items() if name in optimiser.slots}
    steps = _Steps(w, remembered, optimiser, consume=consume, whole=whole)
    for i, held in enumerate(group.trained):
        for first, last in pieces(probes.directions, held.size, w.device, whole=whole):
            g = _sum(found, factors, i, first, last)
            steps.take(held.first + first, held.first + last, g)
    return steps.done()


def _sum(found: list[Direction], factors: list[Tensor], tensor: int, first: int, last: int) -> Tensor:
    """A piece of the estimate; the probes are added up in their order."""
    g = scaled(found[0], tensor, first, last, factors[0])
    for u, by in zip(found[1:], factors[1:], strict=True):
        g = g + scaled(u, tensor, first, last, by)
    return g


class _Steps:
    """Steps of an optimiser on pieces of a vector, in their order; what lies between them stays as it is."""

    def __init__(self, w: Tensor, slots: Slots, optimiser: Optimiser, *, consume: bool, whole: bool) -> None:
        self.optimiser, self.whole, self.given = optimiser, whole, slots
        self.single = {name: value for name, value in slots.items() if value.dim() == 0}
        vectors = {"w": w}
        for name in optimiser.slots:
            if name != "t":
                vectors[name] = slots[name] if name in slots else torch.zeros_like(w)
        copied = not (consume or whole)
        self.vectors = {name: value.clone() if copied else value for name, value in vectors.items()}
        self.parts: dict[str, list[Tensor]] = {name: [] for name in vectors}
        self.after: Slots = {}
        self.end = 0

    def take(self, first: int, last: int, g: Tensor) -> None:
        """A step on one piece."""
        begun = {name: self.vectors[name][first:last] for name in self.vectors if name in self.given}
        w, slots = self.optimiser.step(self.vectors["w"][first:last], {**begun, **self.single}, g)
        for name, value in {"w": w, **slots}.items():
            if name not in self.vectors:
                self.after[name] = value
            elif self.whole:
                self.parts[name] += [self.vectors[name][self.end : first], value]
            else:
                self.vectors[name][first:last] = value
        self.end = last

    def done(self) -> tuple[Tensor, Slots]:
        """The weights and what is remembered."""
        found = self.vectors
        if self.whole:
            found = {name: torch.cat([*self.parts[name], whole[self.end :]]) for name, whole in found.items()}
        w = found["w"]
        return w, {**{name: value for name, value in found.items() if name != "w"}, **self.after}
