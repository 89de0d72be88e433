"""Methods by name, and a method whose round is a script of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lanterne.algorithms import (
    PSL,
    Drop,
    FedAsync,
    FedAvg,
    FedBuff,
    FedNova,
    FedOpt,
    FedProx,
    OverSelect,
    Salf,
    Scaffold,
    TimelyFL,
)
from lanterne.fleet import Device, Fleet
from lanterne.protocol import Request
from lanterne.runtime import Loop, Simulator
from lanterne.testing import tiny_problem
from runtime.toys import ToyOverlap, ToySplit

METHODS: dict[str, Callable[[Any], Any]] = {
    "fedavg": lambda s: FedAvg(stack=s, lr=0.3, local_steps=2, momentum=0.5, keep_momentum=True),
    "drop": lambda s: Drop(stack=s, lr=0.3, deadline=0.05),
    "fedbuff": lambda s: FedBuff(stack=s, lr=0.3, buffer=2, momentum=0.5, keep_momentum=True),
    "psl": lambda s: PSL(stack=s, lr=0.3, quorum=2, late="serve", momentum=0.5, server_lr=0.1),
    "fedprox": lambda s: FedProx(
        stack=s, lr=0.3, local_steps=3, mu=0.5, deadline=0.025, momentum=0.5, keep_momentum=True
    ),
    "fednova": lambda s: FedNova(stack=s, lr=0.3, local_steps=3, deadline=0.025),
    "scaffold": lambda s: Scaffold(stack=s, lr=0.3, local_steps=2, cohort=4),
    "fedopt": lambda s: FedOpt(stack=s, lr=0.3, server="yogi"),
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
        return {
            "echo": self.echo,
            "count": self.count,
            "look": self.look,
            "scale": self.scale,
            "put": self.put,
            "clear": self.clear,
        }

    def echo(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return state, {"out": inbox["w"] + 1.0}

    def count(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        n = state.get("n", torch.zeros((), dtype=torch.float64)) + 1.0
        return {"n": n}, {"out": n}

    def scale(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return state, {"out": inbox["w"] + inbox.config["by"]}

    def put(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return {"n": inbox["w"].sum() + state.get("n", torch.zeros((), dtype=torch.float64))}, {}

    def clear(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return {}, {}

    def look(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        return state, {"out": inbox["w"] * inbox["w"].sum().item()}

    def init(self, w: Any) -> Any:
        return w

    def round(self, state: Any, cohort: Any) -> Any:
        return self.script(state, cohort)

    def evaluated(self, state: Any) -> Any:
        return state


def simulator_of(lab: Lab, fleet: Fleet, executor: type[Loop] = Loop, **options: Any) -> Simulator:
    problem = tiny_problem(len(fleet))
    runner = executor(problem.task, problem.data.x, problem.data.y)
    return Simulator(lab, fleet, runner, problem.streams, dtype=torch.float64, **options)


def laboratory(script: Callable[..., Any], fleet: Fleet, executor: type[Loop] = Loop, **options: Any) -> Simulator:
    lab = Lab(script)
    simulator = simulator_of(lab, fleet, executor, **options)
    simulator.round(lab, W)
    return simulator


W = torch.zeros(100, dtype=torch.float64)
# Client c needs c + 1 seconds for W, and none to answer.
FLEET = Fleet([Device(down=800.0 / (c + 1)) for c in range(5)])


def ask(client: int, handler: str = "echo", **more: Any) -> Request:
    return Request(client, handler, {"w": W} if handler != "count" else {}, **more)
