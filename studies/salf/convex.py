"""SALF and FedAvg on a strongly convex problem with known optimum: does the error fall as 1/t for both?

The abstract of SALF (Lang, Cohen, Shlezinger, arXiv 2403.18375) claims the asymptotic rate of federated learning
without time limits. The problem has what its theory assumes: every client's objective is strongly convex and smooth,

    F_u(w) = mean_i (x_ui . w - y_ui)^2 / 2 + lambda |w|^2 / 2,     F = mean_u F_u,     w* in closed form,

gradients are of batches, clients disagree (F_u have other optima), one local step a round, the backward pass of a block
takes an exponential time, independent over clients and rounds, and the step is

    eta_t = 2 / (rho_c (t + gamma)),     gamma = max(8 rho_s / rho_c, 1),

with which `|w_t - w*|^2 <= v / (t + gamma)` follows from the recursion that the authors' follow-up code states. The
model is linear, cut into blocks of coordinates: each block adds its part of the prediction, and the backward pass
reaches the last one first. So a truncated pass gives exact partial gradients, as for a network, and F stays convex.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lanterne.algorithms import FedAvg, Salf
from lanterne.data import Streams
from lanterne.fleet import Device, ExponentialLayers, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack
from lanterne.protocol import Cohort, Handler, Program
from lanterne.rng import fold, generator
from lanterne.runtime import Loop, Simulator
from studies.harness.cells import Cell

CLIENTS, ROWS, BATCH = 10, 400, 4
BLOCKS, WIDTH = 4, 12
FEATURES = BLOCKS * WIDTH
PENALTY = 0.1  # lambda
ROUNDS, SEEDS, POINTS = 3000, (1, 2, 3), 60

#: Mean seconds of a layer, by client.
CLOCKS = {"alike": (1.0,) * CLIENTS, "two speeds": (0.5, 1.5) * (CLIENTS // 2)}
#: Who runs on which clock with which deadline (FedAvg waits, and its errors do not depend on the clock), and whether
#: batches are independent, as the theory has them, or those of the library: fresh permutations of a client's rows.
CURVES = (
    ("fedavg", "alike", None, "independent"),
    *((f"salf-{rule}", "alike", 4.0, "independent") for rule in ("paper", "code", "ht")),
    *((f"salf-{rule}", "alike", 1.5, "independent") for rule in ("paper", "cond", "code", "ht")),
    *((f"salf-{rule}", "two speeds", 4.0, "independent") for rule in ("paper", "ht")),
    ("fedavg", "alike", None, "reshuffled"),
    ("salf-paper", "alike", 4.0, "reshuffled"),
)


class Term(nn.Module):
    """A block: adds its coordinates' part to the residual and to the penalty, and hands the features on.

    Its input is `[batch, features + 2]`: the features, the residual so far (at first minus the target), the penalty so
    far.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        """One block further."""
        part = h[:, self.first : self.first + WIDTH] @ self.weight
        penalty = (PENALTY / 2 * self.weight.square().sum()).expand(len(h))
        return torch.cat([h[:, :FEATURES], (h[:, FEATURES] + part)[:, None], (h[:, -1] + penalty)[:, None]], dim=1)


def objective(output: Tensor, _: Tensor) -> Tensor:
    """The mean over a batch of half the squared residual and the penalty."""
    return (output[:, FEATURES].square() / 2 + output[:, -1]).mean()


@dataclass(frozen=True)
class Quadratic:
    """The problem in numbers: what is learned from, and everything that is known of the optimum.

    Args:
        x: `[clients * rows, features]`.
        y: `[clients * rows]`.
        hessian: of F, `[features, features]`.
        optimum: w*, `[features]`.
        convexity: rho_c, the least eigenvalue of any client's Hessian.
        smoothness: rho_s, the largest.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    hessian: NDArray[np.float64]
    optimum: NDArray[np.float64]
    convexity: float
    smoothness: float

    @property
    def gamma(self) -> float:
        """How far the steps are moved, in rounds."""
        return max(8 * self.smoothness / self.convexity, 1.0)

    def step(self, t: int) -> float:
        """`eta_t`."""
        return 2 / (self.convexity * (t + self.gamma))

    def gradient(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of F."""
        residual = self.x @ w - self.y
        found: NDArray[np.float64] = self.x.T @ residual / len(self.y) + PENALTY * w
        return found

    def errors(self, w: NDArray[np.float64]) -> tuple[float, float]:
        """`|w - w*|^2` and `F(w) - F*`, which is `(w - w*)' H (w - w*) / 2`: no difference of large numbers."""
        off = w - self.optimum
        return float(off @ off), float(off @ self.hessian @ off / 2)


