"""SGLR: parallel split learning with two tricks on the server, a longer step and an averaged gradient for some clients.

Pal, Uniyal, Park, Vepakomma, Raskar, Bennis, Jeon, Choi, "Server-Side Local Gradient Averaging and Learning Rate
Acceleration for Scalable Split Learning", arXiv 2112.05929, Algorithm 1 and equation 15.

    SplitLr:   eta_s = eta_c C^alpha
    SplitAvg:  the clients of C_a, |C_a| = phi C, drawn for each batch, all get  (1/|C_a|) sum_{i in C_a} g_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.learn import Optimiser
from lanterne.protocol import Cohort, Inbox
from lanterne.rng import fold, generator
from lanterne.split import OneServer


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SGLR(OneServer):
    """Server-side local gradient averaging and learning rate acceleration.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> SGLR(stack=LayerStack(net, (4,)), alpha=0.5, phi=0.75).cut_gradient
        'pooled'
    """

    cut_gradient: Annotated[
        Literal["per_client", "pooled"],
        Field(description="what g_i is: of each client's loss, or delta_i g_i as from one loss over all samples"),
    ] = "pooled"
    alpha: Annotated[float, Field(ge=0, description="the server's step is eta_s C^alpha, of C clients")] = 1.0
    phi: Annotated[float, Field(ge=0, le=1, description="share of the clients that get the averaged gradient")] = 0.5
    average: Annotated[
        Literal["position", "rows"], Field(description="row by row over clients, or over all rows of all of them")
    ] = "position"
    reduce: Annotated[Literal["mean", "sum"], Field(description="as the text says, or as equation 15 is printed")] = (
        "mean"
    )

    one_cut: ClassVar[str] = "the gradients at the cut are averaged over clients"

    def server_optimiser(self, config: Mapping[str, Any]) -> Optimiser:
        """SplitLr."""
        server = self.halves.server
        return replace(server, lr=server.lr * len(config["shares"]) ** self.alpha)

    def drawn(self, rows: Sequence[int], cohort: Cohort, step: int) -> dict[str, Tensor]:
        """Who is active in this batch, as an array: all batches with as many clients cost the same."""
        chosen = generator(fold(cohort.key, "active", step)).permutation(len(rows))[: self.active_of(len(rows))]
        return {"active": torch.zeros(len(rows), dtype=torch.bool).index_fill(0, torch.from_numpy(chosen), True)}

    def active_of(self, clients: int) -> int:
        """How many of the clients are active."""
        return round(self.phi * clients)

    def sent(self, ups: Sequence[Tensor], inbox: Inbox) -> Sequence[Tensor]:
        """SplitAvg."""
        n = self.active_of(len(ups))
        if not n:
            return ups
        every = torch.stack(list(ups))
        active = inbox["active"].reshape(-1, *[1] * (every.dim() - 1))
        shared = torch.where(active, every, 0).sum(0)
        if self.average == "rows":
            shared = shared.mean(0, keepdim=True).expand_as(shared)
        if self.reduce == "mean":
            shared = shared / n
        return torch.where(active, shared, every).unbind()
