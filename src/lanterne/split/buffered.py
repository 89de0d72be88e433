"""A server's half that answers each upload at once and steps when a buffer of them is full.

Beside the buffer it may keep the moments of each label's smashed data, and draw from them what the buffer lacks. All of
it is state of the server's address: `w` and what the optimiser remembers, `smashed_0`, `labels_0`, .. and `Moments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lanterne.learn import Moments, Optimiser, Task, absorb, logit_adjusted, no_moments, topped_up
from lanterne.models import LayerStack, suffix
from lanterne.protocol import Address, Handler, Inbox, Local, Pass, Request
from lanterne.split.halves import Answer, Arrays, Halves


def scaled(optimiser: Optimiser, config: Mapping[str, Any]) -> Optimiser:
    """An optimiser whose step size is `scale` times as long, if a request's configuration says so.

    Args:
        optimiser: whose.
        config: of the request.
    """
    return replace(optimiser, lr=optimiser.lr * config["scale"]) if "scale" in config else optimiser


@dataclass(frozen=True)
class BufferedServer:
    """The server's handlers and the requests to them.

    Args:
        halves: both halves, and how the server's is trained.
        at: how many blocks are in front of the server's.
        uploads: Q_s, how many fill the buffer.
        labels: how many classes there are.
        width: how many numbers cross the cut for a sample.
        rows: up to how many rows each label is topped up; 0 keeps no moments.
        full: whether covariances are kept, or variances alone.
        address: of the server.
    """

    halves: Halves
    at: int
    uploads: int
    labels: int
    width: int
    rows: int | None
    full: bool = False
    address: Address = ("server", 0)

    @cached_property
    def networks(self) -> dict[str, LayerStack]:
        """What a product with a full covariance costs: as much as a linear layer of its size."""
        if not self.full or self.rows == 0:
            return {}
        with torch.device("meta"):
            return {"covariance": LayerStack(nn.Sequential(nn.Linear(self.width, self.width)), (self.width,))}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of the server."""
        return {"begin": self.begin, "answer": self.answer, "step": self.step}

    def begin(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The half, an empty buffer, no moments yet."""
        del task, state, local
        w = inbox["w"]
        if self.rows == 0:
            return {"w": w}, {}
        return {"w": w, **no_moments(self.labels, self.width, full=self.full, device=w.device)._asdict()}, {}

    def answer(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The upload's gradient at the current weights; the upload goes into the buffer and into the moments."""
        del local
        smashed, labels, prior = inbox["smashed"], inbox["labels"], inbox.get("prior")
        adjusted = task if prior is None else replace(task, loss=logit_adjusted(task.loss, prior))
        _, gradient = adjusted.gradient_with_input(suffix(self.halves.stack, self.at), state["w"], smashed, labels)
        place = sum(name.startswith("smashed") for name in state)
        after = {**state, f"smashed_{place}": smashed, f"labels_{place}": labels}
        if self.rows != 0:
            after |= absorb(_moments(state), smashed.flatten(1), labels, inbox["log_weight"])._asdict()
        return after, {"gradient": gradient}

    def step(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """One step on all that is in the buffer, and on what is drawn; then the buffer is empty."""
        x, y = (torch.cat([state[f"{name}_{i}"] for i in range(self.uploads)]) for name in ("smashed", "labels"))
        kept: Arrays = {}
        if self.rows != 0:
            kept = _moments(state)._asdict()
            x, y = topped_up(_moments(state), x, y, inbox.config["rows"], local.key)
        g = task.gradient(suffix(self.halves.stack, self.at), state["w"], x, y)
        w, slots = scaled(self.halves.server, inbox.config).step(state["w"], state, g)
        return {"w": w, **slots, **kept}, {"half": w}

    # ------------------------------------------------------------------ requests
    def begins(self, w: Tensor) -> Request:
        """The server begins with a half."""
        return Request(self.address, "begin", {"w": w}, silent=True)

    def answers(self, arrays: Mapping[str, Tensor]) -> Request:
        """The answer to an upload.

        Args:
            arrays: `smashed` and `labels`; `prior` for an adjusted loss; `log_weight` where moments are kept.
        """
        at, n, batch = self.at, len(self.halves.stack), len(arrays["labels"])
        passes = [Pass("forward", at, n), Pass("backward", at, n, to_input=True)]
        passes += [Pass("forward", 0, 1, network=name, samples=self.labels * batch) for name in self.networks]
        return Request(self.address, "answer", arrays, passes=passes)

    def steps(self, nth: int, batch: int, config: Mapping[str, Any]) -> Request:
        """The server's step.

        Args:
            nth: which of its steps it is, which makes its key.
            batch: rows in an upload.
            config: more of it.
        """
        at, n, rows = self.at, len(self.halves.stack), batch if self.rows is None else self.rows
        new = self.labels * rows
        samples = self.uploads * batch + new
        passes = [Pass("forward", 0, 1, network=name, samples=new) for name in self.networks]
        passes += [Pass("forward", at, n, samples=samples), Pass("backward", at, n, samples=samples)]
        return Request(self.address, "step", {}, {"rows": rows, **config}, range(nth, nth), passes)


def _moments(state: Arrays) -> Moments:
    return Moments(*(state[name] for name in Moments._fields))
