"""The hyperparameters that split methods share, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass

from lanterne.learn import Optimiser
from lanterne.models import Cut, LayerStack, UCut, find_cut, find_u_cut, legal_cuts
from lanterne.protocol import Effect, First, Gather, Handler, Late, Reply, Request, usable
from lanterne.split.halves import TRAFFIC, Halves
from lanterne.split.wire import Wire, over_the_wire


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SplitMethod:
    """The hyperparameters that split methods share, and what follows from them.

    Raises:
        ModelError: where the model cannot be cut as it is asked, with all its legal cuts.
    """

    stack: SkipValidation[LayerStack]
    cut: Annotated[
        int | str, Field(description="the client's blocks: a number, the last one's name, or 'flops:0.25'")
    ] = 1
    optimiser: Annotated[Literal["sgd", "adam"], Field(description="of both halves")] = "sgd"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="eta_c, step size of a client")] = 0.1
    server_lr: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="eta_s, step size of the server; eta_c by default")
    ] = None
    momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD, on both halves")] = 0.0
    local_steps: Annotated[int, Field(ge=1, description="E, batches per client and round")] = 1
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    wire: Annotated[Wire, Field(description="smashed data and gradients cross the cut as they are, or rounded")] = (
        "exact"
    )

    traffic: ClassVar[Mapping[str, str]] = TRAFFIC

    def __post_init__(self) -> None:
        """Refuse an illegal cut."""
        _ = self.place

    @cached_property
    def place(self) -> Cut | UCut:
        """Where the model is cut."""
        cuts, tail = legal_cuts(self.stack), self.server_ends
        return find_cut(self.stack, self.cut, cuts) if tail is None else find_u_cut(self.stack, self.cut, tail, cuts)

    @property
    def server_ends(self) -> int | str | None:
        """Where the server's blocks end; None is with the model's last."""
        return None

    @property
    def at(self) -> int:
        """How many blocks are in front of the server's."""
        return self.place.at if isinstance(self.place, Cut) else self.place.head.at

    @cached_property
    def halves(self) -> Halves:
        """Both halves and how they are trained."""
        client = Optimiser(self.optimiser, self.lr, self.momentum)
        return Halves(self.stack, client, replace(client, lr=self.server_lr or self.lr), *self.keeps)

    @property
    def keeps(self) -> tuple[bool, bool]:
        """Whether a client's and a server's optimiser go on with what they remember when their half is replaced.

        A server with one half goes on with it.
        """
        return False, True

    def __init_subclass__(cls, **options: Any) -> None:
        """A method that has handlers of its own sends by the wire, too: none can forget it."""
        super().__init_subclass__(**options)
        own = cls.__dict__.get("handlers")
        if isinstance(own, property) and own.fget is not None:
            table = own.fget

            def handlers(self: SplitMethod) -> Mapping[str, Handler]:
                return over_the_wire(table(self), self.wire, self.traffic)

            handlers.__doc__ = own.__doc__
            cls.handlers = property(handlers)  # type: ignore[assignment, method-assign]

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Of both sides."""
        return over_the_wire(self.halves.handlers, self.wire, self.traffic)

    def steps(self, round: int) -> range:
        """The batches of a round, of each client's stream."""
        return range(round * self.local_steps, (round + 1) * self.local_steps)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class UShapedMethod(SplitMethod):
    """What methods share that can leave the labels at home."""

    tail: Annotated[int | str | None, Field(description="U-shaped: the server's last block; labels stay at home")] = (
        None
    )

    @property
    def server_ends(self) -> int | str | None:
        """Where the server's blocks end."""
        return self.tail


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class ParallelMethod(SplitMethod):
    """What methods share whose server waits for the smashed data of several clients: when it stops waiting."""

    quorum: Annotated[
        int | None, Field(ge=1, description="at the cut: go on when so many clients' smashed data are there")
    ] = None
    cut_deadline: Annotated[
        float, Field(gt=0, description="at the cut: wait at most so many seconds for smashed data")
    ] = math.inf

    @property
    def waits_for_all(self) -> bool:
        """Whether the server waits for everybody's smashed data."""
        return self.quorum is None and math.isinf(self.cut_deadline)

    def until(self, forwards: Sequence[Request]) -> First:
        """When the server stops waiting for smashed data.

        Args:
            forwards: whose replies bring them.
        """
        return First(min(self.quorum or len(forwards), len(forwards)), self.cut_deadline)

    def arrived(
        self, forwards: Sequence[Request], late: Late = "cancel"
    ) -> Generator[Effect, list[Reply] | None, list[Reply]]:
        """Those smashed data that have come when the quorum or the deadline says so, in order of dispatch.

        Args:
            forwards: whose replies bring them.
            late: what becomes of the others.
        """
        return usable((yield Gather(self.until(forwards), forwards, late)) or [])
