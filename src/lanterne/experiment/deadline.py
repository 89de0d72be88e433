"""How long a round may last, in seconds, equal for all methods of an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanterne.data import Streams
from lanterne.errors import ConfigError, FleetError, ModelError
from lanterne.experiment.config import Config, quantile
from lanterne.experiment.memory import most_memory
from lanterne.experiment.parameters import adel_budget
from lanterne.fleet import (
    Classes,
    Device,
    Draw,
    Fleet,
    Job,
    SometimesSlower,
    UniformDepth,
    adel_deadlines,
    empty_layers,
    round_weights,
    timing,
)
from lanterne.fleet.device import LONGEST
from lanterne.fleet.population import anybody_reaches, seconds, told_apart
from lanterne.learn import Task
from lanterne.models import LayerStack, legal_cuts
from lanterne.protocol import Algorithm, Dispatch, Output, Request
from lanterne.runtime import Loop, Simulator
from lanterne.runtime.cohort import SimulatedCohort, expected_seconds
from lanterne.tree import Spec, spec_of

#: Seconds; finite, so that requests which carry a deadline can be told from those which do not.
_NEVER_MISSED = 1e100


def resolve_deadline(
    config: Config,
    algorithms: Mapping[str, Algorithm[Any]],
    stack: LayerStack,
    fleet: Fleet,
    streams: Streams,
    w: Tensor,
) -> float | tuple[float, ...]:
    """The deadline that a configuration means, and whether anybody can meet it.

    A number is seconds, a list has them for each round. `q0.5` or `50%` is that quantile of the clients' expected times
    for a method's whole first request, the largest over the methods that have a deadline. `adel:30` shares out 30
    seconds over the rounds by ADEL-FL's rule. By default it is what the slowest client that is no straggler needs;
    where the fleet does not say who straggles, those are left out that need more than twice the median.

    Args:
        config: for the deadline and the rounds.
        algorithms: the competitors, as they are without a deadline.
        stack: the model.
        fleet: of the first seed.
        streams: of the first seed.
        w: starting weights.

    Raises:
        ConfigError: for a deadline that cannot be read.
        FleetError: for a deadline that nobody can meet, a method for which no device has the memory, or a device that
            would work longer than a clock can count.
    """
    asked = config.training.deadline
    devices = told_apart(fleet.devices)
    # Who is away must not matter to how long the work takes.
    there = replace(fleet, devices=devices.always_there())

    def ask(algorithm: Algorithm[Any]) -> tuple[Request, Simulator]:
        return _first_request(_with_deadline(algorithm), stack, there, streams, w)

    first = {label: ask(a) for label, a in algorithms.items()}
    for label, asks in first.items():
        _check_memory(label, algorithms[label], asks, devices, ask)
    every = {label: _priced(*asks) for label, asks in first.items()}
    _check_finite(every, devices)
    with_deadline = {label: a for label, a in algorithms.items() if hasattr(a, "deadline")}
    # How long a method works that has no deadline must not lengthen that of the others.
    jobs = {label: every[label] for label in with_deadline or algorithms}
    deadline: float | tuple[float, ...]
    if isinstance(asked, int | float | tuple):
        deadline = asked
    elif isinstance(asked, str) and (budget := adel_budget(asked)) is not None:
        # For the first method that sends the layers it reached; else for the first method.
        layers = (label for label, job in jobs.items() if math.isfinite(job.deadline) and job.indivisible == 1)
        label = next(layers, next(iter(jobs)))
        deadline = _adel(budget, config.rounds, algorithms[label], jobs[label], fleet, len(stack))
    elif isinstance(asked, str):
        q = quantile(asked)
        deadline = max(float(np.quantile(_expected(devices, job), q, method="higher")) for job in jobs.values())
    else:
        deadline = max(_without_stragglers(devices, fleet.straggler, job) for job in jobs.values())
    for label, algorithm in with_deadline.items():
        own = deadline if algorithm.deadline == math.inf else algorithm.deadline
        _check_reachable(label, jobs[label], max(own) if isinstance(own, tuple) else own, devices)
    return deadline


def _adel(
    budget: float, rounds: int, algorithm: Algorithm[Any], job: Job, fleet: Fleet, layers: int
) -> tuple[float, ...]:
    """ADEL-FL's deadlines for a method and what it asks first."""
    lr, cohort = getattr(algorithm, "lr", None), getattr(algorithm, "cohort", None)
    # Without a step size all rounds weigh the same.
    weights = round_weights([lr] * rounds) if lr else np.ones(rounds)
    return adel_deadlines(empty_layers(fleet, job, layers, cohort), weights, budget)


def first_job(algorithm: Algorithm[Any], stack: LayerStack, fleet: Fleet, streams: Streams, w: Tensor) -> Job:
    """The first request of a method's first round, priced; no number is computed.

    Args:
        algorithm: the method.
        stack: the model.
        fleet: the devices, somebody being there at the start.
        streams: of the first seed.
        w: starting weights.

    Raises:
        ConfigError: for a method that asks nobody for anything.
    """
    return _priced(*_first_request(algorithm, stack, fleet, streams, w))


def _priced(request: Request, simulator: Simulator) -> Job:
    return simulator.pricing.job(request, (), _brought(request))


def _brought(request: Request) -> Spec:
    return spec_of({n: a for n, a in request.arrays.items() if not isinstance(a, Output)})


