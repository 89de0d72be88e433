"""Sequential split learning: one client after the other trains with the server and hands its half to the next.

Gupta, Raskar, "Distributed learning of deep neural network over multiple agents", Journal of Network and Computer
Applications 116, 2018, arXiv 1810.06060, Algorithm 1 and section 3.2 (the hand-off).

    for each client i in turn, for each batch:   s = f_c(x; w_c);  g = dL / ds
                                                 w_s' = w_s - eta dL / dw_s;   w_c' = w_c - eta J^T g
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.protocol import Cohort, Dispatch, Gather, Program, Request, exchange, usable
from lanterne.rng import fold, generator
from lanterne.split import SLOTS, TRAFFIC, UShapedMethod, client_part, joined, server_part


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The weights `[size]`: the half that was handed in last, and the server's; what goes along; the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0
    slots: SkipValidation[Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SequentialSL(UShapedMethod):
    """Split learning as it was first: clients in turn, `local_steps` batches each. One client is centralised training.

    A client that is lost breaks the ring nowhere: the next one begins with the half that was handed in last, and the
    server keeps the steps that it has made.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> SequentialSL(stack=LayerStack(net, (4,)), handoff="optimiser").place.name
        '0'
    """

    handoff: Annotated[
        Literal["weights", "optimiser"],
        Field(description="what goes to the next client: the weights, or the optimiser too"),
    ] = "weights"
    order: Annotated[Literal["random", "ascending"], Field(description="of the clients in a round")] = "random"

    traffic: ClassVar[Mapping[str, str]] = {**TRAFFIC, **dict.fromkeys(("w", "half", *SLOTS), "handoff")}
    one_cut: ClassVar[str] = "a client hands its half on to the next"

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """One visit after the other."""
        clients = list(cohort.sample(self.cohort, cohort.key))
        if self.order == "random":
            clients = [clients[i] for i in generator(fold(cohort.key, "order")).permutation(len(clients))]
        half, slots = client_part(self.stack, self.place, state.w), dict(state.slots)
        steps, server = self.steps(state.round), server_part(self.stack, self.place, state.w)
        yield Dispatch([self.halves.begin(("server", 0), server)])
        for client in clients:
            visit = [
                self.halves.exchange(
                    client,
                    ("server", 0),
                    step,
                    self.place,
                    client_half={"w": half, **slots} if step == steps[0] else None,
                    last=step == steps[-1],
                    with_slots=self.handoff == "optimiser",
                )
                for step in steps
            ]
            yield Dispatch([request for exchange in visit for request in exchange.requests])
            for reply in usable((yield Gather(of=[visit[-1].backward])) or []):
                half, slots = reply["half"], {name: reply[name] for name in SLOTS if name in reply.arrays}
        ended = yield from exchange([Request(("server", 0), "hand_over")])
        for reply in usable(ended):
            server = reply["half"]
        return State(joined(self.stack, self.place, half, server), state.round + 1, slots)

    def evaluated(self, state: State) -> Tensor:
        """The half of the client that came last, and the server's."""
        return state.w
