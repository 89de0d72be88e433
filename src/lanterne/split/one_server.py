"""Methods whose server has one half and steps once for every batch, on the smashed data of all who are there.

No weights move: every client has a half of its own, and what is judged is each of them with the server's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from lanterne.learn import Optimiser, Task
from lanterne.models import suffix
from lanterne.protocol import (
    Address,
    Cohort,
    Dispatch,
    Effect,
    First,
    Gather,
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
from lanterne.split.halves import Answer, Arrays, Exchange
from lanterne.split.method import ParallelMethod
from lanterne.split.parts import client_part, joined, server_part

_SERVER = ("server", 0)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The weights of the start `[size]`, the server's half now, who has a half of its own, and the rounds so far.

    `cuts` says how many blocks each of `clients` holds; `busy` is who is still at work on an earlier batch; `version`
    counts the server's steps.
    """

    w: SkipValidation[Tensor]
    server: SkipValidation[Tensor]
    clients: tuple[int, ...] = ()
    round: int = 0
    cuts: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()
    version: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class OneServer(ParallelMethod):
    """Parallel split learning, but for what the clients are sent and how long the server's step is.

    Whose smashed data do not come by the quorum or the deadline at the cut is not in this batch; the weights are those
    of the others. With `late = "drop"` it goes on with the next batch; with `late = "serve"` it gets a gradient at the
    weights that the server has when they come, on which the server does not step, and joins the next batch after that.
    """

    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the server's loss")] = "samples"
    cut_gradient: Annotated[
        Literal["per_client", "pooled"],
        Field(description="what a client gets: g_i, or delta_i g_i as from one loss over all samples"),
    ] = "per_client"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides; the server works on all clients' smashed data at once."""
        return {**self.halves.handlers, "serve_all": self.serve_all, "serve_late": self.serve_late}

    def serve_all(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Every client's gradient at the weights before the step, and one step."""
        del local
        shares = inbox.config["shares"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(len(shares))] for name in ("smashed", "labels"))
        g, ups = self.all_gradients(task, state["w"], smashed, labels, shares, inbox.config["cuts"])
        w, slots = self.server_optimiser(inbox.config).step(state["w"], state, g)
        sent = self.sent(self.scaled(ups, shares), inbox)
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

    def all_gradients(
        self,
        task: Task,
        w: Tensor,
        smashed: Sequence[Tensor],
        labels: Sequence[Tensor],
        shares: Sequence[float],
        cuts: Sequence[int],
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The gradient of `sum_i share_i L_i`, where `L_i` goes through the blocks behind cut i alone; and each `g_i`.

        Args:
            task: the model and the loss.
            w: the server's half, `[size]`.
            smashed: `[batch_i, ...]` each.
            labels: `[batch_i]` each.
            shares: of the losses.
            cuts: how many blocks each client holds.
        """
        total, ups = None, dict[int, Tensor]()
        for at in sorted(set(cuts)):
            some = [i for i, cut in enumerate(cuts) if cut == at]
            view = suffix(self.stack, at)
            x, y = ([values[i] for i in some] for values in (smashed, labels))
            g, found = task.gradient_with_inputs(view, w[len(w) - view.size :], x, y, [shares[i] for i in some])
            ups |= zip(some, found, strict=True)
            g = pad(g, (len(w) - view.size, 0)) if view.size < len(w) else g
            total = g if total is None else total + g
        assert total is not None  # somebody is there
        return total, [ups[i] for i in range(len(cuts))]

    def serve_late(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """A late client's gradient at the weights as they are; they stay."""
        del local
        view, w = suffix(self.stack, inbox.config["cuts"][0]), state["w"]
        _, up = task.gradient_with_input(view, w[len(w) - view.size :], inbox["smashed_0"], inbox["labels_0"])
        return state, {"gradient_0": self.scaled([up], inbox.config["shares"])[0]}

    def sent(self, ups: Sequence[Tensor], inbox: Inbox) -> Sequence[Tensor]:
        """What the clients are sent, of their gradients: each its own."""
        del inbox
        return ups

    def server_optimiser(self, config: Mapping[str, Any]) -> Optimiser:
        """That of the server's half."""
        del config
        return self.halves.server

    def drawn(self, rows: Sequence[int], cohort: Cohort, step: int) -> dict[str, Tensor]:
        """What the server draws for a batch before it works on it.

        Args:
            rows: of each client's smashed data.
            cohort: for the round's key.
            step: which batch of the clients' streams.
        """
        del rows, cohort, step
        return {}

    def passes(self, rows: Sequence[int], cuts: Sequence[int]) -> list[Pass]:
        """The server's work on a batch.

        Args:
            rows: of each client's smashed data.
            cuts: how many blocks each client holds.
        """
        del rows
        n, found = len(self.stack), list[Pass]()
        for at, batches in sorted(Counter(cuts).items()):
            found += [Pass("forward", at, n, batches=batches), Pass("backward", at, n, to_input=True, batches=batches)]
        return found

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w, server_part(self.stack, self.place, w))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """`local_steps` batches of everybody; in each the server waits for all that are due, and steps once."""
        clients = cohort.sample(self.cohort, cohort.key)
        places = {client: self.place_of(cohort, client) for client in {*clients, *state.busy}}
        known, busy, version = dict(zip(state.clients, state.cuts, strict=True)), set(state.busy), state.version
        downs, answers, now = list[Request](), list[Request](), 0.0

        def exchange_of(client: int, step: int) -> Exchange:
            half = {} if client in known else {"w": client_part(self.stack, places[client], state.w)}
            e = self.halves.exchange(client, _SERVER, step, places[client], client_half=half)
            return e._replace(forward=replace(e.forward, note=version))

        def down(served: Request, i: int, forward: Request, backward: Request) -> Request:
            """The gradient on its way to a client, who holds a half of its own from now on."""
            assert isinstance(forward.to, int)  # smashed data come from a client
            known[forward.to] = forward.config["cut"][0]
            return replace(backward, arrays={"gradient": served[f"gradient_{i}"]}, note=version)

        def serve(late: Reply) -> list[Request]:
            """A gradient for somebody late, weighted as one of all that this round invites."""
            client, forward = late.request.to, late.request
            assert isinstance(client, int)
            whole = sum(client_weight(cohort, c, self.weights) for c in {*clients, client})
            share = client_weight(cohort, client, self.weights) / whole
            answer = self._request("serve_late", [forward], {"shares": (share,)}, version)
            answers.append(answer)
            return [answer, down(answer, 0, forward, exchange_of(client, forward.batches.start).backward)]

        begin = self.halves.begin(_SERVER, state.server)
        if self.serves_late:
            now = max([r.at for r in (yield from exchange([replace(begin, silent=False)]))], default=now)
        else:
            yield Dispatch([begin])
        for step in self.steps(state.round):
            batch = {e.forward: e for e in (exchange_of(c, step) for c in clients if c not in busy)}
            yield Dispatch(list(batch))
            if self.serves_late:
                there, now = yield from self.arrived_and_late(list(batch), now, busy, serve)
            else:
                there = yield from self.arrived(list(batch))
            if there:
                arrived = [batch[reply.request] for reply in there]
                served = self._serve(arrived, [len(reply["labels"]) for reply in there], cohort, step, version)
                downs = [down(served, i, e.forward, e.backward) for i, e in enumerate(arrived)]
                yield Dispatch([served, *downs])
                version += 1
        yield Gather(of=downs)
        if self.serves_late:
            yield from self._finished(busy, answers, serve)
        server = state.server
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            server = reply["half"]
        held = sorted(known.items())
        return replace(
            state,
            server=server,
            clients=tuple(client for client, _ in held),
            cuts=tuple(at for _, at in held),
            busy=tuple(sorted(busy)),
            version=version,
            round=state.round + 1,
        )

    def _finished(
        self, busy: set[int], answers: list[Request], serve: Callable[[Reply], Sequence[Request]]
    ) -> Generator[Effect, list[Reply] | None, None]:
        """Until the server is idle: who came while the others went backward is served, who is at work stays at work."""
        replies: list[Reply] | None = None
        while replies is None or replies:
            yield Gather(of=answers)
            answers.clear()
            replies = ((yield Gather(First(len(busy), 0.0))) or []) if busy else []
            for reply in replies:
                busy.discard(reply.request.to)
                if reply.usable:
                    yield Dispatch(serve(reply))

    def _serve(
        self, arrived: Sequence[Exchange], rows: Sequence[int], cohort: Cohort, step: int, version: int
    ) -> Request:
        """The server's work on the smashed data that have arrived, with weights that sum to 1 over them."""
        weights = [client_weight(cohort, e.forward.to, self.weights) for e in arrived]
        shares = tuple(weight / sum(weights) for weight in weights)
        request = self._request("serve_all", [e.forward for e in arrived], {"shares": shares}, version)
        passes = self.passes(rows, request.config["cuts"])
        return replace(request, arrays={**request.arrays, **self.drawn(rows, cohort, step)}, passes=passes)

    def _request(self, handler: str, forwards: Sequence[Request], config: Mapping[str, Any], version: int) -> Request:
        """The server's work on smashed data, at a version of its half."""
        arrays = {f"{n}_{i}": forward[n] for i, forward in enumerate(forwards) for n in ("smashed", "labels")}
        cuts = tuple(forward.config["cut"][0] for forward in forwards)
        passes = OneServer.passes(self, (), cuts)
        return Request(_SERVER, handler, arrays, {"cuts": cuts, **config}, passes=passes, note=version)

    def models(self, state: State, held: Mapping[Address, Mapping[str, Tensor]]) -> Tensor:
        """Each client's half with the server's, `[clients, size]`: that of the start before anybody has been asked.

        Args:
            state: the state after a round.
            held: what the addresses hold.
        """
        models = []
        for client, at in zip(state.clients, state.cuts, strict=True):
            half = held.get(client, {}).get("w", state.w[: self.stack.edges[at]])
            models.append(torch.cat([half, state.server[self.stack.edges[at] - self.stack.edges[self.at] :]]))
        return torch.stack(models or [self.evaluated(state)])

    def evaluated(self, state: State) -> Tensor:
        """The start's lower half with the server's: without the clients nobody knows more."""
        return joined(self.stack, self.place, client_part(self.stack, self.place, state.w), state.server)
