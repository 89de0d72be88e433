"""The plan of a study: problems, fleets, methods and seeds; from it the cells.

A *problem* is what learning rates are tuned for: data, model, partition, local steps. A *setting* is a problem on a
fleet. The cells are every method with every seed in every setting, and before them, for each problem, every method
with every learning rate of the grid on validation rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lanterne.algorithms import ALGORITHMS
from studies.harness.cells import Cell

#: Shares of a run's virtual time at which a model is judged: dense where curves are steep, three in the last fifth.
TIMES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Tuning looks at the end only.
TUNING_TIMES = (0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Method:
    """A competitor.

    Args:
        label: what tables call it.
        algorithm: its name in lanterne.
        parameters: its hyperparameters where they differ from the defaults.
        equals_fedavg: whether it is FedAvg, bit for bit, where nobody straggles: then it is not computed there.
    """

    label: str
    algorithm: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    equals_fedavg: bool = False

    @property
    def known(self) -> bool:
        """Whether this version of lanterne has it."""
        return self.algorithm in ALGORITHMS


@dataclass(frozen=True)
class StragglerFleet:
    """A share of the devices straggles as SALF's authors draw it: backward through `1 ... L` layers in time.

    Args:
        name: what tables call it.
        share: of the devices, the same ones throughout a run.
        finish: whether a straggler may reach all layers, and so be in time; otherwise it reaches `L - 1` at most.
    """

    name: str
    share: float
    finish: bool = True


@dataclass(frozen=True)
class Problem:
    """What learning rates are tuned for.

    Args:
        data: `digits`, or a folder of the study's data.
        model: of the zoo.
        partition: how rows are dealt to clients; `by-speed` makes class and slowness correlate.
        deadlines: virtual time of a run, in deadlines: so many rounds of the fleet without stragglers.
        tuned_on: the fleet.
        local_steps: of each client in a round.
        samples: training rows; all by default.
        seconds: about how long a cell computes, on one core.
    """

    data: str
    model: str
    partition: str
    deadlines: int
    tuned_on: StragglerFleet
    local_steps: int = 1
    samples: int | None = None
    seconds: float = 1.0
    clients: int = 30
    batch: int = 16

    @property
    def name(self) -> str:
        """What tables call it."""
        data = self.data if self.samples is None else f"{self.samples} images of {self.data}"
        steps = "" if self.local_steps == 1 else f", {self.local_steps} local steps"
        return f"{data}, {self.model}, {self.partition}{steps}"

    @property
    def tuning_deadlines(self) -> int:
        """Virtual time of a run in tuning."""
        return max(self.deadlines // 3, 1)


@dataclass(frozen=True)
class Setting:
    """A problem on a fleet."""

    problem: Problem
    fleet: StragglerFleet


@dataclass(frozen=True)
class Plan:
    """A study, or a part of it.

    Args:
        settings: in the order of the tables.
        methods: in the order of the tables.
        seeds: of the final cells; tuning has the first.
        grid: learning rates, the same for every method.
    """

    settings: tuple[Setting, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    grid: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)

    @property
    def problems(self) -> list[Problem]:
        """Without repetition, in order."""
        return list(dict.fromkeys(setting.problem for setting in self.settings))

    def tuning(self, problem: Problem, method: Method) -> dict[float, Cell]:
        """The cells from which a method's learning rate for a problem is chosen."""
        return {lr: _cell(problem, problem.tuned_on, method, self.seeds[0], lr, tuning=True) for lr in self.grid}

    def final(self, setting: Setting, method: Method, seed: int, lr: float) -> Cell:
        """A cell of the tables."""
        return _cell(setting.problem, setting.fleet, method, seed, lr, tuning=False)

    def wanted(self) -> Iterator[tuple[Setting, Method]]:
        """Which methods are computed in which settings."""
        for setting in self.settings:
            for method in self.methods:
                if setting.fleet.share or not method.equals_fedavg:
                    yield setting, method


def _cell(problem: Problem, fleet: StragglerFleet, method: Method, seed: int, lr: float, *, tuning: bool) -> Cell:
    deadlines = problem.tuning_deadlines if tuning else problem.deadlines
    settings = {
        "split": "validation" if tuning else "test",
        "problem": problem.name,
        "fleet": fleet.name,
        "method": method.label,
        "lr": lr,
        "seed": seed,
        "algorithm": method.algorithm,
        "parameters": dict(method.parameters),
        "data": problem.data,
        "samples": problem.samples,
        "model": problem.model,
        "partition": problem.partition,
        "clients": problem.clients,
        "batch": problem.batch,
        "local_steps": problem.local_steps,
        "share": fleet.share,
        "finish": fleet.finish,
        "deadlines": deadlines,
        "times": list(TUNING_TIMES if tuning else TIMES),
    }
    name = f"{'tuning, ' if tuning else ''}{problem.name}, {fleet.name}, {method.label}, lr {lr:g}, seed {seed}"
    return Cell(name, settings, problem.seconds * deadlines / problem.deadlines)
