"""The plan of a study: problems, fleets, methods and seeds; from it the cells.

A *problem* is what learning rates are tuned for: data, model, partition, local steps. A *setting* is a problem on a
fleet. The cells are every method with every seed in every setting, and before them, for each problem, every method
with every learning rate of the grid on validation rows. What a cell is, its problem says: `TimedProblem` gives all
methods equal virtual time, `studies.harness.epochs` equal samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lanterne.algorithms import ALGORITHMS
from studies.harness.cells import Cell

#: Shares of a run's virtual time at which a model is judged: dense where curves are steep, and in the last fifth, over
#: which means and trends are taken.
TIMES = (
    0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7,
    0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0,
)  # fmt: skip
#: Tuning looks at the end only.
TUNING_TIMES = (0.8, 0.9, 1.0)


class Fleet(Protocol):
    """Devices under a name."""

    @property
    def name(self) -> str:
        """What tables call them."""

    @property
    def share(self) -> float:
        """Of the devices that straggle; 0 is a fleet without stragglers."""

    @property
    def somebody_in_time(self) -> bool:
        """Whether it is certain that every round has somebody who is in time."""


class Problem(Protocol):
    """What learning rates are tuned for."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def local_steps(self) -> int:
        """Of each client in a round."""

    @property
    def tuned_on(self) -> Fleet:
        """The fleet for which learning rates are chosen that are given on every fleet with stragglers."""

    def cell(self, fleet: Fleet, method: Method, seed: int, lr: float, *, tuning: bool) -> Cell:
        """A cell: shorter and judged on validation rows where it is `tuning`."""


@dataclass(frozen=True)
class Method:
    """A competitor.

    Args:
        label: what tables call it.
        algorithm: its name in lanterne.
        parameters: its hyperparameters where they differ from the defaults.
        without_stragglers: the label of the method that it is, bit for bit, where nobody straggles, if any.
        with_somebody_in_time: the same where every round has somebody who is in time.
        with_one_step: the same where clients do one local step.
    """

    label: str
    algorithm: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    without_stragglers: str | None = None
    with_somebody_in_time: str | None = None
    with_one_step: str | None = None

    @property
    def known(self) -> bool:
        """Whether this version of lanterne has it."""
        return self.algorithm in ALGORITHMS

    def same_as(self, problem: Problem, fleet: Fleet) -> str | None:
        """The label of the method that this one is, bit for bit, in a setting: then it is not computed there.

        Args:
            problem: what it would learn.
            fleet: on which it would run.
        """
        if problem.local_steps == 1 and self.with_one_step is not None:
            return self.with_one_step
        if not fleet.share and self.without_stragglers is not None:
            return self.without_stragglers
        return self.with_somebody_in_time if fleet.somebody_in_time else None


@dataclass(frozen=True)
class StragglerFleet:
    """A share of the devices straggles as SALF's authors draw it: backward through `1 ... L` layers in time.

    Args:
        name: what tables call it.
        share: of the devices, the same ones throughout a run.
        finish: whether a straggler may reach all layers, and so be in time; otherwise it reaches `L - 1` at most.
        exponential: all devices have the clock of SALF's theory instead: a layer takes an exponential time, whose mean
            is this many deadlines.
    """

    name: str
    share: float
    finish: bool = True
    exponential: float | None = None

    @property
    def somebody_in_time(self) -> bool:
        """Whether it is certain that every round has somebody who reaches all layers in time."""
        return self.exponential is None and self.share < 1


@dataclass(frozen=True)
class TimedProblem:
    """A problem on which every method gets equal virtual time.

    Args:
        data: `digits`, or a folder of the study's data.
        model: of the zoo.
        partition: how rows are dealt to clients; `by-speed` makes class and slowness correlate.
        deadlines: virtual time of a run, in deadlines: so many rounds of the fleet without stragglers.
        tuned_on: the fleet with stragglers for which learning rates are chosen; they are kept on the others.
        local_steps: of each client in a round.
        samples: training rows; all by default.
        seconds: about how long a cell computes, on one core.
        times: at which models are judged, in shares of the virtual time.
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
    times: tuple[float, ...] = TIMES

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

    def cell(self, fleet: Fleet, method: Method, seed: int, lr: float, *, tuning: bool) -> Cell:
        """A cell of `studies.harness.race`."""
        assert isinstance(fleet, StragglerFleet)
        deadlines = self.tuning_deadlines if tuning else self.deadlines
        settings = {
            "split": "validation" if tuning else "test",
            "problem": self.name,
            "fleet": fleet.name,
            "method": method.label,
            "lr": lr,
            "seed": seed,
            "algorithm": method.algorithm,
            "parameters": dict(method.parameters),
            "data": self.data,
            "samples": self.samples,
            "model": self.model,
            "partition": self.partition,
            "clients": self.clients,
            "batch": self.batch,
            "local_steps": self.local_steps,
            "share": fleet.share,
            "finish": fleet.finish,
            "exponential": fleet.exponential,
            "deadlines": deadlines,
            "times": list(TUNING_TIMES if tuning else self.times),
        }
        name = f"{'tuning, ' if tuning else ''}{self.name}, {fleet.name}, {method.label}, lr {lr:g}, seed {seed}"
        return Cell(name, settings, self.seconds * deadlines / self.deadlines)


@dataclass(frozen=True)
class Setting:
    """A problem on a fleet."""

    problem: Problem
    fleet: Fleet


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

    @property
    def tuned(self) -> list[tuple[Problem, Fleet]]:
        """What learning rates are chosen for: each problem without stragglers, where it is run, and with them."""
        return list(dict.fromkeys((s.problem, self.tuning_fleet(s)) for s in self.settings))

    def tuning_fleet(self, setting: Setting) -> Fleet:
        """The fleet on which the learning rates of a setting are chosen."""
        return setting.fleet if not setting.fleet.share else setting.problem.tuned_on

    def computed(self, method: Method, problem: Problem, fleet: Fleet) -> Method:
        """The method that is computed in a method's place in a setting: itself, or the one that it is there."""
        label = method.same_as(problem, fleet)
        if label is None:
            return method
        return self.computed(next(m for m in self.methods if m.label == label), problem, fleet)

    def tuning(self, problem: Problem, fleet: Fleet, method: Method) -> dict[float, Cell]:
        """The cells from which a method's learning rate for a problem is chosen.

        Args:
            problem: what is learned.
            fleet: one of `tuned`.
            method: who learns it.
        """
        own = self.computed(method, problem, fleet)
        return {lr: problem.cell(fleet, own, self.seeds[0], lr, tuning=True) for lr in self.grid}

    def final(self, setting: Setting, method: Method, seed: int, lr: float) -> Cell:
        """A cell of the tables."""
        return setting.problem.cell(setting.fleet, method, seed, lr, tuning=False)

    def wanted(self) -> Iterator[tuple[Setting, Method]]:
        """Which methods are computed in which settings."""
        for setting in self.settings:
            for method in self.methods:
                if method.same_as(setting.problem, setting.fleet) is None:
                    yield setting, method
