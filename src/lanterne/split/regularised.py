"""A client's half with a decoder behind it: the true gradient from the server, and beside it that of a reconstruction.

    Lhat_i = mean |target(x_i) - h(s_i; phi_i)|^2
    w_ci' = w_ci - eta_c (J_i^T g_i + gamma dLhat_i/dw_ci);   phi_i' = phi_i - eta_phi dLhat_i/dphi_i

The decoder works while its client waits for the server, on the smashed data alone; what it wants of them is added to
what the server sends, and one backward pass takes both through the client's blocks. The decoder never leaves for the
split server: it would invert the smashed data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from lanterne.errors import ModelError
from lanterne.learn import Optimiser, Task
from lanterne.models import Cut, LayerStack, ParamView, full, initial_weights, prefix
from lanterne.models.heads import build_head
from lanterne.protocol import Handler, Inbox, Local, Output, Pass, Request
from lanterne.rng import fold
from lanterne.split.halves import SLOTS, TRAFFIC, Answer, Arrays
from lanterne.split.method import SplitMethod
from lanterne.tree import digest

_DECODER_SLOTS = tuple(f"phi_{name}" for name in SLOTS)


@dataclasses.dataclass(frozen=True)
class RegularisedClient:
    """The handlers of a client with a decoder, and the requests to them.

    Args:
        low: the client's blocks.
        optimiser: of the client's blocks.
        decoder: `h`; None is no regulariser at all.
        decoder_optimiser: of the decoder.
        gamma: what the reconstruction counts in the client's gradient.
        target: reconstruct the network's `input`, or that mapped to the `unit` interval.
        between: the values of the input that 0 and 1 stand for in a `unit` target; what lies beyond is cut off.
        error: `mse`, or `bce`: binary cross-entropy of a `unit` target.
        federated: whether decoders are handed in and replaced with their clients' halves.
        reset: whether the optimisers begin anew with a new half.
    """

    low: ParamView
    optimiser: Optimiser
    decoder: LayerStack | None
    decoder_optimiser: Optimiser
    gamma: float = 1.0
    target: Literal["input", "unit"] = "input"
    between: tuple[float, float] = (0.0, 1.0)
    error: Literal["mse", "bce"] = "mse"
    federated: bool = True
    reset: bool = False

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of the client."""
        mine = (self.forward, self.reconstruct, self.backward, self.alone, self.hand_in)
        return {handler.__name__: handler for handler in mine}

    def forward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Smashed data, from a new half and a new decoder if they have come."""
        state = self._begun(state, inbox)
        smashed = task.smash(self.low, state["w"], local.x[0])
        return {**state, "smashed": smashed}, {"smashed": smashed, "labels": local.y[0]}

    def reconstruct(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """`dLhat/dphi` and `dLhat/ds`, which wait for the server's gradient."""
        del inbox
        assert self.decoder is not None
        target = local.x[0]
        if self.target == "unit":
            low, high = self.between
            target = ((target - low) / (high - low)).clamp(0, 1)
        error = functional.mse_loss if self.error == "mse" else functional.binary_cross_entropy
        here = dataclasses.replace(task.on(self.decoder), loss=error)
        g, pull = here.gradient_with_input(full(self.decoder), state["phi"], state["smashed"], target)
        return {**state, "decoder_gradient": g, "pull": pull}, {}

    def backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Both parts of the gradient in one backward pass, and the steps; the half goes up if it is asked for.

        A device that failed to reconstruct goes by the server's part.
        """
        up = inbox["gradient"]
        if "pull" in state:
            up = up + self.gamma * state["pull"]
        state = self._stepped(task, state, local.x[0], up)
        return self._handed(state) if inbox.config["last"] else (state, {})

    def alone(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """A step on the reconstruction alone, by a client that was not served."""
        del inbox
        pull = state["pull"] if "pull" in state else torch.zeros_like(state["smashed"])
        return self._stepped(task, state, local.x[0], self.gamma * pull), {}

    def hand_in(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Half and decoder for the average."""
        del task, inbox, local
        return self._handed(state)

    def _begun(self, state: Arrays, inbox: Inbox) -> Arrays:
        kept = {n: t for n, t in state.items() if n in ("w", "phi", *SLOTS, *_DECODER_SLOTS)}
        if "w" in inbox.arrays:
            kept = {n: t for n, t in kept.items() if n == "phi" or not self.reset}
            kept["w"] = inbox["w"]
        if "aux" in inbox.arrays:
            kept["phi"] = inbox["aux"]
        return kept

    def _stepped(self, task: Task, state: Arrays, x: Tensor, up: Tensor) -> Arrays:
        w = state["w"]
        w, slots = self.optimiser.step(w, state, task.pullback(self.low, w, x, up, state["smashed"]))
        if "decoder_gradient" not in state:
            return {"w": w, **slots, **{n: state[n] for n in ("phi", *_DECODER_SLOTS) if n in state}}
        remembered = {n: state[f"phi_{n}"] for n in SLOTS if f"phi_{n}" in state}
        phi, theirs = self.decoder_optimiser.step(state["phi"], remembered, state["decoder_gradient"])
        return {"w": w, **slots, "phi": phi, **{f"phi_{n}": t for n, t in theirs.items()}}

    def _handed(self, state: Arrays) -> Answer:
        """The half goes up and is forgotten, as the decoder is where all of them are averaged."""
        goes = {"w": "half", "phi": "aux_half"} if self.federated else {"w": "half"}
        sent = {name: state[n] for n, name in goes.items() if n in state}
        return {n: t for n, t in state.items() if n not in goes}, sent

    # ------------------------------------------------------------------ requests
    def begin(self, client: int, step: int, given: Mapping[str, Tensor | Output]) -> list[Request]:
        """A batch up to the cut, and the reconstruction behind it; the first of the requests brings the smashed data.

        Args:
            client: whose.
            step: which batch of its stream.
            given: what it begins with, `w` and perhaps `aux`; by default what it has.
        """
        batch, at = range(step, step + 1), self.low.last
        forward = Request(client, "forward", given, {}, batch, [Pass("forward", 0, at, kept=True)])
        if self.decoder is None:
            return [forward]
        n = len(self.decoder)
        passes = [Pass("forward", 0, n, network="decoder"), Pass("backward", 0, n, to_input=True, network="decoder")]
        return [forward, Request(client, "reconstruct", {}, {}, batch, passes, silent=True)]

    def finish(self, forward: Request, gradient: Output | None, *, last: bool = False) -> Request:
        """The backward pass of a batch.

        Args:
            forward: its forward pass.
            gradient: from the server; None is a step by the reconstruction alone.
            last: whether the half is handed in after it.
        """
        config: dict[str, Any] = {} if gradient is None else {"last": last}
        arrays = {} if gradient is None else {"gradient": gradient}
        passes = [Pass("backward", 0, self.low.last)]
        handler = "alone" if gradient is None else "backward"
        return Request(forward.to, handler, arrays, config, forward.batches, passes, silent=not last)

    def asked(self, client: int) -> Request:
        """For the half of a client that is in the middle of nothing.

        Args:
            client: whose.
        """
        return Request(client, "hand_in")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class RegularisedMethod(SplitMethod):
    """The options of clients with a decoder, and what follows from them."""

    gamma: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="of the reconstruction in a client's gradient; 0 has none")
    ] = 1.0
    decoder: Annotated[str, Field(description="h, with options: 'decoder:widen=2', 'decoder:output=sigmoid'")] = (
        "decoder"
    )
    decoder_lr: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="eta_phi, step size of a decoder; eta_c by default")
    ] = None
    target: Annotated[
        Literal["input", "unit"], Field(description="reconstruct the network's input, or that mapped to 0 ... 1")
    ] = "input"
    between: Annotated[tuple[float, float], Field(description="the inputs that 0 and 1 of a unit target stand for")] = (
        0.0,
        1.0,
    )
    error: Annotated[Literal["mse", "bce"], Field(description="of the reconstruction; bce of a unit target")] = "mse"
    average_decoders: Annotated[bool, Field(description="average decoders as well")] = True
    reset_optimiser: Annotated[bool, Field(description="begin the clients' optimisers anew at each average")] = False
    alone: Annotated[int, Field(ge=0, description="the most steps in a row by the reconstruction alone")] = 1

    traffic: ClassVar[Mapping[str, str]] = {**TRAFFIC, "aux": "aux_down", "aux_half": "aux_up"}

    def __post_init__(self) -> None:
        """Refuse an illegal cut, a decoder that does not fit it, and a target that it cannot reach."""
        for net in self.networks.values():
            if net.output_shape != self.stack.sample_shape:
                raise ModelError(f"{self.decoder!r} does not reconstruct the sample. Write 'decoder', or gamma = 0.")
            if any(isinstance(m, nn.Sigmoid) for m in net.net.modules()) != (self.target == "unit"):
                raise ModelError(
                    f"The decoder {self.decoder!r} cannot reach the target {self.target!r}: a sigmoid gives 0 to 1, as "
                    "the unit target has it, a linear output any number. Write decoder = 'decoder:output=sigmoid' with "
                    "target = 'unit', or leave both out."
                )
        if self.error == "bce" and self.target != "unit":
            raise ModelError("Binary cross-entropy takes a target in 0 ... 1. Write target = 'unit', or error = 'mse'.")
        if not -math.inf < self.between[0] < self.between[1] < math.inf:
            raise ModelError(f"'between' is {self.between}: write two finite numbers, the smaller number first.")

    @cached_property
    def networks(self) -> dict[str, LayerStack]:
        """The decoder."""
        assert isinstance(self.place, Cut)
        return {"decoder": build_head(self.decoder, self.stack, self.place)} if self.gamma else {}

    @cached_property
    def client(self) -> RegularisedClient:
        """The client's half."""
        optimiser, lr = self.halves.client, self.decoder_lr or self.lr
        return RegularisedClient(
            prefix(self.stack, self.at),
            optimiser,
            self.networks.get("decoder"),
            dataclasses.replace(optimiser, lr=lr),
            self.gamma,
            self.target,
            self.between,
            self.error,
            self.average_decoders,
            self.reset_optimiser,
        )

    def first_decoder(self, w: Tensor) -> Tensor | None:
        """The decoder's weights before the first round, which follow from the model's.

        Args:
            w: `[size]`, the model's.
        """
        key = fold(digest({"w": w.to(torch.float32)}), "decoder")
        found = [initial_weights(net, key, w.dtype).to(w.device) for net in self.networks.values()]
        return found[0] if found else None