@lru_cache(maxsize=1)
def problem() -> Quadratic:
    """The problem, always the same."""
    g = generator(0, "convex")
    x = g.normal(size=(CLIENTS * ROWS, FEATURES))
    truth = g.normal(size=FEATURES) + 0.5 * g.normal(size=(CLIENTS, FEATURES))  # of each client its own
    y = (x * np.repeat(truth, ROWS, axis=0)).sum(1) + 0.5 * g.normal(size=len(x))
    own = [part.T @ part / ROWS + PENALTY * np.eye(FEATURES) for part in np.split(x, CLIENTS)]
    hessian = np.mean(own, axis=0)
    optimum = np.linalg.solve(hessian, x.T @ y / len(y))
    eigenvalues = [np.linalg.eigvalsh(h) for h in own]
    found = Quadratic(x, y, hessian, optimum, min(e[0] for e in eigenvalues), max(e[-1] for e in eigenvalues))
    return replace(found, optimum=optimum - np.linalg.solve(hessian, found.gradient(optimum)))  # refined once


@dataclass(frozen=True)
class Decaying:
    """A method with one local step at learning rate 1, whose server takes `eta_t` of its step.

    lanterne's methods have a constant step size. With one local step a delta is linear in it, so that this is a step of
    size `eta_t` on the client: `w + eta_t (w' - w)`.

    Args:
        inner: the method; its state has `w` and `round`.
        problem: for the steps.
    """

    inner: FedAvg | Salf
    problem: Quadratic

    traffic: ClassVar[Mapping[str, str]] = Salf.traffic  # FedAvg's and one name more

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """As the method's."""
        return self.inner.handlers

    def init(self, w: Tensor) -> Any:  # noqa: ANN401 - the state of either method
        """As the method's."""
        return self.inner.init(w)

    def round(self, state: Any, cohort: Cohort) -> Program[Any]:  # noqa: ANN401
        """The method's round, and so much of its step."""
        after = yield from self.inner.round(state, cohort)
        return replace(after, w=state.w + self.problem.step(state.round) * (after.w - state.w))

    def evaluated(self, state: Any) -> Tensor:  # noqa: ANN401
        """The global weights."""
        w: Tensor = state.w
        return w


def cells(rounds: int = ROUNDS) -> list[Cell]:
    """All curves with all seeds.

    Args:
        rounds: of each.
    """
    found = []
    for method, clock, deadline, batches in CURVES:
        for seed in SEEDS:
            settings = {"method": method, "clock": clock, "deadline": deadline, "batches": batches, "seed": seed}
            limit = "" if deadline is None else f", deadline {deadline:g}"
            name = f"convex, {clock}{limit}, {batches} batches, {method}, seed {seed}"
            found.append(Cell(name, {"part": "convex", "rounds": rounds, **settings}, seconds=11 * rounds / ROUNDS))
    return found


def descend(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compute a cell: the errors of one method with one seed, at rounds that are equally far apart on a log axis.

    Args:
        settings: of `cells`.

    Returns:
        `rows` with `round`, `virtual_seconds`, `distance` and `excess`.
    """
    quadratic, seed, rounds = problem(), settings["seed"], settings["rounds"]
    net = nn.Sequential(*(Term(block * WIDTH) for block in range(BLOCKS)))
    stack = LayerStack(net, (FEATURES + 2,))
    algorithm = Decaying(_method(settings, stack), quadratic)
    devices = [
        Device(latency=0.0, down=math.inf, up=math.inf, pace=ExponentialLayers(m)) for m in CLOCKS[settings["clock"]]
    ]
    x = np.concatenate([quadratic.x, -quadratic.y[:, None], np.zeros((len(quadratic.y), 1))], axis=1)
    rows = np.split(np.arange(len(x)), CLIENTS)
    if settings["batches"] == "independent":
        # One epoch for the whole run: a permutation of independent draws.
        rows = [generator(seed, "draws", u).choice(own, rounds * BATCH) for u, own in enumerate(rows)]
    executor = Loop(Task(stack, objective), torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64))
    try:
        simulator = Simulator(
            algorithm, Fleet(devices, fold(seed, "fleet")), executor, Streams(rows, BATCH, fold(seed, "streams")),
            seed=fold(seed, "run"), dtype=torch.float64,
        )  # fmt: skip
        state = algorithm.init(torch.zeros(FEATURES, dtype=torch.float64))
        wanted = {round(t) for t in np.geomspace(1, rounds, POINTS)}
        found = []
        for t in range(1, rounds + 1):
            state = simulator.round(algorithm, state)
            simulator.timeline.clear()
            if t in wanted:
                distance, excess = quadratic.errors(state.w.numpy())
                found.append({"round": t, "virtual_seconds": simulator.now, "distance": distance, "excess": excess})
        return {"rows": found}
    finally:
        executor.close()


def _method(settings: Mapping[str, Any], stack: LayerStack) -> FedAvg | Salf:
    name, _, rule = settings["method"].partition("-")
    if name == "fedavg":
        return FedAvg(stack=stack, lr=1.0)
    # The least q of the study is far below 1/10, and a capped weight is biased.
    return Salf(stack=stack, lr=1.0, deadline=settings["deadline"], rule=rule, factor_cap=1e6)
