"""Small methods that use what the first four do not: chains of promises, server replicas, state at addresses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lanterne.learn import Task
from lanterne.models import LayerStack, prefix, suffix
from lanterne.protocol import (
    Cohort,
    Deadline,
    Dispatch,
    Gather,
    Handler,
    Inbox,
    Local,
    Pass,
    Program,
    Request,
    exchange,
    usable,
)

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Halves:
    """Both halves of a cut model."""

    client: Tensor
    server: Tensor
    round: int = 0


@dataclass(frozen=True)
class Cut:
    """A model in two halves."""

    stack: LayerStack
    cut: int = 1

    def init(self, w: Tensor) -> Halves:
        edge = self.stack.edges[self.cut]
        return Halves(w[:edge], w[edge:])

    def evaluated(self, state: Halves) -> Tensor:
        return torch.cat([state.client, state.server])


@dataclass(frozen=True)
class ToySplit(Cut):
    """One server replica per client, both halves averaged after a few batches; momentum lives at the addresses."""

    lr: float = 0.3
    steps: int = 2
    momentum: float = 0.5
    deadline: float = math.inf

    traffic: ClassVar[Mapping[str, str]] = {
        "w": "model_down", "act": "act_up", "labels": "labels_up", "grad": "grad_down", "after": "model_up",
    }  # fmt: skip

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"forward": self.forward, "backward": self.backward, "serve": self.serve, "fetch": self.fetch}

    def forward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        w = inbox.get("w") if "w" in inbox.arrays else state["w"]
        return {**state, "w": w}, {
            "act": task.predict(prefix(task.stack, self.cut), w, local.x[0]),
            "labels": local.y[0],
        }

    def _step(self, state: Arrays, w: Tensor, g: Tensor) -> Arrays:
        m = g if "m" not in state else torch.add(g, state["m"], alpha=self.momentum)
        return {"w": torch.sub(w, m, alpha=self.lr), "m": m}

    def backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        g = task.pullback(prefix(task.stack, self.cut), state["w"], local.x[0], inbox["grad"])
        return self._step(state, state["w"], g), {}

    def serve(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        w = inbox.arrays.get("w", state.get("w"))
        g, up = task.gradient_with_input(suffix(task.stack, self.cut), w, inbox["act"], inbox["labels"])
        return self._step(state, w, g), {"grad": up}

    def fetch(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        return {"m": state["m"]}, {"after": state["w"]}

    def round(self, state: Halves, cohort: Cohort) -> Program[Halves]:
        n, at, fetches = len(self.stack), self.cut, []
        for c in cohort.clients:
            for i in range(self.steps):
                step = state.round * self.steps + i
                batch = range(step, step + 1)
                up = Request(
                    c, "forward", {} if i else {"w": state.client}, batches=batch, passes=[Pass("forward", 0, at)]
                )
                server = {} if i else {"w": state.server}
                served = Request(
                    ("server", c), "serve", {"act": up["act"], "labels": up["labels"], **server},
                    passes=[Pass("forward", at, n), Pass("backward", at, n, to_input=True)],
                )  # fmt: skip
                work = [Pass("backward", 0, at)]
                down = Request(c, "backward", {"grad": served["grad"]}, batches=batch, passes=work, silent=True)
                yield Dispatch([up, served, down])
            fetches.append(Request(c, "fetch"))
        yield Dispatch(fetches)
        halves = usable((yield Gather(Deadline(self.deadline), fetches, late="cancel")) or [])
        others = yield from exchange([Request(("server", int(r.request.to)), "fetch") for r in halves])
        if not halves:
            return replace(state, round=state.round + 1)
        mean = lambda replies: torch.stack([r["after"] for r in replies]).mean(0)  # noqa: E731
        return Halves(mean(halves), mean(others), state.round + 1)


@dataclass(frozen=True)
class ToyOverlap(Cut):
    """The shape of MU-SplitFed's round: the server works `tau` times on one activation while the client goes on."""

    tau: int = 4

    traffic: ClassVar[Mapping[str, str]] = {
        "w": "model_down",
        "act": "act_up",
        "probe": "act_up",
        "score": "scalar_down",
        "done": "model_up",
    }

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {
            "clean": self.clean,
            "probes": self.probes,
            "apply": self.apply,
            "steps": self.steps,
            "score": self.score,
        }

    def clean(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        return {"w": inbox["w"]}, {"act": task.predict(prefix(task.stack, self.cut), inbox["w"], local.x[0])}

    def probes(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        return state, {"probe": task.predict(prefix(task.stack, self.cut), 1.01 * state["w"], local.x[0])}

    def apply(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        return {}, {"done": state["w"] * (1 - 0.01 * torch.tanh(inbox["score"]))}

    def steps(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        w = inbox["w"]
        for _ in range(self.tau):
            w = w - 1e-3 * task.predict(suffix(task.stack, self.cut), w, inbox["act"]).mean() * w
        return {"w": w}, {"done": w}

    def score(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> tuple[Arrays, Arrays]:
        return {}, {"score": task.predict(suffix(task.stack, self.cut), state["w"], inbox["probe"]).sum()}

    def round(self, state: Halves, cohort: Cohort) -> Program[Halves]:
        n, at, replicas, clients = len(self.stack), self.cut, [], []
        half, rest = Pass("forward", 0, at), Pass("forward", at, n)
        for c in cohort.clients:
            batch = range(state.round, state.round + 1)
            clean = Request(c, "clean", {"w": state.client}, batches=batch, passes=[half])
            probes = Request(c, "probes", batches=batch, passes=[half])
            steps = Request(("server", c), "steps", {"w": state.server, "act": clean["act"]}, passes=[rest] * self.tau)
            score = Request(("server", c), "score", {"probe": probes["probe"]}, passes=[rest])
            apply = Request(c, "apply", {"score": score["score"]}, batches=batch)
            yield Dispatch([clean, probes, steps, score, apply])
            replicas, clients = [*replicas, steps], [*clients, apply]
        servers = usable((yield Gather(of=replicas)) or [])
        halves = usable((yield Gather(of=clients)) or [])
        if not servers or not halves:
            return replace(state, round=state.round + 1)
        mean = lambda replies: torch.stack([r["done"] for r in replies]).mean(0)  # noqa: E731
        return Halves(mean(halves), mean(servers), state.round + 1)
