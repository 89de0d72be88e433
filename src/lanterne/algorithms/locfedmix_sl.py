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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Mix, Optimiser, Task, Update, coverage_mean, mixup_gradient
from lanterne.models import Cut, LayerStack, ParamView, full, initial_weights, prefix, suffix
from lanterne.models.heads import build_head
from lanterne.protocol import (
    Address,
    Cohort,
    Deadline,
    Dispatch,
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
from lanterne.rng import fold, generator
from lanterne.split import SLOTS, TRAFFIC, Answer, Arrays, ParallelMethod, joined
from lanterne.tree import digest

_SERVER = ("server", 0)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The last averages of clients and decoders, the server's half, who goes on with its own, and rounds so far."""

    w: SkipValidation[Tensor]
    decoder: SkipValidation[Tensor]
    own: tuple[int, ...] = ()
    alone: Mapping[int, int] | None = None
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class LocFedMixSL(ParallelMethod):
    """Local regularisation, federation and mixup in parallel split learning.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> LocFedMixSL(stack=LayerStack(net, (4,))).networks["decoder"].size
        16
    """

    partners: Annotated[int, Field(ge=0, description="n_s, mixtures per client; fewer where fewer are there")] = 1
    alpha: Annotated[float, Field(gt=0, description="of Beta(alpha, alpha), from which lambda is drawn")] = 1.0
    share: Annotated[
        Literal["pair", "sample", "constant"], Field(description="lambda for each pair, each sample, or 0.5")
    ] = "pair"
    choice: Annotated[
        Literal["random", "rotation", "replacement"],
        Field(description="partners at random, the next in turn, or with replacement and oneself among them"),
    ] = "random"
    mix_weight: Annotated[float, Field(ge=0, description="mu, of the mixtures beside the clients' own losses")] = 1.0
    mix_reduce: Annotated[Literal["mean", "sum"], Field(description="over a client's mixtures")] = "mean"
    mix_to_clients: Annotated[bool, Field(description="send the mixtures' gradient to the clients as well")] = False
    gamma: Annotated[float, Field(ge=0, description="of the reconstruction in a client's gradient")] = 1.0
    decoder: Annotated[str, Field(description="h: 'decoder' and its options, as 'decoder:widen=2'")] = "decoder"
    decoder_lr: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="eta_phi, step size of a decoder; eta_c by default")
    ] = None
    average_every: Annotated[int, Field(ge=1, description="T_c, batches between two averages of the clients")] = 1
    average_decoders: Annotated[bool, Field(description="average decoders as well")] = True
    reset_optimiser: Annotated[bool, Field(description="begin the clients' optimisers anew at each average")] = False
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i")] = "samples"
    round_deadline: Annotated[float, Field(gt=0, description="to hand in for an average, seconds")] = math.inf
    alone: Annotated[int, Field(ge=0, description="the most batches in a row by the decoder alone, when cut off")] = 1

    traffic: ClassVar[Mapping[str, str]] = {**TRAFFIC, "aux": "aux_down", "aux_half": "aux_up"}

    def __post_init__(self) -> None:
        """Refuse an illegal cut, and a decoder that does not fit it."""
        _ = self.networks

    @cached_property
    def networks(self) -> dict[str, LayerStack]:
        """The decoder."""
        assert isinstance(self.place, Cut)
        return {"decoder": build_head(self.decoder, self.stack, self.place)}

    @cached_property
    def low(self) -> ParamView:
        """The client's blocks."""
        return prefix(self.stack, self.at)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        mine = (self.forward, self.reconstruct, self.backward, self.by_itself, self.hand_in, self.serve)
        return {"adopt": self.halves.adopt, "hand_over": self.halves.hand_over, **{f.__name__: f for f in mine}}

    # ------------------------------------------------------------------ the client's half
    def forward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Smashed data, from a new half and a new decoder if they have come."""
        state = self._begun(state, inbox)
        smashed = task.smash(self.low, state["w"], local.x[0])
        return {**state, "smashed": smashed}, {"smashed": smashed, "labels": local.y[0]}

    def reconstruct(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """`dLhat/dphi` and `dLhat/ds`, while the server works."""
        del inbox
        g, pull = self._regulariser(task, state["phi"], state["smashed"], local.x[0])
        return {**state, "decoder_gradient": g, "pull": pull}, {}

    def backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Both parts of the gradient in one backward pass, and the steps."""
        up = inbox["gradient"] + self.gamma * state["pull"]
        return self._stepped(task, state, local.x[0], up, state["smashed"], state["decoder_gradient"]), {}

    def by_itself(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """A batch by the regulariser alone, for a client that was cut off."""
        state = self._begun(state, inbox)
        smashed = task.smash(self.low, state["w"], local.x[0])
        g, pull = self._regulariser(task, state["phi"], smashed, local.x[0])
        return self._stepped(task, state, local.x[0], self.gamma * pull, smashed, g), {}

    def hand_in(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Half and decoder for the average. They go to the fed server: no request to the split server brings them."""
        del task, inbox, local
        return state, {"half": state["w"], **({"aux_half": state["phi"]} if self.average_decoders else {})}

    def _begun(self, state: Arrays, inbox: Inbox) -> Arrays:
        kept = {n: t for n, t in state.items() if n in ("w", "phi", *SLOTS) or n.startswith("phi_")}
        if "w" in inbox.arrays:
            kept = {n: t for n, t in kept.items() if n == "phi" or not self.reset_optimiser}
            kept["w"] = inbox["w"]
        if "aux" in inbox.arrays:
            kept["phi"] = inbox["aux"]
        return kept

    def _regulariser(self, task: Task, phi: Tensor, smashed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.networks["decoder"]
        here = replace(task.on(net), loss=lambda output, target: (output - target).square().mean(), recordings=None)
        return here.gradient_with_input(full(net), phi, smashed, x)

    def _stepped(self, task: Task, state: Arrays, x: Tensor, up: Tensor, smashed: Tensor, g: Tensor) -> Arrays:
        w, slots = self.halves.client.step(
            state["w"], state, task.pullback(self.low, state["w"], x, up, smashed)
        )
        remembered = {n: state[f"phi_{n}"] for n in SLOTS if f"phi_{n}" in state}
        phi, theirs = self.decoder_optimiser.step(state["phi"], remembered, g)
        return {"w": w, "phi": phi, **slots, **{f"phi_{n}": t for n, t in theirs.items()}}

    @cached_property
    def decoder_optimiser(self) -> Optimiser:
        """That of a decoder."""
        return replace(self.halves.client, lr=self.decoder_lr or self.lr)

    # ------------------------------------------------------------------ the server's half
    def serve(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Every client's own gradient, and one step on their losses and those of the mixtures, at the same weights."""
        del local
        shares, view, w = inbox.config["shares"], suffix(self.stack, self.at), state["w"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(len(shares))] for name in ("smashed", "labels"))
        g, ups = task.gradient_with_inputs(view, w, smashed, labels, shares)
        if "partners" in inbox.arrays:
            mix = Mix(inbox["partners"], inbox["rows"], inbox["share"])
            scale = self.mix_weight / (mix.partners.shape[1] if self.mix_reduce == "mean" else 1)
            weights = torch.tensor(shares, dtype=w.dtype, device=w.device) * scale
            more, back = mixup_gradient(task, view, w, smashed, labels, mix, weights)
            g = g + more
            if self.mix_to_clients:
                ups = tuple(up + back[i] / share for i, (up, share) in enumerate(zip(ups, shares, strict=True)))
        w, slots = self.halves.server.step(w, state, g)
        return {"w": w, **slots}, {f"gradient_{i}": up for i, up in enumerate(ups)}

    # ------------------------------------------------------------------ rounds
    def init(self, w: Tensor) -> State:
        """The state before the first round; the decoder's weights follow from the model's."""
        key = fold(digest({"w": w.to(torch.float32)}), "decoder")
        return State(w, initial_weights(self.networks["decoder"], key, w.dtype).to(w.device))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """`local_steps` batches of everybody; every T_c of them the fed server averages."""
        clients, server = cohort.sample(self.cohort, cohort.key), suffix(self.stack, self.at).take(state.w)
        half, decoder, own, by_itself = self.low.take(state.w), state.decoder, set(state.own), dict(state.alone or {})
        yield Dispatch([self.halves.begin(_SERVER, server)])
        for step in self.steps(state.round):
            starts = {c: {} if c in own else {"w": half, "aux": decoder} for c in clients}
            forwards = [self._forward(c, step, starts[c]) for c in clients]
            yield Dispatch([request for f in forwards for request in (f, self._reconstruct(f))])
            arrived = yield from self.arrived(forwards)
            own |= {r.request.to for r in arrived if isinstance(r.request.to, int)}
            if arrived:
                served = self._served(arrived, cohort, step)
                yield Dispatch([served, *(self._backward(r.request, served, i) for i, r in enumerate(arrived))])
            there = {r.request.to for r in arrived}
            late = [c for c in clients if c in own and c not in there and by_itself.get(c, 0) < self.alone]
            by_itself = {c: by_itself.get(c, 0) + 1 for c in clients if c not in there}
            yield Dispatch([self._by_itself(c, step) for c in late])
            if (step + 1) % self.average_every == 0:
                half, decoder = yield from self._averaged([c for c in clients if c in own], half, decoder, cohort)
                own = set()
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            server = reply["half"]
        return State(torch.cat([half, server]), decoder, tuple(sorted(own)), by_itself, state.round + 1)
