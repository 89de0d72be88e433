"""SCAFFOLD: control variates correct the drift of clients whose data differ.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378, Algorithm 1.

A client keeps its control variate c_u, the server their mean c over all N clients, those never invited included.

    y <- y - eta_l (g_u(y) + c - c_u)                      K steps from y = x                              (3)
    c_u' = g_u(x)                     "gradient"   or      c_u' = c_u - c + (x - y) / (K eta_l)   "path"   (4)
    x' = x + eta_g mean_{u in S} (y_u - x),                c' = c + (1/N) sum_{u in S} (c_u' - c_u)        (5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, Update, coverage_mean, coverage_sum, local_sgd, mean_gradient
from lanterne.models import LayerStack, full
from lanterne.protocol import Cohort, Handler, Inbox, Local, Program, client_weight, exchange, training, usable


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights and the server's control variate, each `[size]`, and the rounds so far.

    `everybody` is the weight of all clients together, None before the first round.
    """

    w: SkipValidation[Tensor]
    c: SkipValidation[Tensor]
    everybody: float | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class Scaffold:
    """Stochastic controlled averaging. With control variates that stay zero it would be FedAvg."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_l, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="K, batches per client and round")] = 1
    cohort: Annotated[int | None, Field(ge=1, description="|S|, clients invited per round; all by default")] = None
    weights: Annotated[
        Literal["samples", "equal"], Field(description="of clients in both means; equal in the paper")
    ] = "samples"
    server_lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_g")] = 1.0
    control: Annotated[
        Literal["path", "gradient"],
        Field(description="c_u from the path of the local steps (option II), or one more pass at x (option I)"),
    ] = "path"

    traffic: ClassVar[Mapping[str, str]] = {
        "w": "model_down", "c": "aux_down", "delta": "model_up", "delta_c": "aux_up",
    }  # fmt: skip

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Corrected steps and a new control variate; both differences go back. The first variate is zero."""
        w, view = inbox["w"], full(task.stack)
        own = state["c"] if "c" in state else torch.zeros_like(w)
        drift = inbox["c"] - own
        after, _ = local_sgd(task, view, w, local.x, local.y, self.lr, correction=lambda _: drift)
        if self.control == "gradient":
            new = mean_gradient(task, view, w, local.x, local.y)
        else:
            new = (w - after) / (len(local.x) * self.lr) - drift
        return {"c": new}, {"delta": after - w, "delta_c": new - own}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w, torch.zeros_like(w))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, wait for all, move by the mean over those who answered, and c by their share in all clients."""
        n, k = len(self.stack), self.local_steps
        everybody = self._everybody(cohort) if state.everybody is None else state.everybody
        batches, gradient = range(state.round * k, (state.round + 1) * k), self.control == "gradient"
        # Besides its own variate a client holds the correction, and the mean gradient while that grows.
        held = state.w.nbytes * (2 if gradient else 1)
        requests = [
            training(client, {"w": state.w, "c": state.c}, batches, n, optimiser=held)
            for client in cohort.sample(self.cohort, cohort.key)
        ]
        if gradient:
            requests = [replace(request, passes=[*request.passes, *request.passes]) for request in requests]
        replies = usable((yield from exchange(requests)))
        view = full(self.stack)
        weighted = [(r, client_weight(cohort, r.request.to, self.weights)) for r in replies]
        w = coverage_mean(state.w, [Update(view, r["delta"], weight) for r, weight in weighted], self.server_lr)
        moved, _ = coverage_sum(state.c, [Update(view, r["delta_c"], weight) for r, weight in weighted])
        return replace(state, w=w, c=state.c + moved / everybody, everybody=everybody, round=state.round + 1)

    def _everybody(self, cohort: Cohort) -> float:
        """N, or the samples of all clients: asked for once, for it takes a look at every one of them."""
        if self.weights == "equal":
            return float(cohort.population)
        return sum(client_weight(cohort, client, self.weights) for client in range(cohort.population))

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
