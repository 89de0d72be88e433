"""An experiment from Python: names for what lanterne has, objects for what the user brings."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lanterne.data import Dataset
from lanterne.errors import ConfigError
from lanterne.experiment import Listener, Objects, parse_config, prepare, resume_experiment, run_experiment
from lanterne.experiment.config import competitor
from lanterne.fleet import Fleet
from lanterne.models import LayerStack
from lanterne.protocol import Algorithm
from lanterne.report import load_run, markdown, plot_run, summarise

Competitor = str | Callable[..., Algorithm[Any]]


@dataclass(frozen=True)
class Result:
    """What came of an experiment.

    Args:
        out: its run directory.
        runs: one object per competitor and seed, as `lanterne run --format json` prints them.
    """

    out: Path
    runs: list[dict[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of all competitors and seeds, one per evaluated round."""
        return [dict(row) for cell in load_run(self.out).cells for row in cell.rows]

    @property
    def table(self) -> str:
        """The comparison as a Markdown table."""
        return markdown(summarise(load_run(self.out).cells))

    def plot(self, out: str | Path | None = None, formats: Sequence[str] = ("png",)) -> list[Path]:
        """Draw the pictures of `lanterne plot`; into the run directory by default."""
        return plot_run(self.out, out, formats)


def run(
    algorithms: Sequence[Competitor] | Mapping[str, Competitor | Mapping[str, Any]],
    *,
    data: str | Dataset = "digits",
    image: str | None = None,
    label: str | None = None,
    owner: str | None = None,
    augment: str | None = None,
    model: str | nn.Sequential | LayerStack | None = None,
    fleet: str | Fleet | Mapping[str, Any] | None = None,
    partition: str | Sequence[NDArray[np.int64]] | None = None,
    clients: int | None = None,
    batch: int | None = None,
    rounds: int = 60,
    seeds: Sequence[int] = (1,),
    training: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
    evaluate_every: int = 1,
    out: str | Path | None = None,
    listener: Listener | None = None,
    tune: bool = False,
) -> Result:
    """Race algorithms on one fleet, one data set and the same seeds.

    Args:
        algorithms: names (`"salf"`, `"salf:rule=code"`), or classes of one's own, called with `stack=` and the
            hyperparameters that `training` sets for all; a mapping gives them labels, or hyperparameters by name.
        data: a name, a path, a hub id, or a data set.
        image: the column of images, where the data is a path and it cannot be told.
        label: the column of labels, likewise.
        owner: the column that says who a row comes from, for the partition `"natural"`.
        augment: of the training images, `"crop:4"`, `"flip"` or `"crop-flip:4"`.
        model: a name of the zoo (`"resnet18:norm=batch"`), or an `nn.Sequential` of one's own, unchanged.
        fleet: a preset's name, a file, a mapping with `kind` and its parameters, or a fleet.
        partition: `"iid"`, `"dirichlet:0.3"`, `"shards:2"`, `"linear"`, `"natural"` ..., or the rows of each client.
        clients: the population; by default that of the partition, the fleet or the fleet file that is given, else 30.
        batch: samples in a batch.
        rounds: server versions.
        seeds: one run of every competitor each.
        training: `lr`, `local_steps`, `momentum`, `cohort`, `deadline` (seconds) for all competitors.
        runtime: `executor`, `threads`, `device`, `dtype`.
        evaluate_every: rounds between two evaluations.
        out: a fresh run directory; a temporary one by default.
        listener: hears how it goes.
        tune: time the executors instead of following the rule.

    Returns:
        The result, whose rows are a table.

    Raises:
        InputError: for what cannot be run, before anything is.

    Examples:
        >>> result = run(["fedavg", "salf"], clients=4, rounds=1, fleet={"kind": "stragglers", "share": 0.5})
        >>> [entry["algorithm"] for entry in result.runs]
        ['fedavg', 'salf']
    """
    own, tables = _competitors(algorithms)
    mapping: dict[str, Any] = {
        "rounds": rounds,
        "seeds": list(seeds),
        "evaluate_every": evaluate_every,
        "training": dict(training or {}),
        "runtime": dict(runtime or {}),
        "algorithms": tables,
        "data": {},
    }
    if isinstance(data, str):
        mapping["data"]["source"] = data
    if isinstance(partition, str):
        mapping["data"]["partition"] = partition
    if isinstance(model, str):
        mapping["model"] = {"name": model}
    if isinstance(fleet, str):
        mapping["fleet"] = {"kind": fleet}
    elif isinstance(fleet, Mapping):
        mapping["fleet"] = dict(fleet)
    chosen = {"clients": clients, "batch": batch, "image": image, "label": label, "owner": owner, "augment": augment}
    mapping["data"] |= {name: value for name, value in chosen.items() if value is not None}
    objects = Objects(
        data=data if isinstance(data, Dataset) else None,
        model=None if isinstance(model, str) else model,
        fleet=fleet if isinstance(fleet, Fleet) else None,
        partition=partition if partition is not None and not isinstance(partition, str) else None,
        algorithms=own,
    )
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lanterne-"))
    prepared = prepare(parse_config(mapping, own), objects)
    for sentence in prepared.unheard:
        warnings.warn(sentence, stacklevel=2)
    return Result(folder, run_experiment(prepared, folder, listener, tune=tune)["runs"])


