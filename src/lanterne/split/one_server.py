"""Methods whose server has one half and steps once for every batch, on the smashed data of all who are there.

No weights move: every client has a half of its own, and what is judged is each of them with the server's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Optimiser, Task
from lanterne.models import suffix
from lanterne.protocol import (
    Address,
    Cohort,
    Dispatch,
    Gather,
    Handler,
    Inbox,
    Local,
    Output,
    Pass,
    Program,
    Request,
    client_weight,
    exchange,
    usable,
)
from lanterne.split.halves import Answer, Arrays, Exchange
from lanterne.split.method import ParallelMethod
from lanterne.split.parts import client_part, joined, server_part

_SERVER = ("server", 0)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The weights of the start `[size]`, the server's half now, who has a half of its own, and the rounds so far."""

    w: SkipValidation[Tensor]
    server: SkipValidation[Tensor]
    clients: tuple[int, ...] = ()
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class OneServer(ParallelMethod):
    """Parallel split learning, but for what the clients are sent and how long the server's step is.

    Whose smashed data do not come by the quorum or the deadline at the cut is not served in this batch; the weights are
    those of the others.
    """

    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the server's loss")] = "samples"
    cut_gradient: Annotated[
        Literal["per_client", "pooled"],
        Field(description="what a client gets: g_i, or delta_i g_i as from one loss over all samples"),
    ] = "per_client"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides; the server works on all clients' smashed data at once."""
        return {**self.halves.handlers, "serve_all": self.serve_all}

    def serve_all(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Every client's gradient at the weights before the step, and one step."""
        del local
        shares = inbox.config["shares"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(len(shares))] for name in ("smashed", "labels"))
        g, ups = task.gradient_with_inputs(suffix(self.stack, self.at), state["w"], smashed, labels, shares)
        w, slots = self.server_optimiser(inbox.config).step(state["w"], state, g)
        sent = self.sent(self.scaled(ups, shares), inbox.config)
        return {"w": w, **slots}, {f"gradient_{i}": up for i, up in enumerate(sent)}

    def scaled(self, ups: Sequence[Tensor], shares: Sequence[float]) -> Sequence[Tensor]:
        """Each client's gradient `g_i`, or `delta_i g_i`, as `cut_gradient` says.

        Args:
            ups: `g_i`.
            shares: `delta_i`.
        """
        if self.cut_gradient == "per_client":
            return ups
        return tuple(share * up for share, up in zip(shares, ups, strict=True))

    def sent(self, ups: Sequence[Tensor], config: Mapping[str, Any]) -> Sequence[Tensor]:
        """What the clients are sent, of their gradients: each its own."""
        del config
        return ups

    def server_optimiser(self, config: Mapping[str, Any]) -> Optimiser:
        """That of the server's half."""
        del config
        return self.halves.server

    def decided(self, arrived: Sequence[Exchange], cohort: Cohort, step: int) -> dict[str, Any]:
        """What the server decides about a batch before it works on it, besides the weights."""
        del arrived, cohort, step
        return {}

    def drawn(self, rows: Sequence[int], cohort: Cohort, step: int) -> dict[str, Tensor]:
        """What the server draws for a batch before it works on it.

        Args:
            rows: of each client's smashed data.
            cohort: for the round's key.
            step: which batch of the clients' streams.
        """
        del rows, cohort, step
        return {}

    def passes(self, rows: Sequence[int]) -> list[Pass]:
        """The server's work on a batch.

        Args:
            rows: of each client's smashed data.
        """
        at, n = self.at, len(self.stack)
        return [Pass("forward", at, n, batches=len(rows)), Pass("backward", at, n, to_input=True, batches=len(rows))]

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w, server_part(self.stack, self.place, w))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """`local_steps` batches of everybody; in each the server waits for all that are due, and steps once."""
        clients, half = cohort.sample(self.cohort, cohort.key), client_part(self.stack, self.place, state.w)
        known = set(state.clients)
        yield Dispatch([self.halves.begin(_SERVER, state.server)])
        downs: list[Request] = []
        for step in self.steps(state.round):
            given = {client: {} if client in known else {"w": half} for client in clients}
            batch = [
                self.halves.exchange(client, _SERVER, step, self.place, client_half=given[client]) for client in clients
            ]
            yield Dispatch([e.forward for e in batch])
            there = {r.request: len(r["labels"]) for r in (yield from self.arrived([e.forward for e in batch]))}
            arrived = [e for e in batch if e.forward in there]
            known |= {e.forward.to for e in arrived if isinstance(e.forward.to, int)}
            if arrived:
                served = self._serve(arrived, [there[e.forward] for e in arrived], cohort, step)
                downs = [
                    replace(e.backward, arrays={"gradient": served[f"gradient_{i}"]}) for i, e in enumerate(arrived)
                ]
                yield Dispatch([served, *downs])
        yield Gather(of=downs)
        server = state.server
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            server = reply["half"]
        return replace(state, server=server, clients=tuple(sorted(known)), round=state.round + 1)

    def _serve(self, arrived: Sequence[Exchange], rows: Sequence[int], cohort: Cohort, step: int) -> Request:
        """The server's work on the smashed data that have arrived, with weights that sum to 1 over them."""
        weights = [client_weight(cohort, e.forward.to, self.weights) for e in arrived]
        arrays: dict[str, Tensor | Output] = {
            f"{n}_{i}": e.forward[n] for i, e in enumerate(arrived) for n in ("smashed", "labels")
        }
        shares = tuple(weight / sum(weights) for weight in weights)
        config = {"shares": shares, **self.decided(arrived, cohort, step)}
        arrays |= self.drawn(rows, cohort, step)
        return Request(_SERVER, "serve_all", arrays, config, passes=self.passes(rows))

    def models(self, state: State, held: Mapping[Address, Mapping[str, Tensor]]) -> Tensor:
        """Each client's half with the server's, `[clients, size]`: that of the start before anybody has been asked.

        Args:
            state: the state after a round.
            held: what the addresses hold.
        """
        start = client_part(self.stack, self.place, state.w)
        halves = [held.get(client, {}).get("w", start) for client in state.clients] or [start]
        return torch.stack([joined(self.stack, self.place, half, state.server) for half in halves])

    def evaluated(self, state: State) -> Tensor:
        """The start's lower half with the server's: without the clients nobody knows more."""
        return joined(self.stack, self.place, client_part(self.stack, self.place, state.w), state.server)
