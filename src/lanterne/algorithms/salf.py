"""SALF: at the deadline a straggler sends the layers that its backward pass has reached.

Lang, Cohen, Shlezinger, "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates",
arXiv 2403.18375.

Each layer is averaged over those who reached it by the deadline T. S_l are the clients that reached layer l, p_l is the
probability that nobody does.

    paper:  w'_l = w_l + 1/(1 - p_l) * mean_{u in S_l} delta_u,l      w'_l = w_l if S_l is empty, under every rule
    cond:   w'_l = w_l + mean_{u in S_l} delta_u,l
    code:   w'_l = w_l + (1/U) sum_{u in S_l} delta_u,l               (what the authors' code does)
    ht:     w'_l = w_l + sum_{u in S_l} alpha_u delta_u,l / q_u,l     (Horvitz-Thompson; q_u,l: u's chance to reach l)

The first is the authors' `1/(1 - p) (mean w_u - p w)` written in deltas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.errors import ConfigError
from lanterne.learn import Task, Update, budgeted_sgd, coverage_sum, velocity_bytes
from lanterne.models import LayerStack, reached
from lanterne.protocol import (
    Address,
    All,
    Cohort,
    Deadline,
    Handler,
    Inbox,
    Local,
    Program,
    Reply,
    Request,
    client_weight,
    exchange,
    training,
    usable,
)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights, the rounds so far, and what was seen of who reaches what.

    `empty` counts, per block, the rounds in which nobody reached it; `history` holds, per client whose q is learned,
    how often it was invited and then, per block, how often it reached it; `capped` counts the corrections that the cap
    has cut.
    """

    w: SkipValidation[Tensor]
    round: int = 0
    empty: tuple[int, ...] = ()
    history: Mapping[int, tuple[int, ...]] = Field(default_factory=dict)
    capped: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class Salf:
    """Layer-wise aggregation of truncated backward passes. Without a deadline it is FedAvg, bit for bit."""

    stack: SkipValidation[LayerStack]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_t, step size of local SGD")] = 0.1
    local_steps: Annotated[int, Field(ge=1, description="batches per client and round; the paper analyses 1")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD; the authors' code has 0.5, kept")] = 0.0
    keep_momentum: Annotated[
        bool, Field(description="keep the velocity on the client; unreached blocks keep theirs")
    ] = False
    cohort: Annotated[
        int | None, Field(ge=1, description="clients invited per round; all by default, as in the paper")
    ] = None
    weights: Annotated[
        Literal["samples", "equal"], Field(description="alpha_u; equal in the paper, whose shards are equal")
    ] = "samples"
    deadline: Annotated[Deadlines, Field(description="T_t, seconds after the invitation; or a list")] = math.inf
    rule: Annotated[Literal["paper", "cond", "code", "ht"], Field(description="how layers are averaged")] = "paper"
    p: Annotated[
        Literal["auto", "clock", "empirical", "zero"],
        Field(
            description="p_l and q_u,l: from the clock model, from the rounds so far, or 0 and 1; "
            "auto: the first that exists"
        ),
    ] = "auto"
    factor_cap: Annotated[float, Field(ge=1, description="c_max, the most that 1/(1 - p) and 1/q may be")] = 10.0
    shrinkage: Annotated[float, Field(ge=0, le=1, description="0: mean over S_l; 1: divide by all, as `code` does")] = (
        0.0
    )
    by_steps: Annotated[bool, Field(description="scale each layer's delta to the full number of local steps")] = False
    upload: Annotated[
        Literal["inside", "after"], Field(description="whether the upload has to end by the deadline too")
    ] = "inside"

    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up", "reached": "scalar_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The client's half."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local steps until the budget ends; back go the layers that moved, and how many backwards were done."""
        w, blocks = inbox["w"], len(task.stack)
        after, m, done = budgeted_sgd(task, w, local.x, local.y, self.lr, local.budget, self.momentum, state.get("m"))
        if self.keep_momentum and self.momentum and m is None:
            m = torch.zeros_like(w)
        start = task.stack.edges[max(blocks - done, 0)]
        sent = {"delta": after[start:] - w[start:], "reached": torch.tensor(done)}
        return {"m": m} if self.keep_momentum and m is not None else {}, sent

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w, empty=(0,) * len(self.stack))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Invite, hear from everyone by the deadline, average every layer over those who reached it."""
        n, k = len(self.stack), self.local_steps
        velocity = velocity_bytes(state.w, self.momentum, self.keep_momentum)
        deadline, batches = of_round(self.deadline, state.round), range(state.round * k, (state.round + 1) * k)
        stop = "arrive" if self.upload == "inside" else "compute"
        requests = [
            training(client, {"w": state.w}, batches, n, deadline=deadline, stop=stop, optimiser=velocity)
            for client in cohort.sample(self.cohort, cohort.key)
        ]
        p, known = self._empty_chance(state, cohort, requests), self._inclusion(cohort, requests)
        q = {to: self._learned(state, to) if chance is None else chance for to, chance in known.items()}
        until = Deadline(deadline) if self.upload == "inside" else All()
        replies = usable((yield from exchange(requests, until, late="cancel")))
        counts = {r.request.to: self._steps(int(r["reached"])) for r in replies}
        weight = {q.to: client_weight(cohort, q.to, self.weights) for q in requests}
        w, capped = self._aggregate(state, replies, counts, weight, p, q)
        state = replace(state, w=w, round=state.round + 1, capped=state.capped + capped)
        # Whose q is known otherwise would only make every checkpoint longer.
        return self._remember(state, [to for to, chance in known.items() if chance is None], counts)

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w

    # ------------------------------------------------------------------ aggregation
    def _steps(self, done: int) -> list[int]:
        """Per block, in how many local steps its backward pass was done."""
        whole, depth = divmod(done, len(self.stack))
        return [whole + (b >= len(self.stack) - depth) for b in range(len(self.stack))]

    def _aggregate(
        self,
        state: State,
        replies: Sequence[Reply],
        counts: Mapping[Address, list[int]],
        weight: Mapping[Address, float],
        p: Sequence[float],
        q: Mapping[Address, Sequence[float]],
    ) -> tuple[Tensor, int]:
        """The next weights, and how many corrections were capped."""
        capped, updates = 0, []
        for r in replies:
            steps, delta = counts[r.request.to], r["delta"]
            depth = sum(s > 0 for s in steps)
            if not depth:
                continue
            blocks = range(len(self.stack) - depth, len(self.stack))
            scale = [self.local_steps / steps[b] if self.by_steps else 1.0 for b in blocks]
            if self.rule == "ht":
                capped += sum(q[r.request.to][b] < 1.0 / self.factor_cap for b in blocks)
                scale = [s / max(q[r.request.to][b], 1.0 / self.factor_cap) for s, b in zip(scale, blocks, strict=True)]
            if any(s != 1.0 for s in scale):
                delta = delta * self._spread(scale, state.w, blocks.start)
            updates.append(Update(reached(self.stack, depth), delta, weight[r.request.to]))
        total, cover = coverage_sum(state.w, updates)
        uncovered, everybody = cover == 0, sum(weight.values())
        if self.rule in ("code", "ht"):
            return torch.where(uncovered, state.w, state.w + total / everybody), capped
        p = p if self.rule == "paper" else [0.0] * len(p)
        factors = [min(1.0 / (1.0 - x) if x < 1.0 else math.inf, self.factor_cap) for x in p]
        capped += sum(f == self.factor_cap and x < 1.0 for f, x in zip(factors, p, strict=True))
        factor: Tensor | float = self._spread(factors, state.w) if any(f != 1.0 for f in factors) else 1.0
        if self.shrinkage:
            factor = factor * ((1.0 - self.shrinkage) + self.shrinkage * cover / everybody)
        moved = state.w + factor * total / cover.masked_fill(uncovered, 1.0)
        return torch.where(uncovered, state.w, moved), capped

    def _spread(self, per_block: Sequence[float], like: Tensor, first: int = 0) -> Tensor:
        """One number per block, repeated for each of its parameters."""
        edges = self.stack.edges
        blocks = range(first, first + len(per_block))
        sizes = torch.tensor([edges[b + 1] - edges[b] for b in blocks], device=like.device)
        return torch.tensor(per_block, dtype=like.dtype, device=like.device).repeat_interleave(sizes)

    # ------------------------------------------------------------------ who reaches what
    def _empty_chance(self, state: State, cohort: Cohort, requests: Sequence[Request]) -> list[float]:
        """`p_l = prod_u (1 - q_u,l)` from the clock model, else the share of rounds without l, smoothed."""
        if self.rule != "paper" or self._certain:
            return [0.0] * len(self.stack)
        p: list[float] | None = [1.0] * len(self.stack) if self.p != "empirical" else None
        for request in requests:
            if p is None or not any(p):
                break
            q = self._clock(cohort, request)
            p = None if q is None else [x * (1.0 - chance) for x, chance in zip(p, q, strict=True)]
        return [(e + 1) / (state.round + 2) for e in state.empty] if p is None else p

    def _inclusion(self, cohort: Cohort, requests: Sequence[Request]) -> dict[Address, list[float] | None]:
        """`q_u,l` for the rule `ht`, from the clock model; None where it has to be learned from the rounds."""
        if self.rule != "ht":
            return {}
        if self._certain:
            return {request.to: [1.0] * len(self.stack) for request in requests}
        return {r.to: self._clock(cohort, r) if self.p != "empirical" else None for r in requests}

    def _learned(self, state: State, client: Address) -> list[float]:
        """The share of a client's rounds in which it reached each block, smoothed as Laplace did."""
        invited, *times = state.history.get(client, (0,) * (len(self.stack) + 1))  # type: ignore[arg-type]
        return [(t + 1) / (invited + 2) for t in times]

    def _clock(self, cohort: Cohort, request: Request) -> list[float] | None:
        """The chance to reach each block at least once: to end its backward unit in the first local step."""
        units, n = cohort.reach(request), len(self.stack)
        if units is None and self.p == "clock":
            raise ConfigError(
                "p = 'clock' needs a clock model of the fleet, and there is none here. Use p = 'empirical'."
            )
        return None if units is None else [units[2 * n - 1 - b] for b in range(n)]

    @property
    def _certain(self) -> bool:
        # Where nobody is cut off, a smoothed count would only invent empty rounds.
        return self.p == "zero" or (self.p == "empirical" and self.deadline == math.inf)

    def _remember(self, state: State, clients: Sequence[Address], counts: Mapping[Address, list[int]]) -> State:
        """Count in how many rounds nobody reached a block, and which blocks these clients reached."""
        history, none = dict(state.history), (0,) * (len(self.stack) + 1)
        for to in clients:
            if isinstance(to, int):
                now = [1, *(int(s > 0) for s in counts.get(to, none[1:]))]
                history[to] = tuple(b + r for b, r in zip(history.get(to, none), now, strict=True))
        seen = [any(c[b] > 0 for c in counts.values()) for b in range(len(self.stack))]
        return replace(state, history=history, empty=tuple(e + (not s) for e, s in zip(state.empty, seen, strict=True)))
