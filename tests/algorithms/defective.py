"""Implementations that have a defect, and what is seen of the handlers of any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lanterne.fleet import Fleet
from lanterne.runtime import Loop, Simulator
from lanterne.split import SLOTS
from lanterne.testing import Problem, tiny_problem, uneven_fleet

CLIENTS, STEPS, EDGE, LR = 4, 3, 35, 0.3
#: A new method joins by its name, where what the checks say of steps is true of it.
NAMES = ("sl", "psl", "sglr", "splitfed_v1", "splitfed_v2", "locsplitfed", "cse_fsl")
METHODS = pytest.mark.parametrize("name", NAMES)
AVERAGED = ("splitfed_v1", "splitfed_v2", "locsplitfed", "cse_fsl")
#: Handlers in which a server's half steps.
STEPPING = ("serve", "serve_all", "body_backward", "learn")
Wrap = Callable[[str, Any], Any]


class Seen(NamedTuple):
    """A call of a handler: what it was given and what it gave."""

    round: int
    job: Any
    state: dict[str, Tensor]
    out: dict[str, Tensor]

    @property
    def before(self) -> Tensor:
        """The half that it begins with."""
        found: Tensor = self.job.arrays["w"] if "w" in self.job.arrays else self.job.state["w"]
        return found


class Defective:
    """An algorithm with a defect: handlers that are wrapped, and members that are others."""

    def __init__(self, algorithm: Any, wrap: Wrap | None = None, **members: Any) -> None:
        self.algorithm = algorithm
        self.handlers = {n: wrap(n, h) if wrap else h for n, h in algorithm.handlers.items()}
        vars(self).update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)


def watch(
    algorithm: Any, rounds: int = 1, fleet: Fleet | None = None, problem: Problem | None = None
) -> tuple[list[Tensor], list[Seen], Simulator]:
    """What is judged after each round, every call of a handler, and the simulator."""
    problem = problem or tiny_problem(CLIENTS)
    seen: list[Seen] = []

    class Watch(Loop):
        def one(self, job: Any) -> Any:
            kept = job._replace(state=dict(job.state), arrays=dict(job.arrays))
            state, out = super().one(job)
            seen.append(Seen(simulator.rounds, kept, dict(state), {n: t.clone() for n, t in out.items()}))
            return state, out

    executor = Watch(problem.task, problem.data.x, problem.data.y)
    simulator = Simulator(algorithm, fleet or uneven_fleet(CLIENTS), executor, problem.streams, dtype=torch.float64)
    state, models = algorithm.init(problem.w), []
    for _ in range(rounds):
        state = simulator.round(algorithm, state)
        models.append(simulator.models(algorithm, state))
    executor.close()
    return models, seen, simulator


def stack() -> Any:
    return tiny_problem(CLIENTS).stack


def steps_of(seen: Iterable[Seen]) -> list[Seen]:
    return [s for s in seen if s.job.handler in STEPPING]


def wrapping(*handlers: str) -> Callable[[Callable[..., Any]], Wrap]:
    """A defect of some handlers: `defect(handler, task, state, inbox, local)` instead of them."""

    def decorate(defect: Callable[..., Any]) -> Wrap:
        def wrap(name: str, handler: Any) -> Any:
            if name not in handlers:
                return handler
            return lambda task, state, inbox, local: defect(handler, task, state, inbox, local)

        return wrap

    return decorate


def refuses(check: Callable[[], None]) -> None:
    """The check must not pass."""
    with pytest.raises(AssertionError):
        check()


@wrapping(*STEPPING)
def forgetful(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
    """The optimiser is made anew for every batch."""
    return handler(task, {n: t for n, t in state.items() if n not in SLOTS}, inbox, local)
