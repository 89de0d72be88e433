"""What an algorithm may say, and what it hears: two effects, one message, one promise.

An algorithm's server half is a generator. It yields `Dispatch` (start, do not wait) and `Gather` (wait), and returns
its next state. A runtime performs the effects, on a virtual clock or over a network; the algorithm cannot tell which.

A request is a promise: `request["act"]` may be an input of any later request, which then starts when that output has
arrived. What overlaps follows from the flow of data, not from an event loop in the algorithm.

Addresses are clients (their numbers) and server replicas, `("server", 7)`. Each has a state, which chains through its
requests in order of dispatch, and a lane, where time passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor

from lanterne.budget import Budget
from lanterne.rng import generator

Address = int | tuple[str, int]
Outcome = Literal["complete", "partial", "refused", "failed", "lost"]
Arrays = Mapping[str, Tensor]
Late = Literal["keep", "cancel"]
Direction = Literal["down", "up"]

#: What bytes on a link are counted as. The first word is what it is, the last its direction as the client sees it.
CATEGORIES = (
    "model_down", "model_up", "act_up", "act_down", "grad_down", "grad_up", "labels_up",
    "scalar_up", "scalar_down", "aux_up", "aux_down", "handoff",
)  # fmt: skip


class Output(NamedTuple):
    """A promise: the array `name` of the reply to `request`.

    It stands wherever an array may stand in a later request.
    """

    request: Request
    name: str


class Pass(NamedTuple):
    """One pass over the blocks `first .. last-1`; each block of it is a unit of work.

    A backward pass goes from the last block to the first. A unit of it is the gradient of the block's parameters and
    what it takes to get there from the block behind: so a pass that stops after any unit has cost exactly its units.
    `to_input` asks for the gradient of the pass's own input as well, which a split server sends to its client.

    `network` names the one of the algorithm's `networks` whose blocks these are (an auxiliary head, a submodel); by
    default it is the model. `samples` is how many samples a batch has where it is not a client's; 0 is a client's.
    `batches` is how many of them go through together, where a server works on the smashed data of several clients.
    `kept` says of a forward pass that what its backward pass needs is kept until that comes with a later request:
    memory that is held while the device waits.
    """

    kind: Literal["forward", "backward"]
    first: int
    last: int
    to_input: bool = False
    network: str = ""
    samples: int = 0
    kept: bool = False
    batches: int = 1


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One message to one address. Its identity is the ticket under which its reply is asked for.

    Args:
        to: a client's number, or `("server", replica)`.
        handler: which handler of the algorithm's table answers.
        arrays: tensors, or outputs of earlier requests. A scalar is a 0-d array.
        config: static values that are part of what makes two calls equal.
        batches: steps of the client's own stream of batches. The same span gives the same batches and the same key.
        passes: the work, symbolically, as often as it is done.
        deadline: seconds after dispatch at which the device stops and sends what it has. A server has none.
        stop: what has to happen by the deadline: the reply's arrival, or only the end of the computation.
        indivisible: so many units in a row count only together (those of a local step, say): a device that its deadline
            cuts off among them has done none of them. 1 is every unit by itself.
        silent: its reply is never asked for: it only changes the state of its address. A `Gather` without `of` does not
            wait for it, and it is cancelled with the requests that it prepares.
        optimiser: bytes of what the optimiser holds during the work and not between requests (a velocity, say).
        note: the server's own memo (a model version, say); it never leaves the server.
    """

    to: Address
    handler: str
    arrays: Mapping[str, Tensor | Output] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    batches: range = range(0)
    passes: Sequence[Pass] = ()
    deadline: float = math.inf
    stop: Literal["arrive", "compute"] = "arrive"
    indivisible: int = 1
    silent: bool = False
    optimiser: int = 0
    note: Any = None

    def __getitem__(self, name: str) -> Output:
        """The promise of one array of the reply."""
        return Output(self, name)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a request.

    Args:
        request: the request.
        at: when it was settled, in seconds of the runtime's clock.
        outcome: `complete`; `partial` (cut off by its deadline, with what was done by then); `refused` (the device
            cannot do this, for lack of memory for one); `failed` (it tried, and reported an error); `lost` (nothing
            came back, and nothing will).
        arrays: what was sent; empty unless complete or partial.
        error: what a device said that refused or failed.
        seconds: from its dispatch until it was settled.
    """

    request: Request
    at: float
    outcome: Outcome
    arrays: Arrays
    error: str | None = None
    seconds: float = math.nan

    @property
    def usable(self) -> bool:
        """Whether there are arrays to use: the outcome is complete or partial."""
        return self.outcome in ("complete", "partial")

    def __getitem__(self, name: str) -> Tensor:
        """One array of the reply."""
        return self.arrays[name]


def usable(replies: Iterable[Reply]) -> list[Reply]:
    """Those replies that brought arrays, in their order."""
    return [reply for reply in replies if reply.usable]


@dataclass(frozen=True, slots=True)
class All:
    """Wait until every request is settled."""


@dataclass(frozen=True, slots=True)
class First:
    """Wait for the first `k` usable replies, or at most `within` seconds, counted from the `Gather`."""

    k: int
    within: float = math.inf


@dataclass(frozen=True, slots=True)
class Deadline:
    """Wait for so many seconds, counted from the `Gather`, or until every request is settled."""

    seconds: float


def patience(until: All | First | Deadline) -> float:
    """The most seconds that a rule waits."""
    return until.seconds if isinstance(until, Deadline) else until.within if isinstance(until, First) else math.inf


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start these requests and do not wait. Performed, it gives nothing back."""

    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Gather:
    """Wait until the rule holds; performed, it gives the replies settled by then, **in order of dispatch**.

    A `Gather` always ends: when no reply can come any more it gives what there is, be it nothing. A reply is given
    once. Replies without arrays (refused, failed, lost) are given as well, and never count towards `First`.

    Args:
        until: the rule.
        of: the requests to wait for; by default all under way whose outputs no other request takes in, silent ones left
            out.
        late: what happens to those of them that are not settled: `keep` leaves them running; `cancel` ends them, with
            each all that waits for it, and what was dispatched in this round for its sake alone: requests whose outputs
            only cancelled ones take in, or silent ones before it at its address. An earlier request there whose reply
            may be wanted goes on.
    """

    until: All | First | Deadline = All()
    of: Sequence[Request] | None = None
    late: Late = "keep"