def resume(
    out: str | Path,
    *,
    data: Dataset | None = None,
    model: nn.Sequential | LayerStack | None = None,
    fleet: Fleet | None = None,
    partition: Sequence[NDArray[np.int64]] | None = None,
    algorithms: Mapping[str, Callable[..., Algorithm[Any]]] | None = None,
    listener: Listener | None = None,
) -> Result:
    """Go on with a run that was interrupted, to the bit where it would have been; from any directory.

    It warns where it was begun with another PyTorch, Python or machine, with which bits may differ.

    Args:
        out: its run directory, wherever it is now.
        data: the object that it was begun with, if it was; so for all others.
        model: as `data`.
        fleet: as `data`.
        partition: as `data`.
        algorithms: as `data`, by their labels.
        listener: hears how it goes.

    Raises:
        ConfigError: for a directory that holds no run, for objects that are missing, and for a run that was begun with
            another lanterne or from files that have changed.
    """
    objects = Objects(data, model, fleet, partition, algorithms or {})
    return Result(Path(out), resume_experiment(Path(out), listener, objects)["runs"])


def _competitors(
    algorithms: Sequence[Competitor] | Mapping[str, Competitor | Mapping[str, Any]],
) -> tuple[dict[str, Callable[..., Algorithm[Any]]], Any]:
    """The user's own algorithms by label, and what the configuration says of all."""
    own: dict[str, Callable[..., Algorithm[Any]]] = {}
    if isinstance(algorithms, str):
        raise ConfigError(f"algorithms is {algorithms!r}. Give a list, as in [{algorithms!r}].")
    if not isinstance(algorithms, Mapping):
        labels = [a if isinstance(a, str) else _name(a) for a in algorithms]
        algorithms = dict(zip(labels, algorithms, strict=True))
    tables: dict[str, Any] = {}
    for label, given in algorithms.items():
        if isinstance(given, str):
            table = competitor(given)[1]
            tables[label] = table or ({} if label == given else {"algorithm": given})
        elif isinstance(given, Mapping):
            tables[label] = dict(given)
            if callable(tables[label].get("algorithm")):
                own[label] = tables[label].pop("algorithm")
        else:
            own[label], tables[label] = given, {}
    return own, tables


def _name(given: Callable[..., Algorithm[Any]]) -> str:
    """A label for a class, a function or a `functools.partial`."""
    given = getattr(given, "func", given)
    return getattr(given, "__name__", type(given).__name__).strip("<>").lower()
