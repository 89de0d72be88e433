"""From a configuration to things that run: data, model, algorithms, and for each seed a partition and a fleet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lanterne.algorithms import ALGORITHMS
from lanterne.data import Dataset, Streams, check_partition, label_shares, load, partition
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment.config import Config, make_algorithm
from lanterne.experiment.deadline import resolve_deadline
from lanterne.experiment.evaluate import Judge
from lanterne.fleet import PRESETS, Fleet, preset, read_table
from lanterne.learn import Task
from lanterne.models import LayerStack, block_costs, initial_weights
from lanterne.models.zoo import build
from lanterne.protocol import Algorithm
from lanterne.rng import fold
from lanterne.runtime import EXECUTORS, Loop, Simulator, choose_executor

Model = str | nn.Sequential | LayerStack
Partition = str | Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Objects:
    """What a user brings instead of names: it takes the place of what the configuration says.

    Args:
        data: a data set.
        model: an `nn.Sequential`; its weights are where every run starts, whatever the seed.
        fleet: a fleet, the same for every seed.
        partition: the rows of each client, the same for every seed.
        algorithms: by label, what makes an algorithm when it is called with `stack=` and hyperparameters.
    """

    data: Dataset | None = None
    model: nn.Sequential | LayerStack | None = None
    fleet: Fleet | None = None
    partition: Sequence[NDArray[np.int64]] | None = None
    algorithms: Mapping[str, Callable[..., Algorithm[Any]]] = field(default_factory=dict)

    @property
    def given(self) -> list[str]:
        """The names of what was brought."""
        brought = [n for n in ("data", "model", "fleet", "partition") if getattr(self, n) is not None]
        return brought + sorted(self.algorithms)


@dataclass(frozen=True)
class World:
    """What one seed fixes: who holds which rows, which devices there are, the batches, and where training starts."""

    rows: Sequence[NDArray[np.int64]]
    fleet: Fleet
    streams: Streams
    w: Tensor


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to run.

    Args:
        config: complete: what was left open is decided, so that the same config gives the same bits.
        objects: what the user brought.
        data: on its device.
        stack: the model.
        algorithms: by label.
    """

    config: Config
    objects: Objects
    data: Dataset
    stack: LayerStack
    algorithms: Mapping[str, Algorithm[Any]]

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and samples."""
        found: torch.dtype = getattr(torch, self.config.runtime.dtype)
        return found

    def world(self, seed: int) -> World:
        """What a seed fixes."""
        return make_world(self.config, self.objects, self.data, self.stack, seed)

    def executor(self, name: str | None = None) -> Loop:
        """A new executor, with its own threads."""
        kind = EXECUTORS[name or self.config.runtime.executor]
        return kind(Task(self.stack), self.data.x, self.data.y, threads=self.config.runtime.threads)

    def simulator(self, label: str, world: World, executor: Loop, seed: int) -> Simulator:
        """A fresh simulator for one competitor."""
        algorithm, key = self.algorithms[label], fold(seed, "run")
        return Simulator(algorithm, world.fleet, executor, world.streams, seed=key, dtype=self.dtype)

    def judge(self, world: World, executor: Loop) -> Judge:
        """What judges a model in this world."""
        shares = label_shares(world.rows, self.data.y.cpu(), self.data.classes)
        samples = np.array([len(r) for r in world.rows])
        tiers = [world.fleet.devices[c].tier for c in range(len(world.fleet))]
        return Judge(executor, self.data, shares, samples, tiers)


def prepare(config: Config, objects: Objects | None = None) -> Prepared:
    """Load, build and check everything, decide what was left open, and write nothing.

    Args:
        config: what is asked for.
        objects: what the user brings.

    Returns:
        The experiment, its `config` complete.

    Raises:
        InputError: for anything that cannot be run, before any time is spent on running.
    """
    objects = objects or Objects()
    device = config.runtime.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"runtime.device is {device!r}, but PyTorch sees no GPU here. Use 'cpu'.")
    dtype: torch.dtype = getattr(torch, config.runtime.dtype)
    data = objects.data or load(config.data.source, image=config.data.image, label=config.data.label)
    data = data.to(dtype, device)
    stack = _stack(config, objects, data)
    costs = block_costs(stack, dtype)
    cohort = config.training.cohort or config.data.clients
    executor = config.runtime.executor
    if executor == "auto":
        executor = choose_executor(costs, config.data.batch, cohort, device)
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"executor": executor})})
    first = make_world(config, objects, data, stack, config.seeds[0])
    timeless = _algorithms(config, objects, stack, None)
    deadline = resolve_deadline(config, timeless, stack, first.fleet, first.streams, first.w)
    training = config.training.model_copy(update={"deadline": deadline})
    config = config.model_copy(update={"training": training})
    return Prepared(config, objects, data, stack, _algorithms(config, objects, stack, deadline))


def make_world(config: Config, objects: Objects, data: Dataset, stack: LayerStack, seed: int) -> World:
    """What a seed fixes.

    Args:
        config: for partition, fleet, clients and batch.
        objects: what takes their place.
        data: for its labels.
        stack: the model.
        seed: of the run.
    """
    clients = len(objects.partition) if objects.partition is not None else config.data.clients
    if objects.partition is not None:
        rows = check_partition(objects.partition, len(data), clients)
    else:
        rows = partition(config.data.partition, data.y.cpu(), clients, fold(seed, "partition") % 2**31)
    fleet = objects.fleet or make_fleet(config, clients, len(stack), seed)
    if len(fleet) != clients:
        raise FleetError(
            f"The fleet has {len(fleet)} devices, but the data is partitioned over {clients} clients. Make them equal."
        )
    w = initial_weights(stack, fold(seed, "weights"), getattr(torch, config.runtime.dtype)).to(config.runtime.device)
    return World(rows, fleet, Streams(rows, config.data.batch, fold(seed, "streams")), w)


def make_fleet(config: Config, clients: int, layers: int, seed: int) -> Fleet:
    """The fleet that a configuration names: a preset, or a file."""
    kind, parameters = config.fleet.kind, dict(config.fleet.parameters)
    if kind not in PRESETS and Path(kind).suffix in (".csv", ".parquet"):
        if not Path(kind).exists():
            raise FleetError(
                f"There is no fleet file {kind}. Give the path of a CSV or Parquet file, or a preset: "
                f"{', '.join(PRESETS)}."
            )
        if parameters:
            raise FleetError(
                f"A fleet file takes no parameters, but {', '.join(parameters)} is given. "
                f"Put it into {kind} as a column."
            )
        return read_table(kind, clients, seed)
    return preset(kind, **parameters).build(clients, seed, layers)


def _stack(config: Config, objects: Objects, data: Dataset) -> LayerStack:
    if isinstance(objects.model, LayerStack):
        stack = objects.model
    elif objects.model is not None:
        stack = LayerStack(objects.model, data.sample_shape)
    else:
        stack = build(config.model.name, data.sample_shape, data.classes)
    outputs = stack.output_shape
    if outputs != (data.classes,):
        raise ConfigError(
            f"The model gives {outputs} numbers per sample, but the data has {data.classes} classes. "
            f"End it with a layer of {data.classes} outputs."
        )
    return stack


def _algorithms(
    config: Config, objects: Objects, stack: LayerStack, deadline: float | tuple[float, ...] | None
) -> dict[str, Algorithm[Any]]:
    """The competitors, given what the experiment sets for all of them and what their own tables say."""
    shared = {n: v for n, v in config.training.model_dump().items() if v is not None and n != "deadline"}
    if deadline is not None:
        shared["deadline"] = deadline
    made: dict[str, Algorithm[Any]] = {}
    for label, entry in config.algorithms.items():
        kind: Any = objects.algorithms.get(label) or ALGORITHMS[entry.algorithm]
        known = _accepted(kind)
        parameters = {**{n: v for n, v in shared.items() if n in known}, **entry.parameters}
        if label in objects.algorithms:
            made[label] = kind(stack=stack, **parameters)
        else:
            made[label] = make_algorithm(entry.algorithm, stack, **parameters)
    return made


def _accepted(kind: Callable[..., Any]) -> set[str]:
    """The hyperparameters that a class, a function or a `functools.partial` may be given."""
    fixed: set[str] = set()
    if isinstance(kind, partial):
        fixed, kind = set(kind.keywords), kind.func
    fields = getattr(kind, "__dataclass_fields__", None) or inspect.signature(kind).parameters
    return set(fields) - fixed
