"""LocFedMix-SL: parallel split learning with a local regulariser, averaged clients, and mixup of smashed data.

Oh, Park, Vepakomma, Baek, Raskar, Bennis, Kim, "LocFedMix-SL: Localize, Federate, and Mix for Improved Scalability,
Convergence, and Latency in Split Learning", WWW 2022, equations 5, 6, 8, 9 and 10 as ports cite them.

    Lhat_i = mean |x_i - h(s_i; phi_i)|^2                                              (8)  h is a decoder on the client
    w_ci' = w_ci - eta_c (J_i^T g_i + gamma dLhat_i/dw_ci);   phi_i' = phi_i - eta_phi dLhat_i/dphi_i
    s~_ij = lambda s_i + (1 - lambda) s_j,  lambda ~ Beta(alpha, alpha), j != i        (5)
    w_s' = w_s - eta_s sum_i delta_i d(L_i + (mu/n_s) sum_j L~_ij)/dw_s                (6)  mu = mix_weight
    every T_c batches:  w_c = sum_i delta_i w_ci;   phi = sum_i delta_i phi_i          (9, 10)

The paper's text was not at hand: what it leaves open here is an option, and the method is `paper-ambiguous`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Update, coverage_mean
from lanterne.models import ParamView, suffix
from lanterne.protocol import (
    Address,
    Cohort,
    Deadline,
    Dispatch,
    First,
    Gather,
    Handler,
    Program,
    Request,
    client_weight,
    exchange,
    usable,
)
from lanterne.split import SERVER, LateComer, MixingMethod, RegularisedMethod, joined


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The average of the clients with the server's half `[size]`, that of the decoders, and who is where.

    Who is in `own` has a half of its own, which is in the next average if `served` names it too; `met` has a decoder.
    Who is `busy` is still at work on a batch that was given up on, who is `behind` since before the last average;
    `late` is what came of such: the client, its smashed data, its labels. `alone` counts steps in a row without the
    server, `version` the server's.
    """

    w: SkipValidation[Tensor]
    decoder: SkipValidation[Tensor | None] = None
    own: tuple[int, ...] = ()
    served: tuple[int, ...] = ()
    met: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    late: SkipValidation[tuple[LateComer, ...]] = ()
    version: int = 0
    alone: Mapping[int, int] = Field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class LocFedMixSL(MixingMethod, RegularisedMethod):
    """Local regularisation, federation and mixup in parallel split learning.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> LocFedMixSL(stack=LayerStack(net, (4,))).networks["decoder"].size
        16
    """

    average_every: Annotated[int, Field(ge=0, description="T_c, from one average to the next; 0 is never")] = 1
    average_unit: Annotated[Literal["batches", "rounds"], Field(description="of T_c")] = "batches"
    round_deadline: Annotated[float, Field(gt=0, description="to hand in for an average, seconds")] = math.inf

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return {**super().handlers, **self.client.handlers}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w, self.first_decoder(w))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """`local_steps` batches of everybody who is free; every T_c of them the fed server averages."""
        clients = cohort.sample(self.cohort, cohort.key)
        yield Dispatch([self.halves.begin(SERVER, suffix(self.stack, self.at).take(state.w))])
        for step in self.steps(state.round):
            if set(clients) <= set(state.busy):
                state = yield from self._late(state, clients, cohort, First(1))
            state = yield from self._batch(state, clients, cohort, step)
        w = state.w
        for reply in usable((yield from exchange([Request(SERVER, "hand_over")]))):
            w = joined(self.stack, self.place, self.client.low.take(w), reply["half"])
        state = yield from self._late(replace(state, w=w), clients, cohort)
        return replace(state, round=state.round + 1)

    def _batch(self, state: State, clients: Sequence[int], cohort: Cohort, step: int) -> Program[State]:
        """Forward, the barrier at the cut, the server's step, backward, and perhaps an average."""
        begun = {c: self.client.begin(c, step, self._given(state, c)) for c in clients if c not in state.busy}
        forwards = {requests[0]: c for c, requests in begun.items()}
        yield Dispatch([request for requests in begun.values() for request in requests])
        settled = (yield Gather(self.until(list(forwards)), list(forwards))) or []
        missed = {f: c for f, c in forwards.items() if f not in {r.request for r in settled}}
        arrived = {forwards[r.request]: r for r in settled if r.usable}
        state = _with_halves(replace(state, busy=_union(state.busy, missed.values())), arrived)
        state = yield from self._late(state, clients, cohort)
        last, backs = self._averages(state.round, step), []
        if arrived:
            # Nobody is its own partner, late or not.
            late = [one for one in state.late if one[0] not in arrived]
            served = replace(self.served(list(arrived.values()), late, cohort, step), note=state.version)
            downs = {r.request: served[f"gradient_{i}"] for i, r in enumerate(arrived.values())}
            backs = [replace(self.client.finish(f, g, last=last), note=state.version) for f, g in downs.items()]
            yield Dispatch([served, *backs])
            state = replace(_served(state, arrived), late=(), version=state.version + 1)
        if self.late != "serve" and self.gamma:
            alone = {c: f for f, c in missed.items() if state.alone.get(c, 0) < self.alone}
            yield Dispatch([self.client.finish(f, None) for f in alone.values()])
            state = replace(state, alone={**state.alone, **{c: state.alone.get(c, 0) + 1 for c in alone}})
        if last:
            return (yield from self._averaged(state, backs, cohort))
        if step == self.steps(state.round)[-1]:
            yield Gather(of=backs)
        return state

    def _given(self, state: State, client: int) -> dict[str, Tensor]:
        """What a client begins a batch with: nothing, where it has a half of its own."""
        if client in state.own:
            return {}
        given = {"w": self.client.low.take(state.w)}
        if state.decoder is not None and (self.average_decoders or client not in state.met):
            given["aux"] = state.decoder
        return given

    def _late(self, state: State, clients: Sequence[int], cohort: Cohort, until: First | None = None) -> Program[State]:
        """Take in what has come too late: those clients are free again."""
        if not state.busy:
            return state
        replies = {
            r.request.to: r for r in (yield Gather(until or Deadline(0.0))) or [] if isinstance(r.request.to, int)
        }
        came = {c: r for c, r in replies.items() if r.usable}
        busy, behind = (tuple(c for c in some if c not in replies) for some in (state.busy, state.behind))
        # Whoever is behind and not served has nothing to go on with: it begins with the average, as all others did.
        own = _union(state.own, [c for c in came if self.late == "serve" or c not in state.behind])
        state = replace(_with_halves(state, came), own=own, busy=busy, behind=behind)
        if self.late == "mix":
            state = replace(state, late=(*state.late, *((c, r["smashed"], r["labels"]) for c, r in came.items())))
        elif self.late == "serve":
            for reply in came.values():
                served = replace(self.served_late(reply, clients, cohort), note=state.version)
                back = self.client.finish(reply.request, served["gradient"])
                yield Dispatch([served, replace(back, note=state.version)])
            state = _served(state, came)
        return state

    def _averages(self, round: int, step: int) -> bool:
        """Whether the clients are averaged after a batch."""
        if self.average_unit == "batches":
            return bool(self.average_every) and (step + 1) % self.average_every == 0
        last = step + 1 == (round + 1) * self.local_steps
        return bool(self.average_every) and last and (round + 1) % self.average_every == 0

    def _averaged(self, state: State, backs: Sequence[Request], cohort: Cohort) -> Program[State]:
        """The average over those who were served since the last one and are not at work; everybody begins with it."""
        there = {r.to for r in backs}
        others = [self.client.asked(c) for c in state.served if c not in there and c not in state.busy]
        yield Dispatch(others)
        replies = usable((yield Gather(Deadline(self.round_deadline), [*backs, *others], "cancel")) or [])
        weights = [client_weight(cohort, r.request.to, self.weights) for r in replies]
        low = self.client.low
        updates = [Update(low, r["half"] - low.take(state.w), k) for r, k in zip(replies, weights, strict=True)]
        decoder = state.decoder
        if decoder is not None and self.average_decoders:
            all_of = ParamView(slice(0, decoder.numel()), (((decoder.numel(),),),))
            heads = [Update(all_of, r["aux_half"] - decoder, k) for r, k in zip(replies, weights, strict=True)]
            decoder = coverage_mean(decoder, heads)
        w = coverage_mean(state.w, updates)
        return replace(state, w=w, decoder=decoder, own=(), served=(), behind=state.busy)

    def models(self, state: State, held: Mapping[Address, Mapping[str, Tensor]]) -> Tensor:
        """Each half that is a client's own with the server's, `[clients, size]`; the average where nobody has one.

        Args:
            state: the state after a round.
            held: what the addresses hold.
        """
        low, high = self.client.low.take(state.w), suffix(self.stack, self.at).take(state.w)
        halves = [held.get(client, {}).get("w", low) for client in state.own] or [low]
        models = torch.stack([joined(self.stack, self.place, half, high) for half in halves])
        return models if state.own else models[0]

    def evaluated(self, state: State) -> Tensor:
        """The average of the clients and the server's half."""
        return state.w


def _union(some: Sequence[int], more: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({*some, *more}))


def _with_halves(state: State, clients: Iterable[int]) -> State:
    """They have run forward, so they have halves and decoders of their own now."""
    clients = tuple(clients)
    return replace(state, own=_union(state.own, clients), met=_union(state.met, clients))


def _served(state: State, clients: Iterable[int]) -> State:
    """They have been served: their halves are in the next average, and they may step alone again."""
    alone = {c: n for c, n in state.alone.items() if c not in clients}
    return replace(state, served=_union(state.served, clients), alone=alone)
