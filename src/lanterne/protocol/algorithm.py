"""Both halves of a method as a runtime sees them: handlers, the cohort, the algorithm, and what drives a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from lanterne.budget import Budget
from lanterne.protocol.effects import Effect, Program, S
from lanterne.protocol.messages import Address, Arrays, Reply, Request
from lanterne.rng import generator


@dataclass(frozen=True, eq=False, slots=True)
class Inbox:
    """What a request brought: its arrays and its static configuration."""

    arrays: Arrays
    config: Mapping[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        """One array of the request."""
        return self.arrays[name]

    def get(self, name: str) -> Tensor | None:
        """One array of the request, or None."""
        return self.arrays.get(name)


@dataclass(frozen=True, eq=False)
class Local:
    """What is at hand where a handler runs, besides its state and its inbox.

    `x` is `[steps, batch, ...]` and `y` `[steps, batch]`, with no steps where the request spans no batches; a runtime
    may read them when a handler first looks at them. `key` is a 0-d int64 tensor, the same for the same span.
    """

    x: Tensor
    y: Tensor
    key: Tensor
    budget: Budget


Handler = Callable[[Any, dict[str, Tensor], Inbox, Local], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Facts(NamedTuple):
    """What a server may know of a client, declared or measured: plain numbers."""

    samples: int
    flops: float
    memory: float
    down: float
    up: float
    latency: float
    tier: str


class Cohort(Protocol):
    """Who can be reached at the start of a round, and what is known of them: the same in simulation and deployment."""

    @property
    def round(self) -> int:
        """Server versions so far: 0 at the first call of `round`."""

    @property
    def population(self) -> int:
        """How many clients there are, whether they can be reached now or not."""

    @property
    def key(self) -> int:
        """This round's key, the same for every algorithm of an experiment; fold it with a purpose."""

    @property
    def clients(self) -> Sequence[int]:
        """The clients that can be reached now."""

    def sample(self, n: int | None, key: int) -> tuple[int, ...]:
        """`n` clients at random without repetition, ascending; all where `n` is None or exceeds their number."""

    def facts(self, client: int) -> Facts:
        """What is known of a client."""

    def seconds(self, request: Request) -> float:
        """Expected seconds until the whole work of a request would have arrived, its deadline ignored."""

    def reach(self, request: Request) -> Sequence[float] | None:
        """For each unit of a request's work, the probability that it is done in time; None without a clock model."""


class Algorithm(Protocol[S]):
    """Both halves of a method. A concrete one is a frozen dataclass whose fields are the hyperparameters.

    One that works on more than the model (auxiliary heads, decoders, submodels) has an attribute `networks` besides:
    its layer stacks by name, to which a `Pass` refers.
    """

    #: Category of each array that crosses a link, by its name; 0-d arrays not named here are scalars.
    traffic: ClassVar[Mapping[str, str]]

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers of clients and of server replicas, in one table: pure, and written for one address."""

    def init(self, w: Tensor) -> S:
        """The state before the first round, from the flat starting weights."""

    def round(self, state: S, cohort: Cohort) -> Program[S]:
        """The server's half: one server version."""

    def evaluated(self, state: S) -> Tensor:
        """The flat weights of the global full model, to be judged."""


def judged(algorithm: Algorithm[S], state: S, held: Mapping[Address, Mapping[str, Tensor]]) -> Tensor:
    """What is judged: the global model `[size]`, or `[models, size]` where clients have models of their own.

    Such an algorithm has a method `models(state, held)` besides.

    Args:
        algorithm: whose models they are.
        state: its state after a round.
        held: what the addresses hold.
    """
    several = getattr(algorithm, "models", None)
    found: Tensor = algorithm.evaluated(state) if several is None else several(state, held)
    return found


class World(Protocol):
    """A runtime: it performs effects."""

    def perform(self, effect: Effect) -> list[Reply] | None:
        """Perform one effect; the replies where it was a `Gather`."""


def drive(program: Program[S], world: World) -> S:
    """Run one round: the entire coupling between algorithms and runtimes.

    Args:
        program: an algorithm's `round(state, cohort)`.
        world: what performs its effects.

    Returns:
        The next state.
    """
    try:
        effect = next(program)
        while True:
            effect = program.send(world.perform(effect))
    except StopIteration as stop:
        value: S = stop.value
        return value


def idle_clients(cohort: Cohort, busy: AbstractSet[int], most: int | None, key: int) -> list[int]:
    """Whom an asynchronous method invites next: clients at random that are not at work, ascending.

    Args:
        cohort: who can be reached.
        busy: the clients at work.
        most: how many may be at work at once; None is all.
        key: of this draw.
    """
    free = None if most is None else max(most - len(busy), 0)
    idle = [c for c in cohort.sample(None if free is None else free + len(busy), key) if c not in busy]
    if free is None:
        return idle
    return sorted(idle[i] for i in generator(key, "order").permutation(len(idle))[:free])


def client_weight(cohort: Cohort, client: Address, weights: Literal["samples", "equal"]) -> float:
    """What a client's update counts for in an average.

    Args:
        cohort: for the sample counts.
        client: whose update it is.
        weights: `samples`: as many as it holds, `n_u`; `equal`: one.
    """
    return float(cohort.facts(client).samples) if weights == "samples" and isinstance(client, int) else 1.0
