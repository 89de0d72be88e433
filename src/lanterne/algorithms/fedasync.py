"""FedAsync: the server mixes each model that arrives into its own at once, with a weight that falls with staleness.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, Algorithm 1.

A client takes local steps on its loss and a proximal term, from the version `tau` that it received, and sends its
model. A round here is one arrival, which is one server version `t`.

    x <- x - gamma (grad f_u(x) + rho (x - w_tau)), H times from w_tau;    w_{t+1} = (1 - alpha_t) w_t + alpha_t x
    alpha_t = alpha s(t - tau)
    s(d) = 1  |  (d + 1)^(-a)  |  1 if d <= b, else 1 / (a (d - b) + 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, local_sgd, polynomial_staleness
from lanterne.models import LayerStack, full
from lanterne.protocol import (
    Cohort,
    Dispatch,
    First,
    Gather,
    Handler,
    Inbox,
    Local,
    Program,
    idle_clients,
    training,
    usable,
)
from lanterne.rng import fold


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]`, the version `t`, who is at work, and how many batches each client was sent."""

    w: SkipValidation[Tensor]
    version: int = 0
    busy: tuple[int, ...] = ()
    steps: Mapping[int, int] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FedAsync:
    """Asynchronous federated optimisation.

    Examples:
        >>> from torch import nn
        >>> stack = LayerStack(nn.Sequential(nn.Linear(4, 2)), (4,))
        >>> [FedAsync(stack=stack, staleness="hinge").mixing(d) for d in (0, 4, 5)]
        [0.6, 0.6, 0.05454545454545454]
    """

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="gamma, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="H, batches per client and version")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between versions")] = False
    cohort: Annotated[int | None, Field(ge=1, description="clients at work at once; all by default")] = None
    alpha: Annotated[float, Field(gt=0, le=1, description="alpha, weight of a fresh model")] = 0.6
    staleness: Annotated[
        Literal["constant", "polynomial", "hinge"], Field(description="s(d) of a model that is d versions old")
    ] = "polynomial"
    staleness_exponent: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="a of the polynomial s(d) = (d + 1)^(-a)")
    ] = 0.5
    hinge_slope: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="a of the hinge s(d) = 1 / (a (d - b) + 1)")
    ] = 10.0
    hinge_start: Annotated[int, Field(ge=0, description="b of the hinge: up to it s(d) = 1")] = 4
    max_staleness: Annotated[int | None, Field(ge=0, description="older models are thrown away; none by default")] = (
        None
    )
    proximal: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="rho, of the proximal term; 0 leaves it out")
    ] = 0.005

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "model": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps from the version that was current, drawn back towards it; the model itself goes back."""
        start, view, m = inbox["w"], full(task.stack), state.get("m")
        if not self.proximal:
            w, m = local_sgd(task, view, start, local.x, local.y, self.lr, self.momentum, m)
        else:
            w = start
            for x, y in zip(local.x, local.y, strict=True):
                g = torch.add(task.gradient(view, w, x, y), w - start, alpha=self.proximal)
                if self.momentum:
                    g = m = g if m is None else torch.add(g, m, alpha=self.momentum)
                w = torch.sub(w, g, alpha=self.lr)
        return {"m": m} if self.keep_momentum and m is not None else {}, {"model": w}

    def init(self, w: Tensor) -> State:
        """The state before the first version."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Keep clients busy until a model arrives that is fresh enough; mix it in. What is at work stays at work."""
        turn = 0
        while True:
            state = yield from self._invite(state, cohort, fold(cohort.key, turn))
            turn += 1
            replies = (yield Gather(First(1))) or []
            back = {r.request.to for r in replies}
            state = replace(state, busy=tuple(client for client in state.busy if client not in back))
            for reply in usable(replies):
                age = state.version - int(reply.request.note)
                if self.max_staleness is None or age <= self.max_staleness:
                    w = torch.lerp(state.w, reply["model"], self.mixing(age))
                    return replace(state, w=w, version=state.version + 1)
            if not usable(replies):
                return state

    def mixing(self, age: int) -> float:
        """`alpha_t`, the weight of a model that is `age` versions old."""
        if self.staleness == "polynomial":
            return self.alpha * polynomial_staleness(age, self.staleness_exponent)
        late = age - self.hinge_start if self.staleness == "hinge" else 0
        return self.alpha / (self.hinge_slope * late + 1.0) if late > 0 else self.alpha

    def _invite(self, state: State, cohort: Cohort, key: int) -> Program[State]:
        """Send the current version to idle clients at random, until as many are at work as may be."""
        busy, steps = set(state.busy), dict(state.steps)
        idle = idle_clients(cohort, busy, self.cohort, key)
        n, k = len(self.stack), self.local_steps
        copies = bool(self.proximal) + (self.momentum > 0 and not self.keep_momentum)  # the anchor, and a velocity
        requests = []
        for client in idle:
            first = steps.get(client, 0)
            steps[client] = first + k
            batches = range(first, first + k)
            requests.append(
                training(client, {"w": state.w}, batches, n, optimiser=copies * state.w.nbytes, note=state.version)
            )
        yield Dispatch(requests)
        return replace(state, busy=tuple(sorted(busy.union(idle))), steps=steps)

    def evaluated(self, state: State) -> Tensor:
        """The weights of the current version."""
        return state.w
