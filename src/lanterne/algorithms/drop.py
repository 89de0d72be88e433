"""FedAvg with a deadline: whoever has not answered by then is dropped.

The rule of production systems (Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019) and the baseline of
SALF (Lang, Cohen, Shlezinger, arXiv 2403.18375).

    A = {u : t_u <= T}
    arrivals:   w' = w + sum_{u in A} (n_u / n_A) (w_u - w),    w' = w if A is empty
    code:       w' = w + sum_{u in A} (n_u / n)   (w_u - w)     (SALF's authors: the dropped count with w itself)
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
from lanterne.learn import Task, Update, coverage_mean, local_sgd, velocity_bytes
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
class Drop:
    """Federated averaging over those who meet the deadline."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="K, batches per client and round")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between rounds")] = False
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_u of the average")] = "samples"
    deadline: Annotated[Deadlines, Field(description="T, seconds after the invitation; or a list")] = math.inf
    rule: Annotated[
        Literal["arrivals", "code"], Field(description="average over arrivals, or divide by all as SALF's authors do")
    ] = "arrivals"

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
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, wait until the deadline, cancel the others, average over those who answered."""
        n, k = len(self.stack), self.local_steps
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        invited = cohort.sample(self.cohort, cohort.key)
        requests = [
            training(client, {"w": state.w}, range(state.round * k, (state.round + 1) * k), n, optimiser=velocity)
            for client in invited
        ]
        replies = yield from exchange(requests, Deadline(of_round(self.deadline, state.round)), late="cancel")
        updates = [
            Update(full(self.stack), r["delta"], client_weight(cohort, r.request.to, self.weights))
            for r in usable(replies)
        ]
        factor = 1.0
        if self.rule == "code" and updates:
            factor = sum(u.weight for u in updates) / sum(
                client_weight(cohort, client, self.weights) for client in invited
            )
        return replace(state, w=coverage_mean(state.w, updates, factor), round=state.round + 1)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
