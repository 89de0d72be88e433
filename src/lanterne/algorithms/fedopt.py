"""FedOpt: the server treats the mean update as a gradient, and takes its step with an optimiser that remembers.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021, arXiv
2003.00295, Algorithms 1 and 2; the momentum is that of Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", arXiv 1909.06335 (FedAvgM).

    Delta = sum_u (n_u / n) (w_u - w)
    sgd:       w' = w + eta Delta
    momentum:  m' = beta_1 m + Delta,                   w' = w + eta m'
    others:    m' = beta_1 m + (1 - beta_1) Delta,      w' = w + eta m' / (sqrt(v') + tau)
      adagrad:   v' = v + Delta^2
      adam:      v' = beta_2 v + (1 - beta_2) Delta^2
      yogi:      v' = v - (1 - beta_2) Delta^2 sign(v - Delta^2)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, Update, coverage_sum, local_sgd, velocity_bytes
from lanterne.models import LayerStack, full
from lanterne.protocol import Cohort, Handler, Inbox, Local, Program, client_weight, exchange, training, usable


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights, the server's first and second moment, each `[size]`, and the rounds so far.

    A moment that the server's optimiser does not have is None.
    """

    w: SkipValidation[Tensor]
    m: SkipValidation[Tensor | None] = None
    v: SkipValidation[Tensor | None] = None
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FedOpt:
    """An optimiser on the server: FedAvgM, FedAdagrad, FedAdam, FedYogi. With `sgd` and eta = 1 it is FedAvg."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_l, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="K, batches per client and round")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD; the server's is beta_1")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between rounds")] = False
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_u of the average")] = "samples"
    server: Annotated[
        Literal["sgd", "momentum", "adagrad", "adam", "yogi"], Field(description="the server's optimiser")
    ] = "adam"
    server_lr: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="eta; by default 1 for sgd and momentum, 0.01 for the others"),
    ] = None
    beta_1: Annotated[
        float | None, Field(ge=0, lt=1, description="decay of the first moment; by default 0 for adagrad, else 0.9")
    ] = None
    beta_2: Annotated[float, Field(ge=0, lt=1, description="decay of the second moment (adam, yogi)")] = 0.99
    tau: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="degree of adaptivity; the smaller, the more")
    ] = 1e-3
    accumulator: Annotated[
        float | None,
        Field(
            ge=0, allow_inf_nan=False, description="v before the first round; by default tau^2, the authors' code has 0"
        ),
    ] = None

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps from the global weights; the difference goes back."""
        w, m = local_sgd(task, full(task.stack), inbox["w"], local.x, local.y, self.lr, self.momentum, state.get("m"))
        return {"m": m} if self.keep_momentum and m is not None else {}, {"delta": w.sub_(inbox["w"])}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        m = None if self.server == "sgd" else torch.zeros_like(w)
        start = self.tau**2 if self.accumulator is None else self.accumulator
        return State(w, m, torch.full_like(w, start) if self._adaptive else None)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, wait for all, and let the server's optimiser take a step along the mean of those who answered."""
        n, k = len(self.stack), self.local_steps
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        replies = yield from exchange([
            training(client, {"w": state.w}, range(state.round * k, (state.round + 1) * k), n, optimiser=velocity)
            for client in cohort.sample(self.cohort, cohort.key)
        ])  # fmt: skip
        updates = [
            Update(full(self.stack), r["delta"], client_weight(cohort, r.request.to, self.weights))
            for r in usable(replies)
        ]
        if updates:
            total, cover = coverage_sum(state.w, updates)
            state = self._step(state, total / cover)
        return replace(state, round=state.round + 1)

    @property
    def _adaptive(self) -> bool:
        return self.server in ("adagrad", "adam", "yogi")

    def _step(self, state: State, delta: Tensor) -> State:
        """The server's step along the mean update."""
        eta = (0.01 if self._adaptive else 1.0) if self.server_lr is None else self.server_lr
        if state.m is None:
            return replace(state, w=state.w + eta * delta)
        beta_1 = (0.0 if self.server == "adagrad" else 0.9) if self.beta_1 is None else self.beta_1
        if state.v is None:
            m = beta_1 * state.m + delta
            return replace(state, w=state.w + eta * m, m=m)
        m = beta_1 * state.m + (1.0 - beta_1) * delta
        v = self._second_moment(state.v, delta.square())
        return replace(state, w=state.w + eta * m / (v.sqrt() + self.tau), m=m, v=v)

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        if self.server == "adagrad":
            return v + square
        if self.server == "adam":
            return self.beta_2 * v + (1.0 - self.beta_2) * square
        return v - (1.0 - self.beta_2) * square * torch.sign(v - square)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
