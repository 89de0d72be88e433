"""CycleSL: the server trains on everybody's smashed data as on a data set, then sends the gradients of what it is then.

Wang, Bozkir, Kasneci, "CycleSL: Server-Client Cyclical Update Driven Scalable Split Learning", WACV 2026,
arXiv 2511.18611; from its abstract alone.

    P    = all (s_i, y_i) that are there;   for each epoch a permutation of its rows, cut into mini-batches B
    w_s' = w_s - eta_s d/dw_s mean_{r in B} loss(f_s(s_r; w_s), y_r)          for each B, one after the other
    g_i  = d loss(f_s(s_i; w_s'), y_i) / ds_i;                  w_ci' = w_ci - eta_c J_i^T g_i
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import batch_norms, suffix
from lanterne.protocol import Cohort, Inbox, Local, Pass
from lanterne.rng import fold, generator
from lanterne.split import OneServer
from lanterne.split.halves import Answer, Arrays


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class CycleSL(OneServer):
    """Parallel split learning whose server trains first, on mini-batches across clients.

    Raises:
        ModelError: for mini-batches of one row where the model has BatchNorm.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> CycleSL(stack=LayerStack(net, (4,)), server_epochs=2, server_batch=8).mini_batches([5, 5, 7])
        [(0, 8), (8, 17)]
    """

    server_epochs: Annotated[int, Field(ge=1, description="of the server over the smashed data of a batch")] = 1
    resample: Annotated[
        bool, Field(description="mini-batches of permuted rows of all clients; or all rows at once, as they are")
    ] = True
    server_batch: Annotated[int | None, Field(ge=1, description="rows of a mini-batch; as a client's by default")] = (
        None
    )
    gradients: Annotated[
        Literal["updated", "old"], Field(description="cut gradients at the server's weights after its steps, or before")
    ] = "updated"
    gradient_batches: Annotated[
        Literal["original", "resampled"],
        Field(description="cut gradients of the clients' own batches, or of the last epoch's mini-batches"),
    ] = "original"

    one_cut: ClassVar[str] = "mini-batches mix smashed data of different clients"

    def __post_init__(self) -> None:
        """Refuse an illegal cut, sizes of mini-batches that are not there, and one that cannot be normalised."""
        super().__post_init__()
        if not self.resample and (self.server_batch is not None or self.gradient_batches == "resampled"):
            raise ValueError(
                "server_batch and gradient_batches = 'resampled' are about mini-batches, but with resample = false "
                "every step is on all rows at once. Leave them out, or resample."
            )
        if self.server_batch == 1 and batch_norms(self.stack):
            raise ModelError(
                "server_batch is 1, but the model has BatchNorm, which cannot normalise a batch of one row. "
                "Write server_batch = 2 or more, or take a model without BatchNorm."
            )

    def mini_batches(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Where each mini-batch of an epoch begins and ends; what is left over is a smaller one, a single row joins.

        Args:
            rows: of each client's smashed data.
        """
        total = sum(rows)
        size = self.server_batch or rows[0]
        starts = list(range(0, total, size))
        if size > 1 < len(starts) and total - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], total], strict=True))

    def drawn(self, rows: Sequence[int], cohort: Cohort, step: int) -> dict[str, Tensor]:
        """The order of the rows, `[server_epochs, rows]`, a new permutation for each epoch."""
        if not self.resample:
            return {}
        draw = generator(fold(cohort.key, "resample", step))
        return {"order": torch.from_numpy(np.stack([draw.permutation(sum(rows)) for _ in range(self.server_epochs)]))}

    def passes(self, rows: Sequence[int], cuts: Sequence[int]) -> list[Pass]:
        """The server's steps, and a pass for the cut gradients where no step has them by the way."""
        at, n, whole = self.at, len(self.stack), super().passes(rows, cuts)
        if not self.resample:
            return whole * (self.server_epochs + (self.gradients == "updated"))
        sizes = [last - first for first, last in self.mini_batches(rows)]
        epoch = [Pass(kind, at, n, samples=size) for size in sizes for kind in ("forward", "backward")]
        if self.gradient_batches == "resampled":
            whole = [p._replace(to_input=p.kind == "backward") for p in epoch]
        return epoch * self.server_epochs + whole

    def serve_all(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The server's epochs, and every client's gradient."""
        del local
        shares = inbox.config["shares"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(len(shares))] for name in ("smashed", "labels"))
        train = self._on_mini_batches if self.resample else self._on_the_pool
        slots, ups = train(task, state, inbox, smashed, labels)
        return slots, {f"gradient_{i}": up for i, up in enumerate(ups)}

    def _on_the_pool(
        self, task: Task, state: Arrays, inbox: Inbox, smashed: list[Tensor], labels: list[Tensor]
    ) -> tuple[Arrays, Sequence[Tensor]]:
        """Steps on all rows at once, weighted as in parallel split learning; the first has the old gradients."""
        view, shares, found = suffix(self.stack, self.at), inbox.config["shares"], []
        for _ in range(self.server_epochs):
            g, ups = task.gradient_with_inputs(view, state["w"], smashed, labels, shares)
            w, slots = self.halves.server.step(state["w"], state, g)
            state = {"w": w, **slots}
            found.append(ups)
        if self.gradients == "updated":
            found = [task.gradient_with_inputs(view, state["w"], smashed, labels, shares)[1]]
        return state, self.scaled(found[0], shares)

    def _on_mini_batches(
        self, task: Task, state: Arrays, inbox: Inbox, smashed: list[Tensor], labels: list[Tensor]
    ) -> tuple[Arrays, Sequence[Tensor]]:
        """Steps on mini-batches of the rows in the order that was drawn; there each row counts once."""
        view, x, y, old = suffix(self.stack, self.at), torch.cat(smashed), torch.cat(labels), state["w"]
        sizes, orders = [len(one) for one in smashed], inbox["order"].to(x.device)
        places = self.mini_batches(sizes)
        for order in orders:
            for first, last in places:
                chosen = order[first:last]
                g = task.gradient(view, state["w"], x[chosen], y[chosen])
                w, slots = self.halves.server.step(state["w"], state, g)
                state = {"w": w, **slots}
        w = state["w"] if self.gradients == "updated" else old
        if self.gradient_batches == "original":
            shares = inbox.config["shares"]
            return state, self.scaled(task.gradient_with_inputs(view, w, smashed, labels, shares)[1], shares)
        order, ups = orders[-1], []
        for first, last in places:
            chosen = order[first:last]
            up = task.gradient_with_input(view, w, x[chosen], y[chosen])[1]
            ups.append(up if self.cut_gradient == "pooled" else (last - first) * up)
        parts = torch.split(torch.zeros_like(x).index_copy(0, order, torch.cat(ups)), sizes)
        return state, parts if self.cut_gradient == "pooled" else [part / len(part) for part in parts]
