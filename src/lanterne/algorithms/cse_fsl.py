"""CSE-FSL: clients train by an auxiliary head and send smashed data every h-th batch; one server half steps on arrival.

Mu, Shen, "Communication and Storage Efficient Federated Split Learning", IEEE Transactions on Mobile Computing 2025,
arXiv 2507.15816.

    client:  (w_ci, theta_i) step on  loss(a(f_c(x_i); theta_i), y_i)          for each batch
    server:  w_s steps on             loss(f_s(sg[s_i]; w_s), y_i)             for each s_i, as it arrives
    after E batches:  w_c and theta are the means of the clients', weighted by delta_i
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.learn import Update, coverage_mean
from lanterne.models import full, prefix, suffix
from lanterne.protocol import Cohort, Dispatch, First, Gather, Program, Reply, Request, client_weight, exchange, usable
from lanterne.split import LocalLossMethod, LocalState

_SERVER = ("server", 0)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class CSEFSL(LocalLossMethod):
    """Communication and storage efficient federated split learning.

    A client never waits; the server steps on whatever arrives, when it arrives. Only the average is a barrier.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> CSEFSL(stack=LayerStack(net, (4,)), interval=2).interval
        2
    """

    interval: Annotated[int, Field(ge=1, description="h: the first of each h batches of a round is sent")] = 5
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the averages")] = "samples"
    round_deadline: Annotated[Deadlines, Field(description="seconds after the invitation; or a list")] = math.inf

    def init(self, w: Tensor) -> LocalState:
        """The state before the first round."""
        return self.begin_state(w)

    def round(self, state: LocalState, cohort: Cohort) -> Program[LocalState]:
        """Start every client's batches, serve what arrives in order of arrival, average who has handed in in time."""
        low, high, head = prefix(self.stack, self.at), suffix(self.stack, self.at), self.networks["head"]
        half, steps = low.take(state.w), self.steps(state.round)
        batches = [
            self.batch(
                client,
                step,
                {"w": half, "aux": state.head} if step == steps[0] else {},
                upload=(step - steps[0]) % self.interval == 0,
                last=step == steps[-1],
            )
            for client in cohort.sample(self.cohort, cohort.key)
            for step in steps
        ]
        yield Dispatch([self.halves.begin(_SERVER, high.take(state.w)), *batches])
        waiting = [b for b in batches if not b.silent]
        handed: list[Reply] = []
        passed, deadline = 0.0, of_round(self.round_deadline, state.round)
        while waiting:
            settled = (yield Gather(First(1, within=max(deadline - passed, 0.0)), waiting)) or []
            if not settled:
                break
            passed = max(passed, *(r.seconds for r in settled))
            done = {r.request for r in settled}
            waiting = [b for b in waiting if b not in done]
            arrived = usable(settled)
            handed += [r for r in arrived if r.request.config["last"]]
            ups = [r.request for r in arrived if r.request.config["upload"]]
            yield Dispatch([self.served(_SERVER, up, {}, last=False) for up in ups])
        if waiting:
            yield Gather(First(1, within=0.0), waiting, "cancel")
        handed.sort(key=lambda r: r.request.to if isinstance(r.request.to, int) else 0)
        weights = [client_weight(cohort, r.request.to, self.weights) for r in handed]
        updates = [Update(low, r["half"] - half, k) for r, k in zip(handed, weights, strict=True)]
        heads = [Update(full(head), r["aux_half"] - state.head, k) for r, k in zip(handed, weights, strict=True)]
        w = coverage_mean(state.w, updates)
        for reply in usable((yield from exchange([Request(_SERVER, "hand_over")]))):
            w = torch.cat([low.take(w), reply["half"]])
        return LocalState(w, coverage_mean(state.head, heads), state.round + 1)

    def evaluated(self, state: LocalState) -> Tensor:
        """The clients' average and the server's half."""
        return state.w