def _first_request(
    algorithm: Algorithm[Any], stack: LayerStack, fleet: Fleet, streams: Streams, w: Tensor
) -> tuple[Request, Simulator]:
    empty = torch.empty(0, *stack.sample_shape, dtype=w.dtype)
    executor = Loop(Task(stack), empty, torch.empty(0, dtype=torch.int64))
    simulator = Simulator(algorithm, fleet, executor, streams, dtype=w.dtype)
    program = algorithm.round(algorithm.init(w), SimulatedCohort(simulator))
    try:
        effect = next(program)
        while not (isinstance(effect, Dispatch) and any(isinstance(q.to, int) for q in effect.requests)):
            effect = program.send(None)
    except StopIteration:
        name = type(algorithm).__name__
        raise ConfigError(f"{name} asks nobody for anything in its first round, so there is nothing to run.") from None
    finally:
        program.close()
        executor.close()
    return next(q for q in effect.requests if isinstance(q.to, int)), simulator


def _check_memory(
    label: str,
    algorithm: Algorithm[Any],
    first: tuple[Request, Simulator],
    devices: Classes,
    ask: Callable[[Algorithm[Any]], tuple[Request, Simulator]],
) -> None:
    """Refuse a method whose first request every device would have to refuse; of a cut model, with the cuts that fit."""
    most, need = most_memory(devices), _needed(*first)
    if need <= most:
        return
    fits = []
    for cut in legal_cuts(first[1].pricing.task.stack) if hasattr(algorithm, "cut") else ():
        with suppress(ModelError):  # a cut at which this method cannot be
            if _needed(*ask(replace(algorithm, cut=cut.at))) <= most:  # type: ignore[type-var]
                fits.append(f"{cut.at} {cut.name!r}")
    repair = f"Cut the model where it fits ({', '.join(fits)}), give" if fits else "Give"
    raise FleetError(
        f"No device has the memory for {label!r}: its first request needs {need} bytes, and the largest has "
        f"{most:g}. {repair} the devices more, or take a smaller model or batch."
    )


def _needed(request: Request, simulator: Simulator) -> int:
    return sum(simulator.pricing.footprint(request, (), _brought(request)))


def _check_finite(jobs: Mapping[str, Job], devices: Classes) -> None:
    """Refuse a fleet in which a method's first request would take somebody longer than a clock can count."""
    known: set[tuple[float, ...]] = set()
    for label, job in jobs.items():
        costs = (job.down, job.work.total, job.work.begun, float(sum(job.work.backward)), job.up(None))
        if costs in known:
            continue
        known.add(costs)
        with np.errstate(over="ignore", invalid="ignore"):
            times = _expected(devices, job)
        # Written so that a time which is no number is found too.
        if not (times <= LONGEST).all():
            client = int((~(times <= LONGEST)).argmax())
            device = devices[client]
            raise FleetError(
                f"Client {client}, a {device.tier!r}, would need {times[client]:g} seconds for the first request of "
                f"{label!r}, and no clock counts beyond 2^53. Its flops are {device.flops:g} FLOP/s, down "
                f"{device.down:g} and up {device.up:g} bytes/s, latency {device.latency:g} and overhead "
                f"{device.overhead:g} seconds{_at_pace(device)}: correct what is in other units."
            )


def _at_pace(device: Device) -> str:
    return "" if device.pace is None else f", its pace {device.pace}"


def _with_deadline(algorithm: Algorithm[Any]) -> Algorithm[Any]:
    """The method with a deadline where it has none yet: only then its requests show whether they carry it."""
    if getattr(algorithm, "deadline", 0.0) == math.inf:
        return replace(algorithm, deadline=_NEVER_MISSED)  # type: ignore[type-var]
    return algorithm


def _expected(devices: Classes, job: Job) -> NDArray[np.float64]:
    """Expected seconds of each client for the whole of a job."""
    return seconds(devices, job, lambda device: expected_seconds(device, job))


def _without_stragglers(devices: Classes, straggler: str | None, job: Job) -> float:
    """Seconds that the slowest client needs that is no straggler; expected ones where all are."""
    times = seconds(devices, job, lambda device: _full_speed(device, job))
    slow = np.array([device.tier == straggler for device in devices.table])[devices.kinds]
    if not slow.any():
        slow = times > 2 * np.median(times)
    return float(times[~slow].max()) if not slow.all() else float(_expected(devices, job).max())


def _full_speed(device: Device, job: Job) -> float:
    """Seconds for the whole of a job when the device does not straggle, by the very arithmetic of the clock."""
    pace = device.pace
    if isinstance(pace, UniformDepth):
        pace = replace(pace, minimum=pace.maximum)
    elif isinstance(pace, SometimesSlower) or device.tier == "straggler":
        pace = None
    elif pace is not None:
        return expected_seconds(device, job)
    steady = device if pace is device.pace else replace(device, pace=pace)
    return timing(steady, job._replace(deadline=math.inf), Draw(0, 0, 0, 0)).arrived


def _check_reachable(label: str, job: Job, deadline: float, devices: Classes) -> None:
    """Refuse a deadline that nobody can meet, with the one that somebody can."""
    partial = math.isfinite(job.deadline)
    first = next((i for i, backward in enumerate(job.work.backward) if backward), 0) if partial else len(job.work) - 1
    job = job._replace(deadline=deadline)
    if anybody_reaches(devices, job, first):
        return
    need = float(seconds(devices, job, lambda device: _full_speed(device, job)).min())
    what = "reaches a single layer" if partial else "finishes its work"
    raise FleetError(
        f"Nobody {what} by the deadline of {deadline:g} s, so {label!r} would never learn. "
        f"The fastest device needs {need:.4g} s for all of it; give at least that, or leave the deadline out."
    )
