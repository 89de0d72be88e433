"""TimelyFL: each client's work is fitted to one interval, so that all answer at its end and nobody is stale.

Zhang, Gao, Lee, Zhang, Avestimehr, "TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive Partial
Training", CVPR Workshops 2023, arXiv 2304.06947.

Fast clients train for more epochs, slow ones train and send only the layers nearest the output, the others frozen.

    T    = the k-th smallest of t_cmp + t_com over the clients sampled
    E_c  = max(floor((T - t_com) / t_cmp), 1)      local epochs
    a_c  = min(T / (t_cmp + t_com), 1)             share of the layers, counted from the output
    w'_l = w_l + mean_{c trained l and answered within T} (w_c,l - w_l)

The share supposes that time is proportional to it. A forward pass is always whole, so `fit` takes instead the most
layers with which a client is in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task, Update, coverage_mean, inputs_at, sgd_step
from lanterne.models import LayerStack, full, reached
from lanterne.protocol import (
    All,
    Cohort,
    Deadline,
    Effect,
    Handler,
    Inbox,
    Local,
    Pass,
    Program,
    Reply,
    Request,
    client_weight,
    exchange,
    usable,
)

#: Who by the estimate needs exactly the interval must neither be late by rounding nor be given less to do.
ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]`, the rounds so far, and how many batches each client was sent."""

    w: SkipValidation[Tensor]
    round: int = 0
    steps: Mapping[int, int] = Field(default_factory=dict)


class Estimate(NamedTuple):
    """Seconds for one epoch of the full model with its transfers, `t_cmp + t_com`, and for the transfers, `t_com`."""

    total: float
    link: float


