"""What an algorithm may say, and what it hears: two effects, one message, one promise.

An algorithm's server half is a generator. It yields `Dispatch` (start, do not wait) and `Gather` (wait), and returns
its next state. A runtime performs the effects, on a virtual clock or over a network; the algorithm cannot tell which.

A request is a promise: `request["act"]` may be an input of any later request, which then starts when that output has
arrived. What overlaps follows from the flow of data, not from an event loop in the algorithm.

Addresses are clients (their numbers) and server replicas, `("server", 7)`. Each has a state, which chains through its
requests in order of dispatch, and a lane, where time passes.
"""

from lanterne.protocol.algorithm import (
    Algorithm,
    Cohort,
    Facts,
    Handler,
    Inbox,
    Local,
    World,
    client_weight,
    drive,
    idle_clients,
    judged,
)
from lanterne.protocol.effects import (
    All,
    Deadline,
    Dispatch,
    Effect,
    First,
    Gather,
    Program,
    S,
    exchange,
    patience,
    training,
)
from lanterne.protocol.messages import (
    CATEGORIES,
    Address,
    Arrays,
    Direction,
    Late,
    Outcome,
    Output,
    Pass,
    Reply,
    Request,
    category,
    usable,
)

__all__ = [
    "CATEGORIES",
    "Address",
    "Algorithm",
    "All",
    "Arrays",
    "Cohort",
    "Deadline",
    "Direction",
    "Dispatch",
    "Effect",
    "Facts",
    "First",
    "Gather",
    "Handler",
    "Inbox",
    "Late",
    "Local",
    "Outcome",
    "Output",
    "Pass",
    "Program",
    "Reply",
    "Request",
    "S",
    "World",
    "category",
    "client_weight",
    "drive",
    "exchange",
    "idle_clients",
    "judged",
    "patience",
    "training",
    "usable",
]
