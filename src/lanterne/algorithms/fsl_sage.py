"""FSL-SAGE: clients train by an auxiliary head that the server teaches to give the gradients that its own half gives.

Nair, Lin, Ju, Talebi, Bentley, Liu, "FSL-SAGE: Accelerating Federated Split Learning via Smashed Activation Gradient
Estimation", ICML 2025, arXiv 2505.23182.

    client:  w_ci steps on  d loss(a(s_i; theta_i), y_i)/ds_i  carried back through  s_i = f_c(x_i; w_ci)
    server:  w_s steps on   loss(f_s(sg[s_i]; w_s), y_i)  for the first of each K batches, as it arrives
    every l rounds, at a client's first batch, over the buffer B_i of what it has sent:
             theta_i = argmin sum_{(s, y) in B_i} ||d loss(a(s; theta), y)/ds - d loss(f_s(s; w_s), y)/ds||^2
    after E batches:  w_c is the mean of the clients', weighted by delta_i; each keeps its theta_i
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.learn import Optimiser, Task, Update, coverage_mean, imitation_gradient, input_gradient
from lanterne.models import full, prefix, suffix
from lanterne.protocol import (
    Cohort,
    Dispatch,
    First,
    Gather,
    Handler,
    Inbox,
    Local,
    Output,
    Pass,
    Program,
    Reply,
    Request,
    client_weight,
    exchange,
    usable,
)
from lanterne.split import Answer, Arrays, LocalLossMethod, LocalState

_SERVER = ("server", 0)
_BUFFER = ("smashed", "labels")


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State(LocalState):
    """Besides: of each client, the rows in its buffer, and the round in which it is known to have been given a head."""

    rows: Mapping[int, int] = Field(default_factory=dict)
    aligned: Mapping[int, int] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class FSLSAGE(LocalLossMethod):
    """Federated split learning with smashed activation gradient estimation.

    A client waits for nothing but an alignment of its head. The server's half is at `("server", 0)`; buffer and head of
    client `i` are at `("server", 1 + i)`.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> FSLSAGE(stack=LayerStack(net, (4,)), align_every=5).interval
        5
    """

    interval: Annotated[int, Field(ge=1, description="K: the first of each K batches of a round is sent")] = 5
    align_every: Annotated[int, Field(ge=1, description="l: rounds between two alignments of a client's head")] = 10
    buffer: Annotated[int, Field(ge=1, description="samples kept for the alignments of a client, its newest")] = 1000
    align_epochs: Annotated[int, Field(ge=1, description="passes over the buffer in an alignment")] = 100
    align_batch: Annotated[int, Field(ge=1, description="most samples of a step of an alignment")] = 1000
    align_lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="step size of the alignment's Adam")] = 1e-3
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the average")] = "samples"
    round_deadline: Annotated[Deadlines, Field(description="seconds after the invitation; or a list")] = math.inf

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return {**super().handlers, "ahead": self.ahead, "go_on": self.go_on, "store": self.store, "align": self.align}

    # ------------------------------------------------------------------ the client's half
    def local(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """One batch: smashed data, and a step by the head that is there."""
        state, sent = self.ahead(task, state, inbox, local)
        after, handed = self.go_on(task, state, inbox, local)
        return after, {**handed, **(sent if inbox.config["upload"] else {})}

    def ahead(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The first part of a batch: smashed data."""
        view, head = prefix(self.stack, self.at), {n: t for n, t in state.items() if n == "aux"}
        state = {**self.halves.begun(state, inbox, self.halves.keep), **head}
        smashed = task.smash(view, state["w"], local.x[0])
        return {**state, "smashed": smashed}, {"smashed": smashed, "labels": local.y[0]}

    def go_on(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The second: a step by what the head says of them; a head that has come replaces the one that was there."""
        view, head, aux = prefix(self.stack, self.at), self.networks["head"], inbox.get("aux")
        aux, w, smashed = state["aux"] if aux is None else aux, state["w"], state["smashed"]
        up = input_gradient(task.on(head), full(head), aux, smashed, local.y[0])
        w, slots = self.halves.client.step(w, state, task.pullback(view, w, local.x[0], up, smashed))
        return ({"aux": aux}, {"half": w}) if inbox.config["last"] else ({"w": w, **slots, "aux": aux}, {})

    # ------------------------------------------------------------------ the server's half
    def store(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """What a client has sent joins its buffer, whose oldest rows make room."""
        del task, local
        rows = {n: torch.cat([state[n], inbox[n]]) if n in state else inbox[n] for n in _BUFFER}
        return {**state, **{n: t[-self.buffer :].clone() for n, t in rows.items()}}, {}

    def align(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Fit a client's head over its buffer: its gradients to those of the server's half as it is now."""
        del local
        view, head = suffix(self.stack, self.at), self.networks["head"]
        pieces = len(self.pieces(len(state["labels"])))
        batches = list(zip(*(state[n].tensor_split(pieces) for n in _BUFFER), strict=True))
        wanted = [len(s) * input_gradient(task, view, inbox["w"], s, y) for s, y in batches]
        adam, slots, aux = Optimiser("adam", self.align_lr), state, state.get("aux", inbox["aux"])
        for _ in range(self.align_epochs):
            for (s, y), target in zip(batches, wanted, strict=True):
                g = imitation_gradient(task.on(head), full(head), aux, s, y, target)
                aux, slots = adam.step(aux, slots, g)
        return {**state, **slots, "aux": aux}, {"aux": aux}

    def pieces(self, rows: int) -> list[int]:
        """The samples of each step of an epoch over so many: as few as `align_batch` allows, as equal as can be."""
        pieces = math.ceil(rows / self.align_batch)
        return [rows // pieces + (i < rows % pieces) for i in range(pieces)]

    # ------------------------------------------------------------------ requests
    def begun(self, client: int, steps: range, half: Tensor) -> Request:
        """The first part of a round's first batch, of a client that then waits for its head."""
        passes = [Pass("forward", 0, self.at, kept=True)]
        return Request(client, "ahead", {"w": half}, {"upload": True, "last": False}, steps[:1], passes, note=0.0)

    def batches(self, client: int, steps: range, given: Mapping[str, Tensor | Output], passed: float) -> list[Request]:
        """The batches of a client's round.

        Args:
            client: whose.
            steps: of its stream.
            given: the half that it begins with, `w`; or the head, `aux`, for which it waits with the first of them.
            passed: seconds since the invitation.
        """
        lower, blocks = Pass("forward", 0, self.at), len(self.networks["head"])
        step_by_head = [
            Pass("forward", 0, blocks, network="head"),
            Pass("backward", 0, blocks, network="head", frozen=True),
            Pass("backward", 0, self.at),
        ]
        found = []
        for k, step in enumerate(steps):
            waits = k == 0 and "aux" in given
            asked = {"upload": k % self.interval == 0 and not waits, "last": step == steps[-1]}
            handler, passes = ("go_on", step_by_head) if waits else ("local", [lower, *step_by_head])
            silent, span = not any(asked.values()), steps[k : k + 1]
            found.append(Request(client, handler, {} if k else given, asked, span, passes, silent=silent, note=passed))
        return found

    def received(self, up: Request, client: int) -> list[Request]:
        """What the server does with smashed data: it steps, then it stores them.

        Neither is silent, so that a round that ends early cancels none of them.
        """
        learn = replace(self.served(_SERVER, up, {}, last=False), silent=False)
        return [learn, Request(("server", 1 + client), "store", {name: up[name] for name in _BUFFER})]

    def alignment(self, client: int, rows: int, head: Tensor) -> list[Request]:
        """The server's half as it is now, and the fit of a client's head to it: for the first time, of `head`."""
        at, n, blocks, passes, epoch = self.at, len(self.stack), len(self.networks["head"]), list[Pass](), list[Pass]()
        for k in self.pieces(rows):
            passes += [Pass("forward", at, n, samples=k), Pass("backward", at, n, samples=k, frozen=True)]
            there = Pass("forward", 0, blocks, network="head", samples=k)
            epoch += [there, there._replace(kind="backward", frozen=True), there._replace(kind="double_backward")]
        now, passes = Request(_SERVER, "hand_over"), passes + epoch * self.align_epochs
        return [now, Request(("server", 1 + client), "align", {"w": now["half"], "aux": head}, passes=passes)]

    # ------------------------------------------------------------------ the round
    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        begun = self.begin_state(w)
        return State(begun.w, begun.head)

    def due(self, state: State, client: int) -> bool:
        """Whether a client's head is to be aligned: `l` rounds after the last time, and where it has none."""
        return client not in state.aligned or state.round - state.aligned[client] >= self.align_every

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Start every client's batches, serve and align in order of arrival, average who has handed in in time."""
        low, high, steps = prefix(self.stack, self.at), suffix(self.stack, self.at), self.steps(state.round)
        half, rows, aligned = low.take(state.w), dict(state.rows), dict(state.aligned)
        waiting: list[Request] = []
        for client in cohort.sample(self.cohort, cohort.key):
            due = self.due(state, client)
            waiting += [self.begun(client, steps, half)] if due else self.batches(client, steps, {"w": half}, 0.0)
        yield Dispatch([self.halves.begin(_SERVER, high.take(state.w)), *waiting])
        waiting, served, handed = [q for q in waiting if not q.silent], list[Request](), list[tuple[int, Reply]]()
        passed, deadline = 0.0, of_round(self.round_deadline, state.round)
        while waiting:
            settled = (yield Gather(First(1, within=max(deadline - passed, 0.0)), waiting)) or []
            if not settled:
                break
            passed, done = max(passed, *(r.request.note + r.seconds for r in settled)), {r.request for r in settled}
            waiting, more = [q for q in waiting if q not in done], list[Request]()
            for reply in usable(settled):
                up, client = reply.request, _number(reply)
                if up.config["last"]:
                    handed.append((client, reply))
                if up.config["upload"]:
                    rows[client] = min(rows.get(client, 0) + len(reply["labels"]), self.buffer)
                    served += self.received(up, client)
                    more += served[-2:]
                if up.handler == "ahead":
                    fit = self.alignment(client, rows[client], state.head)
                    more += [*fit, *self.batches(client, steps, {"aux": fit[-1]["aux"]}, passed)]
            yield Dispatch(more)
            waiting += [q for q in more if isinstance(q.to, int) and not q.silent]
        if waiting:
            yield Gather(First(1, within=0.0), waiting, "cancel")
        yield Gather(of=served)
        updates = [
            Update(low, reply["half"] - half, client_weight(cohort, client, self.weights))
            for client, reply in sorted(handed, key=lambda pair: pair[0])
        ]
        aligned |= {client: state.round for client, _ in handed if self.due(state, client)}
        w = coverage_mean(state.w, updates)
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            w = torch.cat([low.take(w), reply["half"]])
        return State(w, state.head, state.round + 1, rows, aligned)

    def evaluated(self, state: State) -> Tensor:
        """The clients' average and the server's half."""
        return state.w


def _number(reply: Reply) -> int:
    assert isinstance(reply.request.to, int)  # servers' replies are gathered by themselves
    return reply.request.to
