"""What split methods share: the handlers of both halves of a cut model, and the requests of an exchange across the cut.

A client runs its first blocks on a batch and sends what comes out, the *smashed data*, with the labels. The server runs
the others, steps, and sends the gradient with respect to the smashed data back; the client goes backward and steps.

Under a U-shaped cut the labels stay at home: the server runs the blocks between head and tail and sends what comes out;
the client runs the tail and sends the gradient up; and then as above.

Addresses hold: a client its half `w` (head and tail in a row), the smashed data that it waits with, and what its
optimiser remembers; a server replica its half `w`, and likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lanterne.learn import Optimiser, Task
from lanterne.models import Cut, LayerStack, ParamView, UCut, prefix, suffix
from lanterne.protocol import Address, Handler, Inbox, Local, Output, Pass, Request

Arrays = dict[str, Tensor]
Answer = tuple[Arrays, Arrays]

#: What an optimiser may remember, by name.
SLOTS = ("m", "v", "t")

#: The category of each array that crosses a link.
TRAFFIC = {
    "w": "model_down",
    "half": "model_up",
    "smashed": "act_up",
    "labels": "labels_up",
    "features": "act_down",
    "pull": "grad_up",
    "gradient": "grad_down",
}


class Exchange(NamedTuple):
    """The requests of one batch of one client.

    Attributes:
        requests: all of them, in order of dispatch.
        forward: whose reply brings the client's smashed data.
        served: whose reply brings the server's gradient, and its half if it was asked for.
        backward: after which the client has stepped; its reply brings the client's half if that was asked for.
    """

    requests: tuple[Request, ...]
    forward: Request
    served: Request
    backward: Request


@dataclass(frozen=True)
class Halves:
    """Both halves of a cut model and how each is trained.

    Args:
        stack: the model.
        client: the optimiser of a client's half.
        server: the optimiser of a server's half.
        keep: whether a client's optimiser goes on with what it remembers when its half is replaced by a new one.
        keep_server: whether a server's does.
    """

    stack: LayerStack
    client: Optimiser
    server: Optimiser
    keep: bool = False
    keep_server: bool = False

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return {
            "forward": self.forward,
            "backward": self.backward,
            "serve": self.serve,
            "body": self.body,
            "tail": self.tail,
            "body_backward": self.body_backward,
            "adopt": self.adopt,
            "hand_over": self.hand_over,
        }

    # ------------------------------------------------------------------ the client's half
    def forward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """`s_i = f_c(x_i; w_ci)`, with a new half if one has come."""
        state, (at, tail) = self.begun(state, inbox, self.keep), inbox.config["cut"]
        head = prefix(self.stack, at)
        smashed = task.smash(head, state["w"][: head.size], local.x[0])
        sent = {"smashed": smashed} if tail else {"smashed": smashed, "labels": local.y[0]}
        return {**state, "smashed": smashed}, sent

    def tail(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The tail's loss: its gradient stays here, that of its input goes up."""
        at, tail = inbox.config["cut"]
        w = state["w"][prefix(self.stack, at).size :]
        g, pull = task.gradient_with_input(suffix(self.stack, tail), w, inbox["features"], local.y[0])
        return {**state, "tail": g}, {"pull": pull}

    def backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """`w_ci' = w_ci - eta J_i^T g_i`, or what the optimiser makes of that; the half goes up if it is asked for."""
        head = prefix(self.stack, inbox.config["cut"][0])
        w = state["w"]
        g = task.pullback(head, w[: head.size], lambda: local.x[0], inbox["gradient"], state["smashed"])
        if "tail" in state:
            g = torch.cat([g, state["tail"]])
        w, slots = self.client.step(w, state, g)
        if not inbox.config["last"]:
            return {"w": w, **slots}, {}
        handed = slots if inbox.config["with_slots"] else {}
        return slots if self.keep else {}, {"half": w, **handed}

    # ------------------------------------------------------------------ the server's half
    def serve(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """`g_i = dL_i / ds_i` at the weights before the step, and the step."""
        del local
        state, view = self.begun(state, inbox, self.keep_server), suffix(self.stack, inbox.config["cut"][0])
        g, gradient = task.gradient_with_input(view, state["w"], inbox["smashed"], inbox["labels"])
        return self._served(state, inbox, g, gradient)

    def body(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Forward through the blocks between head and tail."""
        del local
        state = self.begun(state, inbox, self.keep_server)
        features = task.smash(self._span(inbox), state["w"], inbox["smashed"], to_input=True)
        return {**state, "smashed": inbox["smashed"], "features": features}, {"features": features}

    def body_backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Back through them, and the step."""
        del local
        view, s = self._span(inbox), state["smashed"]
        g, gradient = task.pullback_with_input(view, state["w"], s, inbox["pull"], state["features"])
        return self._served(state, inbox, g, gradient)

    def adopt(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """A server begins with a half."""
        del task, local
        return self.begun(state, inbox, self.keep_server), {}

    def hand_over(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """A server's half as it is now."""
        del task, inbox, local
        return state, {"half": state["w"]}

    def _served(self, state: Arrays, inbox: Inbox, g: Tensor, gradient: Tensor) -> Answer:
        w, slots = self.server.step(state["w"], state, g)
        return {"w": w, **slots}, {"gradient": gradient, **({"half": w} if inbox.config["last"] else {})}

    def begun(self, state: Arrays, inbox: Inbox, keep: bool) -> Arrays:
        """The state with the half that has come, if one has; what an optimiser remembers may have come with it.

        Args:
            state: of the address.
            inbox: what has come to it.
            keep: whether the optimiser goes on with what it remembers when a new half has come.
        """
        w = inbox.get("w")
        if w is None:
            return {n: t for n, t in state.items() if n in ("w", *SLOTS)}
        kept = {n: t for n, t in state.items() if keep and n in SLOTS}
        return {"w": w, **kept, **{n: inbox[n] for n in SLOTS if n in inbox.arrays}}

    def _span(self, inbox: Inbox) -> ParamView:
        return self.stack.span(*inbox.config["cut"])

    # ------------------------------------------------------------------ requests
    def begin(self, replica: Address, w: Tensor) -> Request:
        """A replica begins with a half, whoever comes first.

        Args:
            replica: `("server", number)`.
            w: its half.
        """
        return Request(replica, "adopt", {"w": w}, silent=True)

    def exchange(
        self,
        client: int,
        replica: Address,
        step: int,
        cut: Cut | UCut,
        *,
        client_half: Mapping[str, Tensor | Output] | None = None,
        server_half: Mapping[str, Tensor | Output] | None = None,
        last: bool = False,
        with_slots: bool = False,
    ) -> Exchange:
        """The requests of one batch.

        Args:
            client: whose batch it is.
            replica: who serves it, `("server", number)`.
            step: which batch of the client's stream.
            cut: where the model is cut.
            client_half: what the client begins with, `w` and perhaps what its optimiser remembers; by default what it
                has.
            server_half: likewise for the replica.
            last: whether both halves are handed in after it, and the client forgets its own.
            with_slots: whether what its optimiser remembers goes with the client's half.
        """
        n, batch = len(self.stack), range(step, step + 1)
        at, end = (cut.at, n) if isinstance(cut, Cut) else (cut.head.at, cut.tail.at)
        where: dict[str, Any] = {"cut": (at, 0 if end == n else end)}
        asked = {**where, "last": last, "with_slots": with_slots}
        forward = Request(
            client, "forward", client_half or {}, where, batch, [Pass("forward", 0, at, kept=True)],
        )  # fmt: skip
        begun = {**(server_half or {}), "smashed": forward["smashed"]}
        if end == n:
            there = [Pass("forward", at, n), Pass("backward", at, n, to_input=True)]
            served = Request(replica, "serve", {**begun, "labels": forward["labels"]}, asked, passes=there)
            between: tuple[Request, ...] = (served,)
        else:
            body = Request(replica, "body", begun, where, passes=[Pass("forward", at, end, kept=True)])
            home = [Pass("forward", end, n), Pass("backward", end, n, to_input=True)]
            tail = Request(client, "tail", {"features": body["features"]}, where, batch, home)
            back = [Pass("backward", at, end, to_input=True)]
            served = Request(replica, "body_backward", {"pull": tail["pull"]}, asked, passes=back)
            between = (body, tail, served)
        down = {"gradient": served["gradient"]}
        backward = Request(client, "backward", down, asked, batch, [Pass("backward", 0, at)], silent=not last)
        return Exchange((forward, *between, backward), forward, served, backward)
