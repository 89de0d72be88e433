"""ADEL-FL's deadlines: how long each round of SALF should last where all rounds together have a budget of time.

Goren, Lang, Shlezinger, Cohen, "Adaptive Deadline and Batch Layered Synchronized Federated Learning", arXiv 2505.23973.
Its text was not readable to us; the bound is that of the authors' code. After R rounds with steps `eta_t`

    E |w_R - w*|^2 <= prod_t (1 - rho eta_t) D + sum_t c_t (B + C(T_t)),    c_t = eta_t^2 prod_{s>t} (1 - rho eta_s)
    C(T) = G^2 4U/(U-1) F(T),    F(T) = sum_l (1 + p_l(T)) / (1 - p_l(T))

where `p_l(T)` is the chance that nobody reaches layer l by T. What the deadlines decide is

    min sum_t c_t F(T_t)   subject to   sum_t T_t <= budget
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.device import Floats
from lanterne.fleet.fleet import Fleet
from lanterne.fleet.timing import Job, reach

#: `rho`, the strong convexity that the authors' code assumes.
STRONG_CONVEXITY = 0.3
#: Deadlines that are tried, and how far from a second on either side; devices that stand for a larger fleet.
_GRID, _DOUBLINGS, _DEVICES = 256, 50, 100
#: How many times its limit the variance may be at most, and how close to the limit it is as good as there.
_NOBODY, _EVERYBODY = 1e6, 1e-6


def empty_layers(fleet: Fleet, job: Job, layers: int, cohort: int | None = None) -> Callable[[float], Floats]:
    """The chance that nobody reaches a layer in the first local step, as a function of the deadline.

    With all clients it is `prod_u (1 - q_u,l)`; with a cohort of U drawn from them `(mean_u (1 - q_u,l))^U`, which is
    at least the exact one. Of a large fleet 100 devices, evenly taken, stand for all.

    Args:
        fleet: the devices.
        job: what each is asked.
        layers: of the model.
        cohort: clients invited per round; None is all.

    Returns:
        A function of seconds that gives `p_l`, `[layers]`, from the output to the input.
    """
    chosen = [fleet.devices[c] for c in range(0, len(fleet), math.ceil(len(fleet) / _DEVICES))]
    counts: dict[int, int] = {}
    for device in chosen:
        counts[id(device)] = counts.get(id(device), 0) + 1
    kinds = list({id(device): device for device in chosen}.values())
    share = np.array([counts[id(device)] for device in kinds])[:, None] / len(chosen)
    units = np.flatnonzero(job.work.backward)[:layers]

    def chances(deadline: float) -> Floats:
        asked = job._replace(deadline=deadline)
        heard = np.array([(1.0 - device.dropout) * (1.0 - device.failure) for device in kinds])[:, None]
        missed = 1.0 - heard * np.array([reach(device, asked)[units] for device in kinds])
        if cohort is not None and cohort < len(fleet):
            return np.asarray((share * missed).sum(0) ** cohort)
        return np.asarray(np.prod(missed ** (share * len(fleet)), axis=0))

    return chances


def round_weights(steps: Sequence[float], strong_convexity: float = STRONG_CONVEXITY) -> Floats:
    """How much a round's error counts at the end, `c_t = eta_t^2 prod_{s>t} (1 - rho eta_s)`.

    Args:
        steps: `eta_t`, each round's step size.
        strong_convexity: `rho`.

    Examples:
        >>> round_weights([0.5, 0.5], 1.0).tolist()
        [0.125, 0.25]
    """
    eta = np.asarray(steps, dtype=np.float64)
    kept = np.clip(1.0 - strong_convexity * eta, 0.0, None)
    later = np.append(np.cumprod(kept[::-1])[::-1][1:], 1.0)
    return np.asarray(eta**2 * later)


def variance(chances: Floats) -> float:
    """`F = sum_l (1 + p_l) / (1 - p_l)`, infinite where a layer is never reached."""
    return float(((1.0 + chances) / (1.0 - chances)).sum()) if (chances < 1.0).all() else math.inf


def share_out(seconds: Floats, cost: Floats, weights: Floats, budget: float) -> Floats:
    """`argmin sum_t weights_t cost(T_t)` subject to `sum_t T_t <= budget`, for the convex hull of a tabulated cost.

    On the hull the cost is made of segments, the steepest first, so that the best use of time is to buy segments in
    the order of what they bring per second: the exact solution of the linear programme.

    Args:
        seconds: `[points]`, ascending.
        cost: `[points]`, finite.
        weights: `[rounds]`.
        budget: at least `rounds * seconds[0]`.

    Returns:
        `T`, `[rounds]`. Time that would bring nothing is not spent.
    """
    hull: list[int] = []
    for i in range(len(seconds)):
        while len(hull) > 1 and _right_of(seconds, cost, hull[-2], i, hull[-1]):
            hull.pop()
        hull.append(i)
    widths, falls = np.diff(seconds[hull]), -np.diff(cost[hull])
    widths, falls = widths[falls > 0], falls[falls > 0]
    gain = np.outer(weights, falls / widths).ravel()
    order = np.argsort(-gain, kind="stable")
    wanted = np.tile(widths, len(weights))[order]
    left = budget - len(weights) * seconds[0]
    taken = np.clip(left - (np.cumsum(wanted) - wanted), 0.0, wanted)
    return np.asarray(seconds[0] + np.bincount(order // max(len(widths), 1), taken, minlength=len(weights)))


def _right_of(x: Floats, y: Floats, a: int, b: int, point: int) -> bool:
    """Whether a point lies on or above the line from `a` to `b`."""
    return bool((y[point] - y[a]) * (x[b] - x[a]) >= (y[b] - y[a]) * (x[point] - x[a]))


def adel_deadlines(chances: Callable[[float], Floats], weights: Floats, budget: float) -> tuple[float, ...]:
    """Each round's deadline.

    Args:
        chances: `p_l(T)`, from `empty_layers`.
        weights: `c_t`, from `round_weights`.
        budget: seconds for all rounds together.

    Returns:
        `T_t`, whose sum is at most the budget; less where more time brings less than a millionth.

    Raises:
        FleetError: where nobody ever reaches all layers, or not within a budget so small.

    Examples:
        >>> slow = lambda T: np.array([np.exp(-T), np.exp(-T / 2)])  # no layer is sure to be reached
        >>> [round(T, 2) for T in adel_deadlines(slow, np.array([1.0, 2.0]), 6.0)]
        [2.6, 3.4]
    """
    rounds, limit = len(weights), variance(chances(math.inf))
    if math.isinf(limit):
        raise FleetError("No deadline is long enough: nobody in this fleet can ever be heard of the first layer.")
    doubled = [2.0**k for k in range(-_DOUBLINGS, _DOUBLINGS)]
    high = next((T for T in doubled if variance(chances(T)) <= limit * (1.0 + _EVERYBODY)), doubled[-1])
    low = next((T for T in reversed(doubled) if variance(chances(T)) > limit * _NOBODY), doubled[0])
    seconds = np.empty(0)
    for _ in range(2):
        # The second table is finer where the deadlines of the first lie.
        seconds = np.union1d(seconds, np.geomspace(low, high, _GRID))
        cost = np.array([variance(chances(float(T))) for T in seconds])
        seconds, cost = seconds[cost <= limit * _NOBODY], cost[cost <= limit * _NOBODY]
        if rounds * seconds[0] > budget:
            raise FleetError(
                f"A budget of {budget:g} s leaves {budget / rounds:.3g} s for each of {rounds} rounds, in which nobody "
                f"gets through all layers. Give at least {1.01 * rounds * seconds[0]:.3g} s, or fewer rounds."
            )
        deadlines = share_out(seconds, cost, weights, budget)
        low, high = float(deadlines.min()) / 1.1, float(deadlines.max()) * 1.1
    return tuple(map(float, deadlines))
