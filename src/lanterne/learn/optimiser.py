"""Optimisers of a flat vector as plain functions: what they remember is a table of tensors, which a state can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: What an optimiser remembers between steps, by name.
Slots = dict[str, Tensor]


@dataclass(frozen=True)
class Optimiser:
    """Stochastic gradient descent with momentum, or Adam; each acts on every number for itself.

    So two optimisers of the two halves of a vector do, bit for bit, what one of the whole would.

        sgd:   m' = momentum m + g;  w' = w - lr m'
        adam:  m' = beta_1 m + (1 - beta_1) g;  v' = beta_2 v + (1 - beta_2) g^2
               w' = w - lr (m' / (1 - beta_1^t)) / (sqrt(v' / (1 - beta_2^t)) + epsilon)

    Args:
        kind: `sgd` or `adam` (Kingma, Ba, arXiv 1412.6980, Algorithm 1).
        lr: the step size.
        momentum: of `sgd`; 0 remembers nothing.
        betas: of `adam`.
        epsilon: of `adam`.

    Examples:
        >>> w, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5])
        >>> w, slots = Optimiser(lr=0.1, momentum=0.9).step(w, {}, g)
        >>> w.tolist(), slots["m"].tolist()
        ([0.949999988079071, 2.049999952316284], [0.5, -0.5])
    """

    kind: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of what is remembered."""
        return ("m", "v", "t") if self.kind == "adam" else ("m",) if self.momentum else ()

    def remembered(self, w: Tensor) -> int:
        """Bytes of what is remembered of a vector."""
        return sum(8 if name == "t" else w.nbytes for name in self.slots)

    def step(self, w: Tensor, slots: Mapping[str, Tensor], g: Tensor) -> tuple[Tensor, Slots]:
        """One step along a gradient.

        Args:
            w: `[size]`, left as it is.
            slots: what is remembered; empty before the first step. What else is in the table is not looked at.
            g: `[size]`, the gradient.

        Returns:
            The new weights, and what is remembered now.
        """
        if self.kind == "sgd":
            if not self.momentum:
                return torch.sub(w, g, alpha=self.lr), {}
            m = torch.add(g, slots["m"], alpha=self.momentum) if "m" in slots else g
            return torch.sub(w, m, alpha=self.lr), {"m": m}
        one, two = self.betas
        t = slots["t"] + 1 if "t" in slots else torch.ones((), dtype=torch.float64, device=w.device)
        m = torch.mul(slots["m"], one).add_(g, alpha=1 - one) if "m" in slots else g * (1 - one)
        v = torch.mul(slots["v"], two).add_(g * g, alpha=1 - two) if "v" in slots else g * g * (1 - two)
        # The number of steps is a tensor, as everything in a state, so the corrections are, too.
        first, second = (1 - one**t).to(w.dtype), (1 - two**t).to(w.dtype)
        return w - (m / first) * self.lr / ((v / second).sqrt() + self.epsilon), {"m": m, "v": v, "t": t}
