"""What an executor is given: one handler's call with its tensors, and where to put the result."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lanterne.budget import Budget
from lanterne.learn import Task
from lanterne.protocol import Address, Handler

Result = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


class Job(NamedTuple):
    """One call of a handler, complete.

    `rows` gives those of the resident training data, `[steps, batch]`; equal signatures have equal shapes, config and
    units.
    """

    to: Address
    handler: str
    signature: Hashable
    function: Handler
    state: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor]
    config: Mapping[str, Any]
    rows: Callable[[], NDArray[np.int64]]
    key: int
    budget: Budget


class Node(Protocol):
    """A call that waits for others."""

    @property
    def needs(self) -> Sequence[Node]:
        """The calls without whose results it cannot begin."""


class Executor(Protocol):
    """Computes many calls. A slow executor is the oracle of every fast one.

    `x` `[n, ...]` and `y` `[n, ...]` are the resident training samples and their labels.
    """

    task: Task
    x: Tensor
    y: Tensor

    def run(self, nodes: Sequence[Any], job: Callable[[Any], Job], done: Callable[[Any, Result], None]) -> None:
        """Compute calls that are in an order in which none needs a later one.

        Args:
            nodes: the calls.
            job: makes the job of a call whose needs are met.
            done: takes the result of a call.
        """

    def close(self) -> None:
        """Give the threads back."""
