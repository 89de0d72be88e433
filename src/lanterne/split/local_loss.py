"""Methods whose clients do not wait for the server: an auxiliary head behind the cut gives them a loss of their own.

    client:  l_i = loss(a(s_i; theta_i), y_i),  s_i = f_c(x_i; w_ci);   both w_ci and theta_i step on it
    server:  L_i = loss(f_s(sg[s_i]; w_s), y_i);   w_s steps on it

No gradient comes down. A client's half is its blocks and, behind them in one vector, the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task
from lanterne.models import Cut, LayerStack, full, initial_weights, prefix, suffix
from lanterne.models.heads import build_head
from lanterne.protocol import Address, Handler, Inbox, Local, Output, Pass, Request
from lanterne.rng import fold
from lanterne.split.halves import TRAFFIC, Answer, Arrays
from lanterne.split.method import SplitMethod
from lanterne.tree import digest


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class LocalState:
    """The global weights `[size]`, the average head `[head's size]`, and the rounds so far."""

    w: SkipValidation[Tensor]
    head: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class LocalLossMethod(SplitMethod):
    """What methods with an auxiliary head share: the head, the client's step, the server's step, and their requests."""

    head: Annotated[
        str, Field(description="the auxiliary head: pooled, conv or copied, and its options: 'conv:width=16'")
    ] = "pooled"

    traffic: ClassVar[Mapping[str, str]] = {**TRAFFIC, "aux": "aux_down", "aux_half": "aux_up"}
    one_cut: ClassVar[str] = "they share one auxiliary head, which fits behind one block"

    @cached_property
    def networks(self) -> dict[str, LayerStack]:
        """The head."""
        place = self.place
        assert isinstance(place, Cut)  # a head stands behind a plain cut: there is no `tail` here
        return {"head": build_head(self.head, self.stack, place)}

    def __post_init__(self) -> None:
        """Refuse an illegal cut, and a head that does not fit it."""
        _ = self.networks

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return {**self.halves.handlers, "local": self.local, "learn": self.learn}

    def begin_state(self, w: Tensor) -> LocalState:
        """The state before the first round; the head's weights follow from the model's.

        Args:
            w: `[size]`.
        """
        key = fold(digest({"w": w.to(torch.float32)}), "head")
        return LocalState(w, initial_weights(self.networks["head"], key, w.dtype).to(w.device))

    def local(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """One batch: smashed data, the loss of the head, a step of blocks and head together."""
        state, view = self.halves.begun(state, inbox, self.halves.keep), prefix(self.stack, self.at)
        x, y, w = local.x[0], local.y[0], state["w"]
        if "aux" in inbox.arrays:
            w = torch.cat([w, inbox["aux"]])
        smashed = task.smash(view, w[: view.size], x)
        g, up = self.surrogate(task, w[view.size :], smashed, y)
        low = task.pullback(view, w[: view.size], x, up, smashed)
        w, slots = self.halves.client.step(w, state, torch.cat([low, g]))
        sent = {"smashed": smashed, "labels": y} if inbox.config["upload"] else {}
        if not inbox.config["last"]:
            return {"w": w, **slots}, sent
        return {}, {**sent, "half": w[: view.size], "aux_half": w[view.size :]}

    def surrogate(self, task: Task, theta: Tensor, smashed: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The head's gradient, and that of the smashed data which stands for the server's.

        Args:
            task: the model and the loss.
            theta: `[head's size]`.
            smashed: `[batch, ...]`.
            y: `[batch]`.
        """
        head = self.networks["head"]
        return task.on(head).gradient_with_input(full(head), theta, smashed, y)

    def learn(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The server's step on smashed data; nothing goes back."""
        del local
        state = self.halves.begun(state, inbox, self.halves.keep_server)
        g = task.gradient(suffix(self.stack, self.at), state["w"], inbox["smashed"], inbox["labels"])
        w, slots = self.halves.server.step(state["w"], state, g)
        return {"w": w, **slots}, {"half": w} if inbox.config["last"] else {}

    def batch(
        self, client: int, step: int, given: Mapping[str, Tensor | Output], *, upload: bool, last: bool, **config: Any
    ) -> Request:
        """One batch of a client.

        Args:
            client: whose.
            step: which of its stream.
            given: the half and the head that it begins with, `w` and `aux`, or nothing.
            upload: whether smashed data and labels go up.
            last: whether half and head are handed in after it.
            config: more of it.
        """
        at, blocks = self.at, len(self.networks["head"])
        passes = [
            Pass("forward", 0, at),
            Pass("forward", 0, blocks, network="head"),
            Pass("backward", 0, blocks, to_input=True, network="head"),
            Pass("backward", 0, at),
        ]
        asked = {"upload": upload, "last": last, **config}
        steps = range(step, step + 1)
        return Request(client, "local", given, asked, steps, passes, silent=not (upload or last))

    def served(self, replica: Address, up: Request, given: Mapping[str, Tensor | Output], *, last: bool) -> Request:
        """The server's step on the smashed data of a batch.

        Args:
            replica: who works on them.
            up: whose reply brings them.
            given: the half that the replica begins with, `w`, or nothing.
            last: whether the replica's half is asked for.
        """
        at, n = self.at, len(self.stack)
        arrays = {**given, "smashed": up["smashed"], "labels": up["labels"]}
        passes = [Pass("forward", at, n), Pass("backward", at, n)]
        return Request(replica, "learn", arrays, {"last": last}, passes=passes, silent=not last)
