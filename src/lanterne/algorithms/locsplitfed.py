"""LocSplitFed: clients train by a small classifier behind the cut, the server by what they send; nothing comes down.

Han, Bhatti, Lee, Moon, "Accelerating Federated Learning with Split Learning on Locally Generated Losses", FL-ICML 2021.

    client:  (w_ci, theta_i) step on  loss(a(f_c(x_i); theta_i), y_i)          for each batch
    server:  w_s,i steps on           loss(f_s(sg[s_i]; w_s,i), y_i)
    after E batches:  w_c, theta, w_s are the means of the clients' and of the replicas', weighted by delta_i
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
from lanterne.protocol import Cohort, Deadline, Dispatch, Gather, Program, Request, client_weight, usable
from lanterne.split import LocalLossMethod, LocalState


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class LocSplitFed(LocalLossMethod):
    """Split learning on locally generated losses, with a replica of the server's half for each client.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> LocSplitFed(stack=LayerStack(net, (4,))).networks["head"].size
        8
    """

    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the averages")] = "samples"
    round_deadline: Annotated[Deadlines, Field(description="seconds after the invitation; or a list")] = math.inf

    @property
    def keeps(self) -> tuple[bool, bool]:
        """A replica that is given a new half begins with a new optimiser, as a client does."""
        return False, False

    def init(self, w: Tensor) -> LocalState:
        """The state before the first round."""
        return self.begin_state(w)

    def round(self, state: LocalState, cohort: Cohort) -> Program[LocalState]:
        """Start every client's batches; who has not handed in by the deadline is in none of the averages."""
        low, high = prefix(self.stack, self.at), suffix(self.stack, self.at)
        steps = self.steps(state.round)
        requests: list[Request] = []
        ends: dict[Request, Request] = {}
        for client in cohort.sample(self.cohort, cohort.key):
            for step in steps:
                first, last = step == steps[0], step == steps[-1]
                half = {"w": low.take(state.w), "aux": state.head} if first else {}
                up = self.batch(client, step, half, upload=True, last=last)
                served = self.served(("server", client), up, {"w": high.take(state.w)} if first else {}, last=last)
                requests += [up, served]
            ends[up] = served
        yield Dispatch(requests)
        deadline = Deadline(of_round(self.round_deadline, state.round))
        handed = usable((yield Gather(deadline, list(ends), "cancel")) or [])
        replicas = (yield Gather(of=[ends[r.request] for r in handed])) or []
        updates, heads = [], []
        for mine, theirs in zip(handed, replicas, strict=True):
            weight = client_weight(cohort, mine.request.to, self.weights)
            updates.append(Update(full(self.stack), torch.cat([mine["half"], theirs["half"]]) - state.w, weight))
            heads.append(Update(full(self.networks["head"]), mine["aux_half"] - state.head, weight))
        return LocalState(coverage_mean(state.w, updates), coverage_mean(state.head, heads), state.round + 1)

    def evaluated(self, state: LocalState) -> Tensor:
        """The global weights, without the head."""
        return state.w
