"""One cell of a race: a competitor with one seed, for so much virtual time, judged at the same times as all others.

Methods need unequal times for a round, so that a study which gives all of them as many rounds compares nothing. Here
all get as much time: the unit is the deadline, what a round lasts in a fleet without stragglers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanterne.data import Dataset, load
from lanterne.experiment import Objects, Prepared, parse_config, prepare
from lanterne.experiment.rows import make_row
from lanterne.fleet import preset
from lanterne.models.zoo import build
from lanterne.protocol import Algorithm
from lanterne.rng import fold, generator

#: Versions within one deadline, above which a method is taken to be stuck.
_MOST_VERSIONS = 10_000
#: A round that by rounding ends a little late was in time.
_ROUNDING = 1.0 + 1e-9
#: Whom the partition `by-speed` takes for slow, whatever the fleet.
_SLOW = {"share": 0.5}


def race(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Compute a cell.

    Args:
        settings: of `plan.Race.settings`.
        folder: holds the data sets as folders.

    Returns:
        `rows`, one for each time of `settings["times"]`; `deadline` in seconds; `rounds` done; `diverged`, the round in
        which the weights were no longer finite, or None; `seconds` of computing.
    """
    begun = time.process_time()
    data = split_of(str(folder), settings["data"], settings["samples"], settings["split"])
    prepared = _prepared(settings, data)
    deadline = prepared.config.training.deadline
    assert isinstance(deadline, float)
    times = [deadline * settings["deadlines"] * share for share in settings["times"]]
    rows, diverged = follow(prepared, settings["method"], settings["seed"], times)
    return {
        "rows": [{"share": s, **row} for s, row in zip(settings["times"], rows, strict=False)],
        "deadline": deadline,
        "rounds": rows[-1]["round"],
        "diverged": diverged,
        "seconds": time.process_time() - begun,
    }


def follow(
    prepared: Prepared, label: str, seed: int, times: Sequence[float]
) -> tuple[list[dict[str, Any]], int | None]:
    """Run one competitor until the last of some times, and judge at each time the version that is current then.

    Args:
        prepared: the experiment.
        label: of the competitor.
        seed: of the run.
        times: seconds of virtual time, ascending.

    Returns:
        A row for each time, and the round in which the method diverged: then its last row is of that round and has no
        accuracy.
    """
    world, executor = prepared.world(seed), prepared.executor()
    try:
        simulator, judge = prepared.simulator(label, world, executor, seed), prepared.judge(world, executor)
        algorithm: Algorithm[Any] = prepared.algorithms[label]
        state: Any = algorithm.init(world.w)
        row, done, most = make_row(label, seed, 0, simulator, {}, 0.0), 0, _most(times, prepared)
        rows: list[dict[str, Any]] = []
        while True:
            after = simulator.round(algorithm, state)
            for at in times[len(rows) :]:
                if simulator.now <= at * _ROUNDING:
                    break
                judged = judge(algorithm.evaluated(state))
                if not math.isfinite(judged["loss"]):
                    return [*rows, {**row, "accuracy": None}], done
                rows.append({**row, **judged, "virtual_seconds": at})
            if len(rows) == len(times):
                return rows, None
            state, done = after, done + 1
            row = make_row(label, seed, done, simulator, {}, 0.0)
            simulator.timeline.clear()
            if not bool(torch.isfinite(algorithm.evaluated(state)).all()):
                return [*rows, {**row, "accuracy": None}], done
            if done > most:
                raise RuntimeError(f"{label} makes versions in no time: {done} by {simulator.now:g} s")
    finally:
        executor.close()


