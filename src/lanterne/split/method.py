"""The hyperparameters that split methods share, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass

from lanterne.errors import ModelError
from lanterne.learn import Optimiser
from lanterne.models import Cut, LayerStack, UCut, find_cut, find_u_cut, legal_cuts
from lanterne.protocol import Cohort, Dispatch, Effect, First, Gather, Handler, Late, Reply, Request, usable
from lanterne.split.halves import TRAFFIC, Halves
from lanterne.split.wire import Wire, over_the_wire

#: The cut of the device classes that a table of cuts does not name.
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class SplitMethod:
    """The hyperparameters that split methods share, and what follows from them.

    Raises:
        ModelError: where the model cannot be cut as it is asked, with all its legal cuts; and for a cut for each class
            of devices where the method needs the same for all.
    """

    stack: SkipValidation[LayerStack]
    cut: Annotated[
        int | str | Mapping[str, int | str],
        Field(
            description="the client's blocks: a number, the last one's name, or 'flops:0.25'; "
            "where the method allows it one for each class of devices: {default = 2, slow = 1}"
        ),
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
    #: Why all clients have to be cut at the same place; empty where each class of devices may have its own.
    one_cut: ClassVar[str] = "the method is defined for one cut"

    def __post_init__(self) -> None:
        """Refuse an illegal cut."""
        _ = self.place

    @cached_property
    def places(self) -> dict[str, Cut | UCut]:
        """Where the model is cut, by class of devices; `default` is for those that are not named."""
        asked = self.cut if isinstance(self.cut, Mapping) else {DEFAULT: self.cut}
        if isinstance(self.cut, Mapping) and self.one_cut:
            raise ModelError(
                f"There is a cut for each class of devices ({', '.join(asked)}), but here all clients are cut at the "
                f"same place: {self.one_cut}. Give one cut, as in cut = 1."
            )
        if DEFAULT not in asked:
            raise ModelError(
                f"There are cuts for {', '.join(asked) or 'no class of devices'}, but none for all others. "
                "Give one, as in cut = {default = 2, slow = 1}."
            )
        cuts, tail = legal_cuts(self.stack), self.server_ends
        if tail is None:
            return {name: find_cut(self.stack, where, cuts) for name, where in asked.items()}
        return {name: find_u_cut(self.stack, where, tail, cuts) for name, where in asked.items()}

    @cached_property
    def place(self) -> Cut | UCut:
        """Where the model is cut; of several cuts the shallowest, behind which the server's blocks begin."""
        return min(self.places.values(), key=_front)

    def place_of(self, cohort: Cohort, client: int) -> Cut | UCut:
        """Where the model is cut for a client.

        Args:
            cohort: knows the class of its device.
            client: its number.
        """
        if len(self.places) == 1:
            return self.place
        return self.places.get(cohort.facts(client).tier, self.places[DEFAULT])

    @property
    def server_ends(self) -> int | str | None:
        """Where the server's blocks end; None is with the model's last."""
        return None

    @property
    def at(self) -> int:
        """How many blocks are in front of the server's."""
        return _front(self.place)

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
    late: Annotated[
        Literal["drop", "serve"],
        Field(description="smashed data that come later: drop, or serve a gradient as soon as they are there"),
    ] = "drop"

    @property
    def waits_for_all(self) -> bool:
        """Whether the server waits for everybody's smashed data."""
        return self.quorum is None and math.isinf(self.cut_deadline)

    @property
    def serves_late(self) -> bool:
        """Whether anybody can be late, and is served then."""
        return self.late == "serve" and not self.waits_for_all

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

    def arrived_and_late(
        self,
        forwards: Sequence[Request],
        opened: float,
        busy: set[int],
        serve: Callable[[Reply], Sequence[Request]],
        under_way: Callable[[], Sequence[Request]] | None = None,
    ) -> Generator[Effect, list[Reply] | None, tuple[list[Reply], float]]:
        """As `arrived`; and whoever is still at an earlier batch is served as soon as its smashed data have come.

        Nobody late counts for the quorum. Where everybody is late, the wait ends with the first of them.

        Args:
            forwards: whose replies bring the smashed data of this batch.
            opened: when they were dispatched, in seconds of the runtime's clock.
            busy: who is at work on an earlier batch. Whoever is served, or lost, is taken out; whoever does not come in
                time is put in.
            serve: what is dispatched for the smashed data of somebody late.
            under_way: the forwards of the busy; by default all that is under way and no other request takes in.

        Returns:
            The replies of those who are there, in order of dispatch, and the time now.
        """
        waiting, there, now = dict.fromkeys(forwards), dict[Request, Reply](), opened
        quorum = self.until(forwards).k
        while waiting if forwards else busy:
            of = None if under_way is None else [*waiting, *under_way()]
            replies = (yield Gather(First(1, max(self.cut_deadline - (now - opened), 0.0)), of)) or []
            if not replies:
                now = opened + self.cut_deadline
                break
            for reply in replies:
                now = max(now, reply.at)
                if reply.request in waiting:
                    del waiting[reply.request]
                    there.update({reply.request: reply} if reply.usable else {})
                elif isinstance(reply.request.to, int):
                    busy.discard(reply.request.to)
                    if reply.usable:
                        yield Dispatch(serve(reply))
            if len(there) >= quorum:
                break
        busy.update(forward.to for forward in waiting if isinstance(forward.to, int))
        return [there[forward] for forward in forwards if forward in there], now


def _front(place: Cut | UCut) -> int:
    """How many blocks stand in front of the server's."""
    return place.at if isinstance(place, Cut) else place.head.at
