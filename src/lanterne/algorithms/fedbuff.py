"""FedBuff: nobody waits for anybody; the server steps whenever its buffer is full.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, arXiv 2106.06639, Algorithm 1.

Clients train all the time, at most M at once, each from the version that was current when it began. The server adds
what arrives to a buffer; at K arrivals it takes a step, and the version advances. A round here is one version.

    w_{t+1} = w_t + eta_g Delta
    Delta = (1/K) sum_{i <= K} s(tau_i) (w_i - w_{t - tau_i}),    s(tau) = (1 + tau)^(-a)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, local_sgd, polynomial_staleness, velocity_bytes
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
    Request,
    client_weight,
    idle_clients,
    training,
)
from lanterne.rng import fold


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights, the version, what is in the buffer, and who is at work.

    `buffer` is the weighted sum of deltas (None when empty), `weight` the sum of client weights, `discounted` the same
    times staleness weights, `count` how many arrived; `steps` holds how many batches each client was sent so far.
    """

    w: SkipValidation[Tensor]
    version: int = 0
    buffer: SkipValidation[Tensor | None] = None
    weight: float = 0.0
    discounted: float = 0.0
    count: int = 0
    busy: tuple[int, ...] = ()
    steps: Mapping[int, int] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FedBuff:
    """Buffered asynchronous aggregation."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_l, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="Q, batches per client and update")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD")] = 0.0
    keep_momentum: Annotated[bool, Field(description="keep the velocity on the client between updates")] = False
    cohort: Annotated[int | None, Field(ge=1, description="M, clients at work at once; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="client weights in the buffer")] = "samples"
    buffer: Annotated[int, Field(ge=1, description="K, arrivals per server step")] = 10
    server_lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_g")] = 1.0
    staleness_exponent: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="a of s(tau) = (1 + tau)^(-a)")
    ] = 0.5
    max_staleness: Annotated[int | None, Field(ge=0, description="older updates are thrown away; none by default")] = (
        None
    )
    normalise: Annotated[
        Literal["buffer", "staleness"],
        Field(description="divide by K as the paper does, or by the sum of staleness weights"),
    ] = "buffer"

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps from the version that was current; the difference goes back."""
        w, m = local_sgd(task, full(task.stack), inbox["w"], local.x, local.y, self.lr, self.momentum, state.get("m"))
        return {"m": m} if self.keep_momentum and m is not None else {}, {"delta": w.sub_(inbox["w"])}

    def init(self, w: Tensor) -> State:
        """The state before the first version."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Keep clients busy until K updates have arrived; then step. What is at work stays at work."""
        turn = 0
        while state.count < self.buffer:
            state = yield from self._invite(state, cohort, fold(cohort.key, turn))
            turn += 1
            replies = (yield Gather(First(1))) or []
            busy = set(state.busy).difference(r.request.to for r in replies if isinstance(r.request.to, int))
            state = replace(state, busy=tuple(sorted(busy)))
            for reply in replies:
                if reply.usable:
                    state = self._add(state, cohort, reply.request, reply["delta"])
            if not any(r.usable for r in replies):
                return state
        divisor = state.weight if self.normalise == "buffer" else state.discounted
        assert state.buffer is not None
        w = state.w + self.server_lr * state.buffer / divisor
        return replace(state, w=w, version=state.version + 1, buffer=None, weight=0.0, discounted=0.0, count=0)

    def _invite(self, state: State, cohort: Cohort, key: int) -> Program[State]:
        """Send the current version to clients at random, until M are at work."""
        busy = set(state.busy)
        idle = idle_clients(cohort, busy, self.cohort, key)
        n, k, steps, requests = len(self.stack), self.local_steps, dict(state.steps), []
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        for client in idle:
            first = steps.get(client, 0)
            steps[client] = first + k
            batches = range(first, first + k)
            requests.append(training(client, {"w": state.w}, batches, n, optimiser=velocity, note=state.version))
        yield Dispatch(requests)
        return replace(state, busy=tuple(sorted(busy.union(idle))), steps=steps)

    def _add(self, state: State, cohort: Cohort, request: Request, delta: Tensor) -> State:
        """Put one update into the buffer."""
        staleness = state.version - int(request.note)
        if self.max_staleness is not None and staleness > self.max_staleness:
            return state
        weight = client_weight(cohort, request.to, self.weights)
        discounted = weight * polynomial_staleness(staleness, self.staleness_exponent)
        part = discounted * delta
        return replace(
            state,
            buffer=part if state.buffer is None else state.buffer + part,
            weight=state.weight + weight,
            discounted=state.discounted + discounted,
            count=state.count + 1,
        )

    def evaluated(self, state: State) -> Tensor:
        """The weights of the current version."""
        return state.w
