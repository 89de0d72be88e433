"""Methods by name, and a method whose round is a script of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lanterne.algorithms import Drop, FedAsync, FedAvg, FedBuff, OverSelect, Salf, TimelyFL
from lanterne.fleet import Device, Fleet
from lanterne.protocol import Request
from lanterne.runtime import Loop, Simulator
from lanterne.testing import tiny_problem
from runtime.toys import ToyOverlap, ToySplit

METHODS: dict[str, Callable[[Any], Any]] = {
    "fedavg": lambda s: FedAvg(stack=s, lr=0.3, local_steps=2, momentum=0.5, keep_momentum=True),
    "drop": lambda s: Drop(stack=s, lr=0.3, deadline=0.05),
    "fedbuff": lambda s: FedBuff(stack=s, lr=0.3, buffer=2, momentum=0.5, keep_momentum=True),
    "salf": lambda s: Salf(stack=s, lr=0.3, deadline=0.02),
    "a deadline for each round": lambda s: Salf(stack=s, lr=0.3, deadline=(0.02, 0.06, 0.03)),
    "overselect": lambda s: OverSelect(stack=s, lr=0.3, cohort=3, momentum=0.5, keep_momentum=True),
    "fedasync": lambda s: FedAsync(stack=s, lr=0.3, local_steps=2, momentum=0.5, keep_momentum=True, proximal=0.1),
    "timelyfl": lambda s: TimelyFL(stack=s, lr=0.3, cohort=5, momentum=0.5),
    "timelyfl with a probe": lambda s: TimelyFL(stack=s, lr=0.3, estimate="probe"),
    "split": lambda s: ToySplit(s),
    "split with a deadline": lambda s: ToySplit(s, deadline=0.12),
    "overlap": lambda s: ToyOverlap(s),
}


@dataclass(frozen=True)
class Lab:
    """A method whose round is a script of the test."""

    script: Callable[..., Any]
    traffic = {"w": "model_down", "out": "model_up"}  # noqa: RUF012

    @property
    def handlers(self) -> dict[str, Any]:
        return {"echo": self.echo, "count": self.count, "look": self.look}

    def echo(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return state, {"out": inbox["w"] + 1.0}

    def count(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        n = state.get("n", torch.zeros((), dtype=torch.float64)) + 1.0
        return {"n": n}, {"out": n}

    def look(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return state, {"out": inbox["w"] * inbox["w"].sum().item()}

    def init(self, w: Any) -> Any:
        return w

    def round(self, state: Any, cohort: Any) -> Any:
        return self.script(state, cohort)

    def evaluated(self, state: Any) -> Any:
        return state


def laboratory(script: Callable[..., Any], fleet: Fleet, executor: type[Loop] = Loop, **options: Any) -> Simulator:
    problem = tiny_problem(len(fleet))
    lab = Lab(script)
    simulator = Simulator(
        lab,
        fleet,
        executor(problem.task, problem.data.x, problem.data.y),
        problem.streams,
        dtype=torch.float64,
        **options,
    )
    simulator.round(lab, problem.w)
    return simulator


W = torch.zeros(100, dtype=torch.float64)
# Client c needs c + 1 seconds for W, and none to answer.
FLEET = Fleet([Device(down=800.0 / (c + 1)) for c in range(5)])


def ask(client: int, handler: str = "echo", **more: Any) -> Request:
    return Request(client, handler, {"w": W} if handler != "count" else {}, **more)
