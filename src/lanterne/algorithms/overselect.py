"""Over-selection: invite more clients than are needed, keep those who answer first, and send the others home.

The rule of production systems: Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019,
arXiv 1902.01046, which invites 130 % of the clients it wants; FedScale calls it over-commitment.

    invite C, |C| = 1.3 K;   A = the K of C that answer first;   w' = w + sum_{u in A} (n_u / n_A) (w_u - w)
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
from lanterne.protocol import Cohort, First, Handler, Inbox, Local, Program, client_weight, exchange, training, usable


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]` and the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class OverSelect:
    """Federated averaging over the first K to answer. With a factor of 1 it is FedAvg, bit for bit."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="batches per client and round")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between rounds")] = False
    cohort: Annotated[
        int | None, Field(ge=1, description="K, answers per round; by default so many that all clients are invited")
    ] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_u of the average")] = "samples"
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False, description="clients invited per answer wanted")] = 1.3

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
        """Invite 1.3 K, wait for the first K, cancel the others, average over those who answered."""
        n, k = len(self.stack), self.local_steps
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        wanted = None if self.cohort is None else round(self.factor * self.cohort)
        invited = cohort.sample(wanted, cohort.key)
        answers = self.cohort or max(round(len(invited) / self.factor), 1)
        requests = [
            training(client, {"w": state.w}, range(state.round * k, (state.round + 1) * k), n, optimiser=velocity)
            for client in invited
        ]
        replies = yield from exchange(requests, First(answers), late="cancel")
        updates = [
            Update(full(self.stack), r["delta"], client_weight(cohort, r.request.to, self.weights))
            for r in usable(replies)
        ]
        return replace(state, w=coverage_mean(state.w, updates), round=state.round + 1)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
