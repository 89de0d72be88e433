"""How long a round may last, in seconds, equal for all methods of an experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lanterne.data import Streams
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment.config import Config, quantile
from lanterne.experiment.parameters import adel_budget
from lanterne.fleet import (
    Draw,
    Fleet,
    Job,
    SometimesSlower,
    UniformDepth,
    adel_deadlines,
    empty_layers,
    reach,
    round_weights,
    timing,
)
from lanterne.fleet.device import Device
from lanterne.learn import Task
from lanterne.models import LayerStack
from lanterne.protocol import Algorithm, Dispatch, Output, Request
from lanterne.runtime import Loop, Simulator
from lanterne.runtime.cohort import SimulatedCohort
from lanterne.tree import nbytes, spec_of


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
        FleetError: for a deadline that nobody can meet.
    """
    asked = config.training.deadline
    with_deadline = {label: a for label, a in algorithms.items() if hasattr(a, "deadline")}
    # How long a method works that has no deadline must not lengthen that of the others.
    jobs = {label: first_jobs(a, stack, fleet, streams, w) for label, a in (with_deadline or algorithms).items()}
    deadline: float | tuple[float, ...]
    if isinstance(asked, int | float | tuple):
        deadline = asked
    elif isinstance(asked, str) and (budget := adel_budget(asked)) is not None:
        cut_off = {n: replace(a, deadline=budget) for n, a in with_deadline.items()} or algorithms  # type: ignore[type-var]
        deadline = _adel(budget, config.rounds, cut_off, stack, fleet, streams, w)
    elif isinstance(asked, str):
        q = quantile(asked)
        deadline = max(float(np.quantile(_times(job, fleet), q, method="higher")) for job in jobs.values())
    else:
        deadline = max(_without_stragglers(job, fleet) for job in jobs.values())
    for label, algorithm in with_deadline.items():
        own = replace(algorithm, deadline=deadline) if algorithm.deadline == math.inf else algorithm  # type: ignore[type-var]
        _check_reachable(label, own, jobs[label], fleet, stack, streams, w)
    return deadline


def _adel(
    budget: float,
    rounds: int,
    algorithms: Mapping[str, Algorithm[Any]],
    stack: LayerStack,
    fleet: Fleet,
    streams: Streams,
    w: Tensor,
) -> tuple[float, ...]:
    """ADEL-FL's deadlines for the first method that sends the layers it reached; else for the first method."""
    jobs = {label: first_jobs(a, stack, fleet, streams, w) for label, a in algorithms.items()}
    label = next((label for label, job in jobs.items() if math.isfinite(job.deadline)), next(iter(jobs)))
    lr, cohort = getattr(algorithms[label], "lr", None), getattr(algorithms[label], "cohort", None)
    # Without a step size all rounds weigh the same.
    weights = round_weights([lr] * rounds) if lr else np.ones(rounds)
    return adel_deadlines(empty_layers(fleet, jobs[label], len(stack), cohort), weights, budget)


def first_jobs(algorithm: Algorithm[Any], stack: LayerStack, fleet: Fleet, streams: Streams, w: Tensor) -> Job:
    """The first request of a method's first round, priced; no number is computed."""
    request, simulator = _first_request(algorithm, stack, fleet, streams, w)
    arrays = {n: a for n, a in request.arrays.items() if not isinstance(a, Output)}
    spec = spec_of(arrays)

    def up(units: int | None) -> int:
        return simulator.pricing.reply(
            (request.handler, tuple(request.config.items()), (), spec, len(request.batches), units)
        ).nbytes

    return Job(nbytes(spec), simulator.pricing.work(request.passes), up, request.deadline, request.stop)


def _first_request(
    algorithm: Algorithm[Any], stack: LayerStack, fleet: Fleet, streams: Streams, w: Tensor
) -> tuple[Request, Simulator]:
    empty = torch.empty(0, *stack.sample_shape, dtype=w.dtype)
    executor = Loop(Task(stack), empty, torch.empty(0, dtype=torch.int64))
    # Who is there at the start must not matter to how long the work takes.
    always = replace(fleet, devices=[replace(fleet.devices[c], available=None) for c in range(min(len(fleet), 1000))])
    simulator = Simulator(algorithm, always, executor, streams, dtype=w.dtype)
    program = algorithm.round(algorithm.init(w), SimulatedCohort(simulator))
    try:
        effect = next(program)
        while not (isinstance(effect, Dispatch) and effect.requests):
            effect = program.send(None)
    except StopIteration:
        name = type(algorithm).__name__
        raise ConfigError(f"{name} asks nobody for anything in its first round, so there is nothing to run.") from None
    finally:
        program.close()
        executor.close()
    return next(iter(effect.requests)), simulator


def _full_speed(device: Device, job: Job) -> float:
    """Seconds for the whole of a job when the device does not straggle, by the very arithmetic of the clock."""
    whole = job._replace(deadline=math.inf)
    if device.pace is None or not isinstance(device.pace, SometimesSlower | UniformDepth):
        if device.pace is not None and device.tier != "straggler":
            return _expected(device, job)
        return timing(replace(device, pace=None), whole, Draw(0, 0, 0, 0)).arrived
    if isinstance(device.pace, UniformDepth):
        pace = replace(device.pace, minimum=device.pace.maximum)
        return timing(replace(device, pace=pace), whole, Draw(0, 0, 0, 0)).arrived
    return timing(replace(device, pace=None), whole, Draw(0, 0, 0, 0)).arrived


def _expected(device: Device, job: Job) -> float:
    downloaded = device.latency + job.down / device.down
    return downloaded + device.expected(job.work) + device.latency + job.up(None) / device.up


def _times(job: Job, fleet: Fleet) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([_expected(fleet.devices[c], job) for c in range(len(fleet))])


def _without_stragglers(job: Job, fleet: Fleet) -> float:
    devices = [fleet.devices[c] for c in range(len(fleet))]
    times = np.array([_full_speed(d, job) for d in devices])
    slow = np.array([d.tier == fleet.straggler for d in devices])
    if not slow.any():
        slow = times > 2 * np.median(times)
    return float(times[~slow].max()) if not slow.all() else float(times.max())


def _check_reachable(
    label: str, algorithm: Algorithm[Any], job: Job, fleet: Fleet, stack: LayerStack, streams: Streams, w: Tensor
) -> None:
    """Refuse a deadline that nobody can meet, with the one that somebody can."""
    given: float | tuple[float, ...] = algorithm.deadline  # type: ignore[attr-defined]
    deadline = max(given) if isinstance(given, tuple) else given
    request, _ = _first_request(algorithm, stack, fleet, streams, w)
    partial = math.isfinite(request.deadline)
    first = next((i for i, backward in enumerate(job.work.backward) if backward), 0) if partial else len(job.work) - 1
    job = job._replace(deadline=deadline, stop=request.stop)
    if any(reach(fleet.devices[c], job)[first] > 0 for c in range(len(fleet))):
        return
    fastest = min((fleet.devices[c] for c in range(len(fleet))), key=lambda d: _full_speed(d, job))
    need = _full_speed(fastest, job)
    what = "reaches a single layer" if partial else "finishes its work"
    raise FleetError(
        f"Nobody {what} by the deadline of {deadline:g} s, so {label!r} would never learn. "
        f"The fastest device needs {need:.4g} s for all of it; give at least that, or leave the deadline out."
    )