class Work(NamedTuple):
    """Local epochs `E_c`, and how many layers are trained, counted from the output."""

    epochs: int
    depth: int


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class TimelyFL:
    """Work fitted to an interval. Where all devices are alike it is FedAvg, bit for bit.

    Examples:
        >>> from torch import nn
        >>> layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)]
        >>> fleet = {0: Estimate(2.5, 0.5), 1: Estimate(6.0, 1.0), 2: Estimate(9.0, 1.0)}
        >>> seconds = lambda client, depth: 4.0 + depth * 5.0 / 3.0  # of client 2: 4 s are there whatever it trains
        >>> interval, work = TimelyFL(stack=LayerStack(nn.Sequential(*layers), (4,))).fit(fleet, seconds)
        >>> interval, work[0], work[1], work[2]
        (6.0, Work(epochs=2, depth=3), Work(epochs=1, depth=3), Work(epochs=1, depth=1))
    """

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="batches of one local epoch")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD, from rest in every round")] = 0.0
    cohort: Annotated[int | None, Field(ge=1, description="n, clients sampled per round; all by default")] = None
    weights: Annotated[Literal["samples", "equal"], Field(description="n_c of the average")] = "samples"
    target: Annotated[float, Field(gt=0, le=1, description="k / n, the share that the interval lets do all layers")] = (
        0.5
    )
    partial: Annotated[
        Literal["fit", "share"],
        Field(description="layers of a slow client: the most that are done within T, or the share a_c, rounded down"),
    ] = "fit"
    max_epochs: Annotated[int | None, Field(ge=1, description="the most that E_c may be; no limit in the paper")] = None
    estimate: Annotated[
        Literal["known", "probe"],
        Field(description="t_cmp from what is known of the device, or from one batch at the start of each round"),
    ] = "known"

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train, "probe": self.probe}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps of the layers nearest the output; their difference goes back."""
        w = state["w"] if "w" in state else inbox["w"]
        depth = inbox.config["depth"]
        view = reached(task.stack, depth)
        start, m = view.take(w), None
        part = start.clone()
        for x, y in zip(local.x, local.y, strict=True):
            part, m = sgd_step(task, view, part, m, inputs_at(task, w, x, depth), y, self.lr, self.momentum)
        return {}, {"delta": part - start}

    def probe(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One batch, for its time; the model stays for the training that follows."""
        gradient = task.gradient(full(task.stack), inbox["w"], local.x[0], local.y[0])
        return {"w": inbox["w"]}, {"norm": gradient.norm()}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Sample, estimate, fit the work to the interval, average each layer over those in time who trained it."""
        invited = cohort.sample(self.cohort, cohort.key)
        probed = (yield from self._probe(state, cohort, invited)) if self.estimate == "probe" else None
        there = invited if probed is None else tuple(probed)
        known = {client: self._known(state, cohort, client, len(self.stack)) for client in there}
        estimates = known if probed is None else probed

        def seconds(client: int, depth: int) -> float:
            total, link = self._known(state, cohort, client, depth)
            whole, estimate = known[client], estimates[client]
            load = (estimate.total - estimate.link) / (whole.total - whole.link) if whole.total > whole.link else 1.0
            return link + load * (total - link)

        interval, work = self.fit(estimates, seconds)
        requests = [self._request(state, client, each) for client, each in work.items()]
        # Where nothing has been measured yet there is no interval to keep.
        until = Deadline(interval * ROUNDING) if interval else All()
        updates = [
            Update(
                reached(self.stack, r.request.config["depth"]),
                r["delta"],
                client_weight(cohort, r.request.to, self.weights),
            )
            for r in usable((yield from exchange(requests, until, late="cancel")))
        ]
        steps = {**state.steps, **{q.to: q.batches.stop for q in requests if isinstance(q.to, int)}}
        return replace(state, w=coverage_mean(state.w, updates), round=state.round + 1, steps=steps)

    def fit(
        self, estimates: Mapping[int, Estimate], seconds: Callable[[int, int], float]
    ) -> tuple[float, dict[int, Work]]:
        """The aggregation interval `T` and the work of each client.

        Args:
            estimates: by client.
            seconds: of one epoch of a client that trains so many layers, its transfers included.

        Returns:
            Seconds, 0 if nothing is known of the k fastest; and epochs and layers by client.
        """
        totals, layers = sorted(e.total for e in estimates.values()), len(self.stack)
        interval = totals[math.ceil(self.target * len(totals)) - 1] if totals else 0.0
        work = {}
        for client, (total, link) in estimates.items():
            epochs, depth = 1, layers
            if interval < total and interval and self.partial == "share":
                depth = max(math.floor(ROUNDING * interval / total * layers), 1)
            elif interval < total and interval:
                in_time = (d for d in reversed(range(1, layers)) if seconds(client, d) <= ROUNDING * interval)
                depth = next(in_time, 1)
            elif total > link:
                epochs = max(math.floor(ROUNDING * (interval - link) / (total - link)), 1)
            work[client] = Work(min(epochs, self.max_epochs or epochs), depth)
        return interval, work

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w

    # ------------------------------------------------------------------ requests and their times
    def _request(self, state: State, client: int, work: Work) -> Request:
        """Train so many epochs of so many layers; after a probe the model is there."""
        n, first, (epochs, depth) = len(self.stack), state.steps.get(client, 0), work
        batches = range(first, first + epochs * self.local_steps)
        passes = [Pass("forward", 0, n), Pass("backward", n - depth, n)] * len(batches)
        velocity = reached(self.stack, depth).size * state.w.element_size() if self.momentum else 0
        arrays = {} if self.estimate == "probe" else {"w": state.w}
        return Request(client, "train", arrays, {"depth": depth}, batches, passes, optimiser=velocity)

    def _known(self, state: State, cohort: Cohort, client: int, depth: int) -> Estimate:
        """One epoch of so many layers, from what is known of the device: the mean, where its speed varies."""
        total = cohort.seconds(self._request(state, client, Work(1, depth)))
        sent = reached(self.stack, depth).size * state.w.element_size()
        down = 0 if self.estimate == "probe" else state.w.nbytes
        return Estimate(total, self._link(cohort, client, down, sent))

    def _probe(
        self, state: State, cohort: Cohort, invited: Sequence[int]
    ) -> Generator[Effect, list[Reply] | None, dict[int, Estimate]]:
        """From one batch on each client, which has the model afterwards; who does not answer is left out."""
        n, probes = len(self.stack), []
        for client in invited:
            first = state.steps.get(client, 0)
            passes = [Pass("forward", 0, n), Pass("backward", 0, n)]
            probes.append(Request(client, "probe", {"w": state.w}, batches=range(first, first + 1), passes=passes))
        found = {}
        for reply in usable((yield from exchange(probes))):
            client = int(reply.request.to)  # type: ignore[arg-type]
            before = self._link(cohort, client, state.w.nbytes, reply["norm"].nbytes)
            link = self._link(cohort, client, 0, state.w.nbytes)
            found[client] = Estimate(link + max(reply.seconds - before, 0.0) * self.local_steps, link)
        return found

    def _link(self, cohort: Cohort, client: int, down: int, up: int) -> float:
        """Seconds of the transfers, both latencies included."""
        known = cohort.facts(client)
        return 2 * known.latency + down / known.down + up / known.up
