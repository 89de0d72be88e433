"""GAS: nobody waits; the server steps on a buffer of smashed data, topped up with rows of labels that it lacks.

Yang, Liu, "GAS: Generative Activation-Aided Asynchronous Split Federated Learning", AAAI 2025, arXiv 2409.01251.
A round here is one version `t` of the clients' half. From client k, on whose side it is batch e of E:

    A_k = f_c(x; w_ck);   G_k = d loss(f_s(A_k; w_s) + log P_k, y) / dA_k;   w_ck' = w_ck - eta J_k^T G_k
    N(mu_y, Sigma_y) of all A with label y, weighted by s(n),  n = t E + e
    at Q_s uploads:   w_s' = w_s - eta d loss(f_s([A_1 .. A_Qs, A^]; w_s), [y_1 .. y_Qs, y^]) / dw_s,  A^ ~ N(mu, Sigma)
    at Q_c models:    w_c = sum_k |D_k| w_ck / sum_k |D_k|
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import Cut, LayerStack
from lanterne.protocol import (
    Cohort,
    Dispatch,
    First,
    Gather,
    Handler,
    Inbox,
    Local,
    Program,
    Reply,
    Request,
    client_weight,
    idle_clients,
    usable,
)
from lanterne.rng import fold
from lanterne.split import BufferedServer, SplitMethod, client_part, joined, scaled, server_part
from lanterne.split.halves import Answer, Arrays

_SERVER = ("server", 0)
#: Bytes that covariances may take.
_MOST = 2 << 30


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class State:
    """The halves that are current, the version, what is in both buffers, and who is at work.

    `client` is the clients' average, `server` the server's half after its last step. `models` is the average of the
    models that are in the buffer (None when empty), `weight` the sum of their weights, `count` how many. `uploads`
    counts those in the other buffer, which the server's address holds, and `steps` the server's steps. `batches` holds
    how many each client was sent so far, `labels` how often each label has come from it, `[classes]`.
    """

    client: SkipValidation[Tensor]
    server: SkipValidation[Tensor]
    version: int = 0
    models: SkipValidation[Tensor | None] = None
    weight: float = 0.0
    count: int = 0
    uploads: int = 0
    steps: int = 0
    begun: bool = False
    busy: tuple[int, ...] = ()
    batches: Mapping[int, int] = Field(default_factory=dict)
    labels: SkipValidation[Mapping[int, Tensor]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class GAS(SplitMethod):
    """Asynchronous split federated learning with generated activations.

    Raises:
        ModelError: for a model that gives no number per class, or covariances that are too large.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> gas = GAS(stack=LayerStack(net, (4,)), local_steps=20)
        >>> round(math.exp(gas.log_weight(version=2, batch=5)), 9)
        45.0
    """

    cohort: Annotated[int | None, Field(ge=1, description="C, clients at work at once; all by default")] = None
    activation_buffer: Annotated[int, Field(ge=1, description="Q_s, uploads per server step")] = 10
    model_buffer: Annotated[int, Field(ge=1, description="Q_c, clients' models per average")] = 10
    weights: Annotated[Literal["samples", "equal"], Field(description="of the models in the average")] = "samples"
    generated: Annotated[
        int | None, Field(ge=0, description="rows up to which each label is topped up; a batch by default, 0 is none")
    ] = None
    covariance: Annotated[Literal["diagonal", "full"], Field(description="of the smashed data of a label")] = "diagonal"
    weighting: Annotated[
        Literal["linear", "constant", "polynomial", "exponential"],
        Field(description="s(n), how much a row counts in the moments: n, 1, n^a or exp(a n)"),
    ] = "linear"
    growth: Annotated[float, Field(gt=0, allow_inf_nan=False, description="a of s(n)")] = 2.0
    logit_adjustment: Annotated[bool, Field(description="add log P_k to the logits that G_k is taken of")] = True
    decay: Annotated[bool, Field(description="divide both step sizes by sqrt(t), the version counted from 1")] = False
    one_cut: ClassVar[str] = "one buffer takes the smashed data of all clients"

    def __post_init__(self) -> None:
        """Refuse what cannot be split by labels, and covariances that do not fit."""
        shape = self.stack.output_shape
        if len(shape) != 1:
            raise ModelError(
                f"GAS counts labels, but this model gives {'x'.join(map(str, shape))} numbers for a sample, not one "
                "per class. Use another split method."
            )
        q, size = self._width, 8 * shape[0] * self._width**2
        if self.covariance == "full" and self.generated != 0 and size > _MOST:
            raise ModelError(
                f"Full covariances of {q} numbers for each of {shape[0]} labels take {size / 2**30:.1f} GiB, more than "
                f"{_MOST >> 30}. Write covariance = 'diagonal', or cut the model where fewer numbers cross."
            )

    @cached_property
    def server(self) -> BufferedServer:
        """The server's half, its buffer and its moments."""
        labels, full = self.stack.output_shape[0], self.covariance == "full"
        return BufferedServer(self.halves, self.at, self.activation_buffer, labels, self._width, self.generated, full)

    @property
    def networks(self) -> dict[str, LayerStack]:
        """What a product with a full covariance costs."""
        return self.server.networks

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return {"forward": self.halves.forward, "backward": self.backward, **self.server.handlers}

    def log_weight(self, version: int, batch: int) -> float:
        """`log s(n)`, `n = t E + e`.

        Args:
            version: t, from which the client began.
            batch: e, of its E batches, counted from 1.
        """
        n = version * self.local_steps + batch
        powers = {"constant": 0.0, "linear": 1.0, "polynomial": self.growth}
        return self.growth * n if self.weighting == "exponential" else powers[self.weighting] * math.log(n)

    def backward(self, task: Task, state: Arrays, inbox: Inbox, local: Local) -> Answer:
        """Back from `G_k`, and a step of this visit's own optimiser; the model goes up after the last."""
        halves = replace(self.halves, client=scaled(self.halves.client, inbox.config))
        return halves.backward(task, state, inbox, local)

    def init(self, w: Tensor) -> State:
        """The state before the first version."""
        return State(client_part(self.stack, self.place, w), server_part(self.stack, self.place, w))

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """Answer what arrives until Q_c models have, and what is under way stays.

        It ends as well when nobody can be heard any more, and when more visits than there are clients broke off.
        """
        if not state.begun:
            yield Dispatch([self.server.begins(state.server)])
        state, version, turn, lost = replace(state, begun=True), state.version, 0, 0
        while state.version == version:
            state = yield from self._invite(state, cohort, fold(cohort.key, turn))
            turn += 1
            replies = (yield Gather(First(1))) or []
            gone = {r.request.to: r.request for r in replies if not r.usable}
            state = replace(state, busy=tuple(c for c in state.busy if c not in gone))
            lost += sum(q.handler == "backward" or q.batches.start > q.note[1] for q in gone.values())
            for reply in usable(replies):
                if reply.request.handler == "forward":
                    state = yield from self._upload(state, reply)
                elif reply.request.handler == "backward":
                    state = self._model(state, cohort, reply)
                else:
                    state = replace(state, server=reply["half"])
            if not usable(replies) or lost > cohort.population:
                break
        return state

    def _invite(self, state: State, cohort: Cohort, key: int) -> Program[State]:
        """Send the current average to clients at random, until as many are at work as may be."""
        idle = idle_clients(cohort, set(state.busy), self.cohort, key)
        begun = [(client, state.batches.get(client, 0)) for client in idle]
        yield Dispatch([self._forward(client, at, state.version, at, state.client) for client, at in begun])
        batches = {**state.batches, **{client: at + self.local_steps for client, at in begun}}
        return replace(state, busy=tuple(sorted({*state.busy, *idle})), batches=batches)

    def _forward(self, client: int, step: int, version: int, first: int, half: Tensor | None = None) -> Request:
        """A client's next batch; the note says which version and which batch of its stream the visit began with."""
        given = {} if half is None else {"w": half}
        forward = self.halves.exchange(client, _SERVER, step, self.place, client_half=given).forward
        return replace(forward, note=(version, first))

    def _upload(self, state: State, reply: Reply) -> Program[State]:
        """Have `G_k` sent back at once, the client go on, and the server step if its buffer is full."""
        client, step, (version, first) = reply.request.to, reply.request.batches.start, reply.request.note
        assert isinstance(client, int)
        smashed, labels, done = reply["smashed"], reply["labels"], step - first + 1
        arrays, known, last = {"smashed": smashed, "labels": labels}, state.labels, done == self.local_steps
        if self.logit_adjustment:
            seen = torch.bincount(labels, minlength=self.stack.output_shape[0])
            known = {**known, client: seen + known[client] if client in known else seen}
            arrays["prior"] = known[client].to(smashed.dtype) / known[client].sum()
        if self.generated != 0:
            weight = self.log_weight(version, done)
            arrays["log_weight"] = torch.tensor(weight, dtype=torch.float64, device=labels.device)
        answer = self.server.answers(arrays)
        down = self.halves.exchange(client, _SERVER, step, self.place, last=last).backward
        config = {**down.config, **self._scale(version)}
        requests = [answer, replace(down, arrays={"gradient": answer["gradient"]}, config=config)]
        if not last:
            requests.append(self._forward(client, step + 1, version, first))
        state = replace(state, uploads=state.uploads + 1, labels=known)
        if state.uploads == self.activation_buffer:
            requests.append(self.server.steps(state.steps, len(labels), self._scale(state.version)))
            state = replace(state, uploads=0, steps=state.steps + 1)
        yield Dispatch(requests)
        return state

    def _scale(self, version: int) -> dict[str, float]:
        """What step sizes are multiplied by."""
        return {"scale": 1 / math.sqrt(version + 1)} if self.decay else {}

    def _model(self, state: State, cohort: Cohort, reply: Reply) -> State:
        """Put a client's model into the buffer; a full one becomes the next version."""
        client, half, count = reply.request.to, reply["half"], state.count + 1
        weight = client_weight(cohort, client, self.weights)
        total = state.weight + weight
        models = half if state.models is None else torch.lerp(state.models, half, weight / total)
        state = replace(state, busy=tuple(c for c in state.busy if c != client))
        if count < self.model_buffer:
            return replace(state, models=models, weight=total, count=count)
        return replace(state, client=models, models=None, weight=0.0, count=0, version=state.version + 1)

    @property
    def _width(self) -> int:
        """How many numbers cross the cut for a sample."""
        assert isinstance(self.place, Cut)
        return math.prod(self.place.shape)

    def evaluated(self, state: State) -> Tensor:
        """The clients' average and the server's half."""
        return joined(self.stack, self.place, state.client, state.server)
