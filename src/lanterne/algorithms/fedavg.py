"""FedAvg: every invited client trains locally from the global weights, the server waits for all of them and averages.

McMahan, Moore, Ramage, Hampson, y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, Algorithm 1.

    w_u = w - eta * (local steps of SGD);    w' = w + sum_u (n_u / n) (w_u - w)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, Update, coverage_mean, local_sgd, velocity_bytes
from lanterne.models import LayerStack, full
from lanterne.protocol import Cohort, Handler, Inbox, Local, Program, client_weight, exchange, training, usable


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]` and the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FedAvg:
    """Federated averaging. With one local step it is FedSGD.

    Examples:
        >>> from torch import nn
        >>> FedAvg(stack=LayerStack(nn.Sequential(nn.Linear(4, 2)), (4,)), lr=0.5).local_steps
        1
    """

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="K, batches per client and round")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between rounds")] = False
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_u of the average")] = "samples"

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
        """Invite, wait for all, average over those who answered."""
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
        return replace(state, w=coverage_mean(state.w, updates), round=state.round + 1)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
