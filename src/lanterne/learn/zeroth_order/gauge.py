"""How large a step may be where the slope is measured along random directions: it shrinks as the model grows."""

from __future__ import annotations

import math
from typing import NamedTuple

#: eta sqrt(d) up to which runs were stable in one independent record of this estimator; at 1.758 they diverged.
STABLE = 1.435


class Steps(NamedTuple):
    """The largest step sizes of a theorem."""

    server: float
    client: float


def gauge(lr: float, dimension: int) -> float:
    """`eta sqrt(d)`: what of a step size carries over from one model to another.

    Args:
        lr: eta, of SGD on the estimate.
        dimension: d, trained parameters.

    Examples:
        >>> round(gauge(0.01, 3_868_746), 1)
        19.7
    """
    return lr * math.sqrt(dimension)


def too_large(lr: float, dimension: int, name: str = "lr") -> str | None:
    """A sentence of warning for a step size beyond the gauge, with the number; None for one within.

    Args:
        lr: eta, of SGD on the estimate.
        dimension: d, trained parameters.
        name: what the user calls it.

    Examples:
        >>> too_large(1e-4, 10_000) is None
        True
        >>> print(too_large(0.01, 3_868_746))
        lr = 0.01 on 3868746 parameters is eta sqrt(d) = 19.7; runs have been stable up to 1.435. Write 0.00072 or less.
    """
    found = gauge(lr, dimension)
    if found <= STABLE:
        return None
    most = STABLE / math.sqrt(dimension)
    unit = 10.0 ** (math.floor(math.log10(most)) - 1)
    return (
        f"{name} = {lr:g} on {dimension} parameters is eta sqrt(d) = {found:.3g}; runs have been stable up to "
        f"{STABLE}. Write {math.floor(most / unit) * unit:g} or less."
    )


def largest_steps(smoothness: float, tau: int, server: int, client: int, clients: int = 1) -> Steps:
    """The step sizes that the theorems of MU-SplitFed allow (arXiv 2510.21155, Theorems 4.1 and 4.3).

    One client:   eta <= min(1 / (64 L (tau + 2 d_s)), 1 / (16 L tau d_c))
    M clients:    eta <= min(1 / (120 L (tau + 2 d_s)), M / (12 L tau d_c))
    where the server steps by eta and the client by tau eta.

    Args:
        smoothness: L, of the loss.
        tau: server steps per round.
        server: d_s, trained parameters of the server's half.
        client: d_c, those of a client's.
        clients: M, active in a round.

    Examples:
        >>> largest_steps(1.0, 2, 100, 10).server == 1 / (64 * 202)
        True
    """
    if clients == 1:
        eta = min(1 / (64 * smoothness * (tau + 2 * server)), 1 / (16 * smoothness * tau * client))
    else:
        # The body's and the appendix's caps differ; this is the smaller of the two.
        eta = min(1 / (120 * smoothness * (tau + 2 * server)), clients / (12 * smoothness * tau * client))
    return Steps(eta, tau * eta)
