"""FedProx: local training is pulled towards the global weights, and stragglers send the steps that they have finished.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv
1812.06127, Algorithm 2.

    h_u(v; w) = F_u(v) + (mu/2) |v - w|^2                                (2)
    v <- v - eta (grad F_u(v) + mu (v - w))                              a gamma_u-inexact minimiser of h_u is w_u
    w' = w + sum_u (n_u / n) (w_u - w)

How inexact (gamma_u of Definition 2) is up to each client's device: it takes as many local steps as it can by the
deadline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.learn import Task, Update, coverage_mean, stepwise_sgd, velocity_bytes
from lanterne.models import LayerStack, full
from lanterne.protocol import (
    Cohort,
    Deadline,
    Handler,
    Inbox,
    Local,
    Program,
    client_weight,
    exchange,
    training,
    usable,
)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]` and the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FedProx:
    """A proximal term, and partial work. With mu = 0 and without a deadline it is FedAvg, bit for bit."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="the most batches per client and round")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between rounds")] = False
    cohort: Annotated[int | None, Field(ge=1, description="K, clients invited per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_u of the average")] = "samples"
    deadline: Annotated[Deadlines, Field(description="T, seconds after the invitation; or a list")] = math.inf
    mu: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="mu, how strongly local weights are pulled to the global ones"),
    ] = 0.01

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Proximal steps until the budget ends; the difference goes back, or nothing if no step was finished."""
        w = inbox["w"]
        pull = (lambda v: self.mu * (v - w)) if self.mu else None
        after, m, steps = stepwise_sgd(
            task, w, local.x, local.y, self.lr, local.budget, self.momentum, state.get("m"), pull
        )
        delta = after.sub_(w)
        return {"m": m} if self.keep_momentum and m is not None else {}, {"delta": delta if steps else delta[:0]}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, hear from everyone by the deadline, average over those who finished a step."""
        n, k = len(self.stack), self.local_steps
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        anchor = state.w.nbytes if self.mu else 0
        batches, step = range(state.round * k, (state.round + 1) * k), 2 * n
        deadline = of_round(self.deadline, state.round)
        requests = [
            training(
                client, {"w": state.w}, batches, n,
                deadline=deadline, indivisible=step, optimiser=velocity + anchor,
            )
            for client in cohort.sample(self.cohort, cohort.key)
        ]  # fmt: skip
        replies = yield from exchange(requests, Deadline(deadline), late="cancel")
        updates = [
            Update(full(self.stack), r["delta"], client_weight(cohort, r.request.to, self.weights))
            for r in usable(replies)
            if len(r["delta"])
        ]
        return replace(state, w=coverage_mean(state.w, updates), round=state.round + 1)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
