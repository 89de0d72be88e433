"""FedNova: clients that take different numbers of steps count by their direction, not by how far they came.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv 2007.07481, section 4.

    w_u = w - eta G_u a_u                 G_u: the gradients of u's tau_u steps; a_u: what each of them counted for
    d_u = G_u a_u / |a_u|                 |a_u| = tau_u for plain SGD
    w' = w - tau_eff sum_u p_u eta d_u,   tau_eff = sum_u p_u |a_u|,   p_u = n_u / n

With momentum rho the i-th of tau gradients counts (1 - rho^(tau - i + 1)) / (1 - rho), so
|a| = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
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
    Request,
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
class FedNova:
    """Normalised averaging. Where all take equally many steps it is FedAvg.

    Examples:
        >>> from torch import nn
        >>> FedNova(stack=LayerStack(nn.Sequential(nn.Linear(4, 2)), (4,)), momentum=0.5).norm(2)  # 1.5 + 1
        2.5
    """

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="tau, the most batches per client and round")] = 1
    samples_per_step: Annotated[
        float | None,
        Field(
            ge=1,
            allow_inf_nan=False,
            description="tau_u = floor(n_u / this), at least 1, in place of local_steps: B / E of the paper",
        ),
    ] = None
    momentum: Annotated[float, Field(ge=0, lt=1, description="rho, of local SGD, from rest in every round")] = 0.0
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="p_u of the average")] = "samples"
    deadline: Annotated[Deadlines, Field(description="T, seconds after the invitation; or a list")] = math.inf

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up", "steps": "scalar_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps until the budget ends; back go the difference, if a step was finished, and their number."""
        w = inbox["w"]
        after, _, steps = stepwise_sgd(task, w, local.x, local.y, self.lr, local.budget, self.momentum)
        delta = after.sub_(w)
        return {}, {"delta": delta if steps else delta[:0], "steps": torch.tensor(steps)}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, hear from everyone by the deadline, average directions, and go as far as the average client did."""
        requests = [self._request(state, cohort, client) for client in cohort.sample(self.cohort, cohort.key)]
        replies = usable((yield from exchange(requests, Deadline(of_round(self.deadline, state.round)), late="cancel")))
        found = [
            (r["delta"], client_weight(cohort, r.request.to, self.weights), self.norm(int(r["steps"])))
            for r in replies
            if int(r["steps"])
        ]
        w = state.w
        if found:
            total = sum(weight for _, weight, _ in found)
            effective = sum(weight * norm for _, weight, norm in found) / total
            updates = [Update(full(self.stack), delta, weight * (effective / norm)) for delta, weight, norm in found]
            # The mean divides by these weights; p_u are to add up to 1 before the directions are stretched.
            w = coverage_mean(w, updates, sum(u.weight for u in updates) / total)
        return replace(state, w=w, round=state.round + 1)

    def _request(self, state: State, cohort: Cohort, client: int) -> Request:
        steps, n = self.local_steps, len(self.stack)
        if self.samples_per_step is not None:
            steps = max(1, int(cohort.facts(client).samples / self.samples_per_step))
        batches = range(state.round * steps, (state.round + 1) * steps)
        velocity = velocity_bytes(state.w, self.momentum, kept=False)
        return training(
            client,
            {"w": state.w},
            batches,
            n,
            deadline=of_round(self.deadline, state.round),
            indivisible=2 * n,
            optimiser=velocity,
        )

    def norm(self, steps: int) -> float:
        """`|a_u|`: what the gradients of so many steps count for in all."""
        rho = self.momentum
        return (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
