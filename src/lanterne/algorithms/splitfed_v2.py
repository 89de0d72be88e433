"""SplitFed V2: one server half that steps on the clients' smashed data in turn; only the clients' halves are averaged.

Thapa, Arachchige, Camtepe, Sun, "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, arXiv 2004.12088,
section 3.3 (the server works through the clients of each batch in random order). The authors' code works through all
batches of one client before the next one's: `order = "epochs"`.

    for each client i in random order:   s_i = f_c(x_i; w_ci);  g_i = dL_i / ds_i
                                         w_s' = w_s - eta dL_i / dw_s;   w_ci' = w_ci - eta J_i^T g_i
    after E batches:                     w_c = sum_i delta_i w_ci
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.learn import Update, coverage_mean
from lanterne.models import ParamView
from lanterne.protocol import (
    Address,
    Cohort,
    Deadline,
    Dispatch,
    Effect,
    First,
    Gather,
    Program,
    Reply,
    Request,
    client_weight,
    exchange,
    usable,
)
from lanterne.rng import fold, generator
from lanterne.split import Exchange, ParallelMethod, UShapedMethod, client_part, joined, server_part

_SERVER = ("server", 0)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The weights `[size]`, the clients' average and the server's half; the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SplitFedV2(UShapedMethod, ParallelMethod):
    """SplitFed with one server half. The result depends on the order of the clients.

    The server waits for the next client in its order; `conserving`, it serves whoever has arrived. With a quorum or a
    deadline at the cut it serves those who are there then, and the others go on with their next batch; with
    `late = "serve"` they stay at this one, are served when they come, and join the next batch after that.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> SplitFedV2(stack=LayerStack(net, (4,)), order="epochs", server_lr=0.01).place.at
        1
    """

    order: Annotated[
        Literal["batches", "epochs"], Field(description="all clients batch by batch, or all batches client by client")
    ] = "batches"
    conserving: Annotated[bool, Field(description="serve whoever has arrived, not who is next in the order")] = False
    keep_optimiser: Annotated[bool, Field(description="keep what clients' optimisers remember between rounds")] = False
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the average")] = "samples"
    round_deadline: Annotated[Deadlines, Field(description="to hand in, seconds from the last batch; or a list")] = (
        math.inf
    )

    one_cut: ClassVar[str] = "blocks between two cuts would be trained on both sides"

    @property
    def keeps(self) -> tuple[bool, bool]:
        """The server's optimiser always goes on."""
        return self.keep_optimiser, True

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Serve in turn, average the clients' halves."""
        clients, steps = cohort.sample(self.cohort, cohort.key), self.steps(state.round)
        half, server = (part(self.stack, self.place, state.w) for part in (client_part, server_part))
        under_way = {client: self._exchange(client, steps[0], half, last=len(steps) == 1) for client in clients}
        begin = replace(self.halves.begin(_SERVER, server), silent=not self.serves_late)
        yield Dispatch([begin, *(e.forward for e in under_way.values())])
        trained: dict[int, Request] = {}
        turns = self._turns(clients, steps, cohort.key)
        if self.serves_late:
            yield from self._with_late(turns, begin, under_way, trained, half, steps[-1])
        for order, step in turns:  # none are left where late ones are served
            waiting = {client: under_way[client] for client in order}
            while waiting:
                arrived, gone = yield from self._next(waiting)
                requests: list[Request] = []
                for client in [*arrived, *gone]:
                    now = waiting.pop(client)
                    if client in arrived:
                        requests += now.requests[1:]
                        trained[client] = now.backward
                    if step != steps[-1]:
                        new = None if client in trained else half
                        following = self._exchange(client, step + 1, new, last=step + 1 == steps[-1])
                        under_way[client] = following
                        requests.append(following.forward)
                yield Dispatch(requests)
        half = coverage_mean(half, (yield from self._handed_in(state, cohort, half, trained)))
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            server = reply["half"]
        return replace(state, w=joined(self.stack, self.place, half, server), round=state.round + 1)

    def _turns(self, clients: Sequence[int], steps: range, key: int) -> Iterator[tuple[list[int], int]]:
        """Whose smashed data are served in which order, and of which batch."""
        if self.order == "epochs":
            yield from (([client], step) for client in _shuffled(clients, fold(key, "order")) for step in steps)
        else:
            yield from ((_shuffled(clients, fold(key, "order", step)), step) for step in steps)

    def _next(
        self, waiting: Mapping[int, Exchange]
    ) -> Generator[Effect, list[Reply] | None, tuple[list[int], list[int]]]:
        """Who is served next, and who is passed over."""
        forwards = {e.forward: client for client, e in waiting.items()}
        if not self.waits_for_all:
            there = {forwards[r.request] for r in (yield from self.arrived(list(forwards)))}
            return [c for c in waiting if c in there], [c for c in waiting if c not in there]
        if self.conserving:
            replies = (yield Gather(First(1), list(forwards))) or []
        else:
            replies = (yield Gather(of=list(forwards)[:1])) or []
        return [forwards[r.request] for r in usable(replies)], [forwards[r.request] for r in replies if not r.usable]

    def _with_late(
        self,
        turns: Iterable[tuple[list[int], int]],
        begin: Request,
        under_way: dict[int, Exchange],
        trained: dict[int, Request],
        half: Tensor,
        last: int,
    ) -> Generator[Effect, list[Reply] | None, None]:
        """All batches, where whoever is late for one is served when its smashed data come, with a step as any other."""
        busy = set[int]()

        def served(client: Address) -> tuple[Request, ...]:
            assert isinstance(client, int)  # smashed data come from a client
            trained[client] = under_way[client].backward
            return under_way[client].requests[1:]

        now = max([reply.at for reply in (yield Gather(of=[begin])) or []], default=0.0)
        for order, step in turns:
            free = [client for client in order if client not in busy]
            begun = [client for client in free if under_way[client].forward.batches.start != step]
            for client in begun:
                new = None if client in trained else half
                under_way[client] = self._exchange(client, step, new, last=step == last)
            yield Dispatch([under_way[client].forward for client in begun])
            forwards = [under_way[client].forward for client in free]
            there, now = yield from self.arrived_and_late(
                forwards,
                now,
                busy,
                lambda late: served(late.request.to),
                lambda: [under_way[client].forward for client in sorted(busy)],
            )
            arrived = [reply.request.to for reply in there]
            yield Dispatch([r for client in free if client in arrived for r in served(client)])
        yield Gather(First(1, 0.0), [under_way[client].forward for client in sorted(busy)], "cancel")

    def _exchange(self, client: int, step: int, half: Tensor | None, *, last: bool) -> Exchange:
        given = None if half is None else {"w": half}
        return self.halves.exchange(client, _SERVER, step, self.place, client_half=given, last=last)

    def _handed_in(
        self, state: State, cohort: Cohort, half: Tensor, trained: Mapping[int, Request]
    ) -> Generator[Effect, list[Reply] | None, list[Update]]:
        """What the clients' halves have moved, of those who hand them in by the deadline."""
        last = [r for r in trained.values() if r.config["last"]]
        others = [Request(client, "hand_over") for client, r in trained.items() if r not in last]
        yield Dispatch(others)
        deadline = Deadline(of_round(self.round_deadline, state.round))
        replies = usable((yield Gather(deadline, [*last, *others], "cancel")) or [])
        view = ParamView(slice(0, half.numel()), (((half.numel(),),),))
        return [Update(view, r["half"] - half, client_weight(cohort, r.request.to, self.weights)) for r in replies]

    def evaluated(self, state: State) -> Tensor:
        """The clients' average and the server's half."""
        return state.w


def _shuffled(clients: Sequence[int], key: int) -> list[int]:
    return [clients[i] for i in generator(key).permutation(len(clients))]
