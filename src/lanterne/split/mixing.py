"""A server that steps on all clients' smashed data and on mixtures of them, and serves who comes too late.

s~_ij = lambda s_i + (1 - lambda) s_j,  y~_ij = lambda y_i + (1 - lambda) y_j,  lambda ~ Beta(alpha, alpha)
w_s' = w_s - eta_s sum_i delta_i d(L_i + (mu/n_s) sum_j L~_ij)/dw_s
g_i  = dL_i/ds_i, of the client's own loss alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.errors import ModelError
from lanterne.learn import Choice, Mix, Share, Task, draw_mix, mixup_gradient
from lanterne.models import suffix
from lanterne.protocol import Cohort, Handler, Inbox, Local, Pass, Reply, Request, client_weight
from lanterne.rng import fold, generator
from lanterne.split.halves import Answer, Arrays
from lanterne.split.method import ParallelMethod

SERVER = ("server", 0)

#: A client that came too late, its smashed data and its labels.
LateComer = tuple[int, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class MixingMethod(ParallelMethod):
    """What the server does whose one half learns from mixtures as well, and the options of that."""

    partners: Annotated[int, Field(ge=0, description="n_s, mixtures per client; fewer where fewer are there")] = 1
    alpha: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="of Beta(alpha, alpha), from which lambda is drawn")
    ] = 1.0
    share: Annotated[Share, Field(description="lambda for each pair, each sample, or constantly 0.5")] = "pair"
    choice: Annotated[
        Choice, Field(description="partners at random, those next in turn, or with replacement and oneself among them")
    ] = "random"
    mix_weight: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="mu, of the mixtures beside the clients' own losses")
    ] = 1.0
    mix_reduce: Annotated[Literal["mean", "sum"], Field(description="over a client's mixtures")] = "mean"
    mix_loss: Annotated[
        Literal["added", "convex"], Field(description="L + mu L~, or that divided by the sum of its weights")
    ] = "added"
    mix_to_clients: Annotated[bool, Field(description="send the mixtures' gradient to the clients as well")] = False
    cut_gradient: Annotated[
        Literal["per_client", "pooled", "sum"],
        Field(description="what a client gets: g_i, delta_i g_i as from one loss, or b g_i as from a sum over rows"),
    ] = "per_client"
    cut_weights: Annotated[
        Literal["before", "after"], Field(description="g_i by the server's half before its step, or after it")
    ] = "before"
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i")] = "samples"
    late: Annotated[
        Literal["drop", "mix", "serve"],
        Field(description="smashed data behind quorum or deadline: dropped, partners of the next, or served alone"),
    ] = "drop"  # type: ignore[assignment]  # one way more

    one_cut: ClassVar[str] = "smashed data of different clients are mixed"

    def __post_init__(self) -> None:
        """Refuse a way for the mixtures' gradient that it cannot take."""
        super().__post_init__()
        if self.mix_to_clients and self.cut_weights == "after":
            raise ModelError(
                "mix_to_clients sends the gradient that the server has stepped on, but cut_weights = 'after' asks for "
                "another one, of the clients' own losses. Leave one of the two out."
            )

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of the server."""
        mine = (self.halves.adopt, self.halves.hand_over, self.serve, self.serve_late)
        return {handler.__name__: handler for handler in mine}

    def serve(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Every client's own gradient, and one step on their losses and those of the mixtures, at the same weights."""
        del local
        shares, view, w = inbox.config["shares"], suffix(self.stack, self.at), state["w"]
        pool = len(shares) + inbox.config["late"]
        smashed, labels = ([inbox[f"{name}_{i}"] for i in range(pool)] for name in ("smashed", "labels"))
        present = smashed[: len(shares)], labels[: len(shares)]
        g, ups = task.gradient_with_inputs(view, w, *present, shares)
        if "partners" in inbox.arrays:
            mix = Mix(inbox["partners"], inbox["rows"], inbox["share"])
            n = mix.partners.shape[1]
            scale = self.mix_weight / (n if self.mix_reduce == "mean" else 1)
            more, back = mixup_gradient(task, view, w, smashed, labels, mix, [scale * share for share in shares])
            total = 1 + scale * n if self.mix_loss == "convex" else 1.0
            g = (g + more) / total
            if self.mix_to_clients:
                ups = tuple(
                    (up + back[i] / share) / total for i, (up, share) in enumerate(zip(ups, shares, strict=True))
                )
        w, slots = self.halves.server.step(w, state, g)
        if self.cut_weights == "after":
            _, ups = task.gradient_with_inputs(view, w, *present, shares)
        sent = [self._scaled(up, share) for up, share in zip(ups, shares, strict=True)]
        return {"w": w, **slots}, {f"gradient_{i}": up for i, up in enumerate(sent)}

    def serve_late(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """The gradient of a client that came too late, at the weights of now; the server does not step."""
        del local
        view = suffix(self.stack, self.at)
        _, up = task.gradient_with_input(view, state["w"], inbox["smashed"], inbox["labels"])
        return state, {"gradient": self._scaled(up, inbox.config["share"])}

    def _scaled(self, up: Tensor, share: float) -> Tensor:
        return up * {"per_client": 1.0, "pooled": share, "sum": len(up)}[self.cut_gradient]

    # ------------------------------------------------------------------ requests
    def served(self, arrived: Sequence[Reply], late: Sequence[LateComer], cohort: Cohort, step: int) -> Request:
        """The server's work on the smashed data that are there, with weights that sum to 1 over those in time.

        Args:
            arrived: what was in time.
            late: partners for it that were not.
            cohort: for weights, and for the key of the mixtures.
            step: which batch it is.
        """
        weights = [client_weight(cohort, r.request.to, self.weights) for r in arrived]
        arrays: dict[str, Any] = {
            f"{n}_{i}": r.request[n] for i, r in enumerate(arrived) for n in ("smashed", "labels")
        }
        for i, (_, smashed, labels) in enumerate(late, len(arrived)):
            arrays |= {f"smashed_{i}": smashed, f"labels_{i}": labels}
        clients, pool = len(arrived), len(arrived) + len(late)
        work = [clients, clients] if self.cut_weights == "after" else [clients]
        if self.partners and (pool > 1 or self.choice == "replacement"):
            key, rows = fold(cohort.key, "mix", step), len(arrived[0]["labels"])
            mix = draw_mix(
                generator(key),
                clients,
                pool,
                self.partners,
                rows,
                alpha=self.alpha,
                share=self.share,
                choice=self.choice,
            )
            arrays |= mix._asdict()
            work.append(mix.partners.numel())
        at, n = self.at, len(self.stack)
        passes = [
            Pass(kind, at, n, to_input=kind == "backward", batches=batches)
            for batches in work
            for kind in ("forward", "backward")
        ]
        config = {"shares": tuple(weight / sum(weights) for weight in weights), "late": len(late)}
        return Request(SERVER, "serve", arrays, config, passes=passes)

    def served_late(self, reply: Reply, clients: Sequence[int], cohort: Cohort) -> Request:
        """The server's work for one client that came too late.

        Args:
            reply: brings its smashed data.
            clients: whom the round invites; a pooled gradient is weighted by the client's share among all of them.
            cohort: for weights.
        """
        client = reply.request.to
        share = client_weight(cohort, client, self.weights)
        share /= sum(client_weight(cohort, c, self.weights) for c in {*clients, client})
        arrays = {name: reply[name] for name in ("smashed", "labels")}
        at, n = self.at, len(self.stack)
        passes = [Pass("forward", at, n), Pass("backward", at, n, to_input=True)]
        return Request(SERVER, "serve_late", arrays, {"share": share}, passes=passes)
