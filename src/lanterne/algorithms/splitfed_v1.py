"""SplitFed V1: every client has its own replica of the server's half; after the local batches both halves are averaged.

Thapa, Arachchige, Camtepe, Sun, "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, arXiv 2004.12088,
Algorithms 1 and 2.

    for each batch of client i:   s_i = f_c(x_i; w_ci);  g_i = dL_i / ds_i
                                  w_s,i' = w_s,i - eta dL_i / dw_s,i;   w_ci' = w_ci - eta J_i^T g_i
    after E of them:              w_c = sum_i delta_i w_ci;   w_s = sum_i delta_i w_s,i
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.budget import Deadlines, of_round
from lanterne.learn import Update, coverage_mean
from lanterne.models import Cut, UCut, full
from lanterne.protocol import Cohort, Deadline, Dispatch, Gather, Program, client_weight, usable
from lanterne.split import Exchange, UShapedMethod, client_part, joined, server_part


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The global weights `[size]` and the rounds so far."""

    w: SkipValidation[Tensor]
    round: int = 0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SplitFedV1(UShapedMethod):
    """SplitFed with a replica of the server's half for each client: FedAvg, bit for bit, wherever the model is cut.

    A client's replica has the blocks that the client does not hold, so each class of devices may have a cut of its own.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> SplitFedV1(stack=LayerStack(net, (4,)), cut="0").place.at
        1
    """

    keep_optimiser: Annotated[bool, Field(description="keep what both optimisers remember between rounds")] = False
    weights: Annotated[Literal["samples", "equal"], Field(description="delta_i of the average")] = "samples"
    round_deadline: Annotated[Deadlines, Field(description="seconds after the invitation; or a list")] = math.inf

    one_cut: ClassVar[str] = ""

    @property
    def keeps(self) -> tuple[bool, bool]:
        """Whether the optimisers of clients and of replicas go on where they were in the last round."""
        return self.keep_optimiser, self.keep_optimiser

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Start every client's chain of exchanges; whose last has not ended by the deadline is in neither average."""
        places = {client: self.place_of(cohort, client) for client in cohort.sample(self.cohort, cohort.key)}
        chains = [self._chain(state, client, place) for client, place in places.items()]
        yield Dispatch([request for chain in chains for exchange in chain for request in exchange.requests])
        ends = [chain[-1] for chain in chains]
        deadline = Deadline(of_round(self.round_deadline, state.round))
        clients = usable((yield Gather(deadline, [end.backward for end in ends], "cancel")) or [])
        served = {end.backward: end.served for end in ends}
        servers = (yield Gather(of=[served[r.request] for r in clients])) or []
        updates = []
        for client, server in zip(clients, servers, strict=True):
            number = client.request.to
            assert isinstance(number, int)  # it went to a client
            w = joined(self.stack, places[number], client["half"], server["half"])
            updates.append(Update(full(self.stack), w - state.w, client_weight(cohort, number, self.weights)))
        return replace(state, w=coverage_mean(state.w, updates), round=state.round + 1)

    def _chain(self, state: State, client: int, place: Cut | UCut) -> list[Exchange]:
        """One client's batches of a round, from the global weights on."""
        steps = self.steps(state.round)
        begin = {"w": client_part(self.stack, place, state.w)}, {"w": server_part(self.stack, place, state.w)}
        chain = []
        for step in steps:
            client_half, server_half = begin if step == steps[0] else ({}, {})
            chain.append(
                self.halves.exchange(
                    client,
                    ("server", client),
                    step,
                    place,
                    client_half=client_half,
                    server_half=server_half,
                    last=step == steps[-1],
                )
            )
        return chain

    def evaluated(self, state: State) -> Tensor:
        """The global weights."""
        return state.w
