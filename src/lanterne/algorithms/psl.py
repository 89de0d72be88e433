"""Parallel split learning: all clients at once, one server half, one step of it for every batch; no weights move.

As Pal, Uniyal, Park, Vepakomma, Raskar, Bennis, Jeon, Choi, "Server-Side Local Gradient Averaging and Learning Rate
Acceleration for Scalable Split Learning", arXiv 2112.05929, section 2.2, describe it (equation 4: one loss per client).

    s_i = f_c(x_i; w_ci);   L_i = loss(f_s(s_i; w_s), y_i);   g_i = dL_i / ds_i
    w_s' = w_s - eta_s sum_i delta_i dL_i / dw_s;             w_ci' = w_ci - eta_c J_i^T g_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Task
from lanterne.models import suffix
from lanterne.protocol import (
    Address,
    Cohort,
    Dispatch,
    Gather,
    Handler,
    Inbox,
    Local,
    Pass,
    Program,
    Request,
    client_weight,
    exchange,
    usable,
)
from lanterne.split import Exchange, ParallelMethod, client_part, joined, server_part

_SERVER = ("server", 0)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The weights of the start `[size]`, the server's half now, who has a half of its own, and the rounds so far."""

    w: SkipValidation[Tensor]
    server: SkipValidation[Tensor]
    clients: tuple[int, ...] = ()
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class PSL(ParallelMethod):
    """Parallel split learning. Clients' halves part, and the model that is judged is each of them with the server's.

    Whose smashed data do not come by the quorum or the deadline at the cut is not served in this batch; the weights are
    those of the others.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> PSL(stack=LayerStack(net, (4,)), quorum=5).place.at
        1
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

    def serve_all(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every client's gradient at the weights before the step, and one step."""
        del local
        shares = inbox.config["shares"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(len(shares))] for name in ("smashed", "labels"))
        g, ups = task.gradient_with_inputs(suffix(self.stack, self.at), state["w"], smashed, labels, shares)
        if self.cut_gradient == "pooled":
            ups = tuple(share * up for share, up in zip(shares, ups, strict=True))
        w, slots = self.halves.server.step(state["w"], state, g)
        return {"w": w, **slots}, {f"gradient_{i}": up for i, up in enumerate(ups)}

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
            there = {r.request for r in (yield from self.arrived([e.forward for e in batch]))}
            arrived = [e for e in batch if e.forward in there]
            known |= {e.forward.to for e in arrived if isinstance(e.forward.to, int)}
            if arrived:
                served = self._serve(arrived, cohort)
                downs = [
                    replace(e.backward, arrays={"gradient": served[f"gradient_{i}"]}) for i, e in enumerate(arrived)
                ]
                yield Dispatch([served, *downs])
        yield Gather(of=downs)
        server = state.server
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            server = reply["half"]
        return replace(state, server=server, clients=tuple(sorted(known)), round=state.round + 1)

    def _serve(self, arrived: Sequence[Exchange], cohort: Cohort) -> Request:
        """The server's work on the smashed data that have arrived, with weights that sum to 1 over them."""
        weights = [client_weight(cohort, e.forward.to, self.weights) for e in arrived]
        arrays = {f"{n}_{i}": e.forward[n] for i, e in enumerate(arrived) for n in ("smashed", "labels")}
        config = {"shares": tuple(weight / sum(weights) for weight in weights)}
        at, n, batches = self.at, len(self.stack), len(arrived)
        passes = [Pass("forward", at, n, batches=batches), Pass("backward", at, n, to_input=True, batches=batches)]
        return Request(_SERVER, "serve_all", arrays, config, passes=passes)

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