Effect = Dispatch | Gather
S = TypeVar("S")
Program = Generator[Effect, "list[Reply] | None", S]


def training(to: int, arrays: Mapping[str, Tensor | Output], batches: range, blocks: int, **options: Any) -> Request:
    """The request that most methods make: a forward and a backward pass over the whole model for each batch.

    Args:
        to: a client.
        arrays: what its handler `train` is given.
        batches: steps of its stream.
        blocks: of the model.
        options: further fields of the `Request`.
    """
    passes = [Pass("forward", 0, blocks), Pass("backward", 0, blocks)] * len(batches)
    return Request(to, "train", arrays, batches=batches, passes=passes, **options)


def exchange(
    requests: Sequence[Request], until: All | First | Deadline = All(), late: Late = "keep"
) -> Generator[Effect, list[Reply] | None, list[Reply]]:
    """Send requests and wait for their replies: the common case, for `yield from`."""
    yield Dispatch(requests)
    return (yield Gather(until, requests, late)) or []


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


class Local(NamedTuple):
    """What is at hand where a handler runs, besides its state and its inbox.

    `x` is `[steps, batch, ...]` and `y` `[steps, batch]`, or None where the request spans no batches; `key` is a 0-d
    int64 tensor, the same for the same span.
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


def category(name: str, ndim: int, traffic: Mapping[str, str], direction: Direction) -> str:
    """What the bytes of an array are counted as.

    Args:
        name: of the array.
        ndim: its number of dimensions.
        traffic: the algorithm's table.
        direction: to the client or from it.

    Returns:
        A category of `CATEGORIES`; `other_down` or `other_up` for an array that the algorithm forgot, which
        `lanterne.testing.check_algorithm` refuses.
    """
    known = traffic.get(name)
    if known is not None and (known.endswith(direction) or known == "handoff"):
        return known
    return f"{'scalar' if ndim == 0 else 'other'}_{direction}"
