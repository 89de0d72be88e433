"""From a configuration to things that run: data, model, algorithms, and for each seed a partition and a fleet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lanterne.algorithms import ALGORITHMS
from lanterne.data import (
    Augmentation,
    Dataset,
    Streams,
    augmentation,
    check_partition,
    different,
    held_out,
    label_shares,
    load,
    partition,
)
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment.clients import CLIENTS, check_classes, check_cohorts, clients_asked, read_fleet
from lanterne.experiment.config import AlgorithmConfig, Config, make_algorithm
from lanterne.experiment.deadline import resolve_deadline
from lanterne.experiment.evaluate import Judge
from lanterne.experiment.memory import check_server, check_size
from lanterne.fleet import Fleet, preset
from lanterne.learn import Task
from lanterne.models import LayerStack, batch_norms, block_costs, initial_weights
from lanterne.models.zoo import build
from lanterne.protocol import Algorithm
from lanterne.rng import fold, generator
from lanterne.runtime import EXECUTORS, Loop, Simulator, choose_executor

#: Training samples from which BatchNorm layers take the statistics by which a model is judged.
_STATISTICS_ROWS = 4096

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
        file: the fleet that was read from a file, if it was.
        clients: how many there are.
        algorithms: by label.
        asked: the configuration as it was given.
    """

    config: Config
    objects: Objects
    data: Dataset
    stack: LayerStack
    file: Fleet | None
    clients: int
    algorithms: Mapping[str, Algorithm[Any]]
    asked: Config

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and samples."""
        found: torch.dtype = getattr(torch, self.config.runtime.dtype)
        return found

    @property
    def augment(self) -> Augmentation | None:
        """How training images are changed when they are read."""
        spec = self.config.data.augment
        return None if spec is None else augmentation(spec, self.data.sample_shape, len(self.data))

    def world(self, seed: int) -> World:
        """What a seed fixes."""
        config, dealt = self.config, self.objects.partition
        if dealt is not None:
            rows = check_partition(dealt, len(self.data), self.clients)
        else:
            key = fold(seed, "partition") % 2**31
            rows = partition(config.data.partition, self.data.y.cpu(), self.clients, key, self.data.owner)
        fleet = self._fleet(seed)
        if len(fleet) != self.clients:
            raise FleetError(
                f"The fleet has {len(fleet)} devices, but the data is partitioned over {self.clients} clients. "
                "Make them equal."
            )
        check_size(self.stack, fleet, self.dtype, self.algorithms.values())
        w = initial_weights(self.stack, fold(seed, "weights"), self.dtype).to(config.runtime.device)
        return World(rows, fleet, Streams(rows, config.data.batch, fold(seed, "streams"), self.augment), w)

    def _fleet(self, seed: int) -> Fleet:
        """The user's as it is; that of a file with the seed's chances; else what the preset makes of the seed."""
        if self.objects.fleet is not None:
            return self.objects.fleet
        if self.file is not None:
            return replace(self.file, seed=fold(seed, "fleet"))
        kind, given = self.config.fleet.kind, self.config.fleet.parameters
        return preset(kind, **given).build(self.clients, seed, len(self.stack))

    def executor(self, name: str | None = None) -> Loop:
        """A new executor, with its own threads."""
        kind = EXECUTORS[name or self.config.runtime.executor]
        threads = self.config.runtime.threads
        return kind(Task(self.stack), self.data.x, self.data.y, threads=threads, augment=self.augment)

    def simulator(self, label: str, world: World, executor: Loop, seed: int) -> Simulator:
        """A fresh simulator for one competitor."""
        algorithm, key = self.algorithms[label], fold(seed, "run")
        return Simulator(algorithm, world.fleet, executor, world.streams, seed=key, dtype=self.dtype)

    def judge(self, world: World, executor: Loop) -> Judge:
        """What judges a model in this world."""
        parts = different(world.rows)
        shares = label_shares(parts, self.data.y.cpu(), self.data.classes)
        samples = np.array([len(rows) for rows in parts])
        holdings = {
            tier: samples * np.bincount(clients % len(parts), minlength=len(parts))
            for tier, clients in world.fleet.members.items()
        }
        order = generator(world.streams.seed, "statistics").permutation(np.concatenate(parts))
        held = held_out(parts, self.data.owner, self.data.test_owner)
        return Judge(executor, self.data, shares, self.clients, holdings, order[:_STATISTICS_ROWS], held)

    @property
    def unheard(self) -> list[str]:
        """A sentence for each training parameter that was set and reaches not every competitor."""
        said = []
        for name, value in self.asked.training.model_dump().items():
            entries = self.config.algorithms
            deaf = [n for n, entry in entries.items() if name not in _accepted(_kind(self.objects, n, entry))]
            if name == "deadline" and len(deaf) < len(entries):
                continue  # it is what those who wait are compared with
            if value is not None and deaf:
                has = "has" if len(deaf) == 1 else "have"
                said.append(f"{', '.join(deaf)} {has} no {name}: training.{name} = {value} does not reach there.")
        return said


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
    objects, given = objects or Objects(), config
    device = config.runtime.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"runtime.device is {device!r}, but PyTorch sees no GPU here. Use 'cpu'.")
    asked = clients_asked(config, objects.partition)
    file = read_fleet(config, asked) if objects.fleet is None else None
    fleet = objects.fleet or file
    clients = asked or (len(fleet) if fleet else CLIENTS)
    check_cohorts(config, clients, objects.algorithms)
    config = config.model_copy(update={"data": config.data.model_copy(update={"clients": clients})})
    dtype: torch.dtype = getattr(torch, config.runtime.dtype)
    data = objects.data or load(
        config.data.source,
        image=config.data.image,
        label=config.data.label,
        owner=config.data.owner,
        clients=clients,
    )
    data = data.to(dtype, device)
    stack = _stack(config, objects, data)
    costs = block_costs(stack, dtype)
    executor = config.runtime.executor
    if executor == "auto":
        training = config.training
        executor = choose_executor(
            costs, config.data.batch, training.cohort or clients, device, training.local_steps or 1
        )
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"executor": executor})})
    made = _algorithms(config, objects, stack, None)
    prepared = Prepared(config, objects, data, stack, file, clients, made, given)
    first = prepared.world(config.seeds[0])
    check_classes(config, first.fleet)
    deadline = resolve_deadline(config, prepared.algorithms, stack, first.fleet, first.streams, first.w)
    config = config.model_copy(update={"training": config.training.model_copy(update={"deadline": deadline})})
    made = _algorithms(config, objects, stack, deadline)
    check_server(made, stack, first.fleet, first.streams, first.w, fold(config.seeds[0], "run"))
    return replace(prepared, config=config, algorithms=made)


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
    if config.data.batch == 1 and batch_norms(stack):
        raise ConfigError(
            "data.batch is 1, but the model normalises by the batch (BatchNorm), and one sample says nothing of the "
            "others. Use batches of 2 or more, or GroupNorm."
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
        kind = _kind(objects, label, entry)
        known = _accepted(kind)
        parameters = {**{n: v for n, v in shared.items() if n in known}, **entry.parameters}
        if label in objects.algorithms:
            made[label] = kind(stack=stack, **parameters)
        else:
            made[label] = make_algorithm(entry.algorithm, stack, **parameters)
    return made


def _kind(objects: Objects, label: str, entry: AlgorithmConfig) -> Callable[..., Algorithm[Any]]:
    """What makes a competitor: the user's own, or lanterne's."""
    return objects.algorithms.get(label) or ALGORITHMS[entry.algorithm]


def _accepted(kind: Callable[..., Any]) -> set[str]:
    """The hyperparameters that a class, a function or a `functools.partial` may be given."""
    fixed: set[str] = set()
    if isinstance(kind, partial):
        fixed, kind = set(kind.keywords), kind.func
    fields = getattr(kind, "__dataclass_fields__", None) or inspect.signature(kind).parameters
    return set(fields) - fixed