def held_out(data: Dataset, key: int) -> Dataset:
    """A data set without its test split: a sixth of the training rows takes its place.

    Args:
        data: whose test split must not be looked at.
        key: which rows; equal keys hold out equal rows.
    """
    order = generator(key, "validation").permutation(len(data))
    judged, trained = np.sort(order[: len(data) // 6]), np.sort(order[len(data) // 6 :])
    return Dataset(
        data.name, *_rows(data.x, data.y, trained), *_rows(data.x, data.y, judged), data.classes
    )  # fmt: skip


def by_speed(labels: Tensor, slow: Sequence[bool], key: int, shards: int = 2) -> list[NDArray[np.int64]]:
    """A partition in which class and slowness correlate: the rows sorted by label, the fast clients have the first.

    As `shards:2` otherwise: the sorted rows are cut into shards of equal size, and within the fast clients, and
    within the slow ones, shards are dealt at random.

    Args:
        labels: `[rows]`.
        slow: of each client, whether it is.
        key: how shards are dealt.
        shards: of each client.

    Examples:
        >>> [rows.tolist() for rows in by_speed(torch.tensor([1, 0, 1, 0]), [True, False], 0, 1)]
        [[0, 2], [1, 3]]
    """
    cut = np.array_split(np.argsort(labels.numpy(), kind="stable"), shards * len(slow))
    order = np.argsort(np.asarray(slow), kind="stable")  # the fast ones first
    middle = shards * int((~np.asarray(slow)).sum())
    g = generator(key, "by speed")
    dealt = np.concatenate([g.permutation(middle), middle + g.permutation(len(cut) - middle)]).reshape(len(slow), -1)
    hands = {
        int(client): np.concatenate([cut[shard] for shard in hand]) for client, hand in zip(order, dealt, strict=True)
    }
    return [np.sort(hands[client]) for client in range(len(slow))]


# --------------------------------------------------------------------------------------------------------- building
def _prepared(settings: Mapping[str, Any], data: Dataset) -> Prepared:
    """The experiment of a cell. The deadline is FedAvg's without stragglers, for every method; 1 where all straggle."""
    layers = len(build(settings["model"], data.sample_shape, data.classes))
    clients, seed = settings["clients"], settings["seed"]
    fleet: dict[str, Any] = {"kind": "uniform-depth", "share": settings["share"]}
    if not settings["finish"]:
        fleet["maximum"] = layers - 1
    if settings["exponential"] is not None:
        fleet = {"kind": "exponential-layers", "mean": settings["exponential"]}
    tables: dict[str, Any] = {
        "seeds": [seed],
        "training": {"lr": settings["lr"], "local_steps": settings["local_steps"]},
        "data": {"source": settings["data"], "clients": clients, "batch": settings["batch"]},
        "fleet": fleet,
        "model": {"name": settings["model"]},
        "runtime": {"threads": 1},
    }
    rows = None
    if settings["partition"] == "by-speed":
        devices = preset("uniform-depth", **_SLOW).build(clients, seed, layers).devices
        slow = [devices[client].tier == "straggler" for client in range(clients)]
        rows = by_speed(data.y, slow, fold(seed, "partition"))
    else:
        tables["data"]["partition"] = settings["partition"]
    objects = Objects(data=data, partition=rows)
    if settings["exponential"] is None:
        waits = prepare(parse_config({**tables, "algorithms": ["fedavg"]}), objects)
        tables["training"]["deadline"] = waits.config.training.deadline
    else:  # where nobody is fast the unit is free
        tables["training"]["deadline"] = 1.0
    method = {"algorithm": settings["algorithm"], **settings["parameters"]}
    return prepare(parse_config({**tables, "algorithms": {settings["method"]: method}}), objects)


def _most(times: Sequence[float], prepared: Prepared) -> float:
    deadline = prepared.config.training.deadline
    assert isinstance(deadline, float)
    return _MOST_VERSIONS * max(times[-1] / deadline, 1.0)


@lru_cache(maxsize=1)
def _loaded(folder: str, name: str) -> Dataset:
    return load(name if name == "digits" else str(Path(folder) / name))


@lru_cache(maxsize=1)
def split_of(folder: str, name: str, samples: int | None, split: str) -> Dataset:
    """A data set, or so many of its training rows; `validation` never shows the test split.

    Args:
        folder: holds the data sets as folders.
        name: of the data set.
        samples: training rows; all where it is None.
        split: `test`, or `validation`: then a part of the training rows takes the test split's place.
    """
    data = _loaded(folder, name)
    if samples is not None:
        kept = np.sort(generator(0, "samples").permutation(len(data))[:samples])
        data = Dataset(data.name, *_rows(data.x, data.y, kept), data.test_x, data.test_y, data.classes)
    return held_out(data, 0) if split == "validation" else data


def _rows(x: Tensor, y: Tensor, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(rows)
    return x[index], y[index]
