"""One cell at equal samples: a competitor with one seed until clients have trained on so many epochs of all rows.

Methods whose server passes over late clients, or takes a version from a few of them, need more rounds for the same
samples; so what is counted is the batches that were really trained on. Judged at the same shares of the epochs as all
others, each row with its bytes and its virtual time: curves against any of the three come from one run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lanterne.data import Dataset, Streams
from lanterne.experiment import Objects, Prepared, parse_config, prepare
from lanterne.experiment.evaluate import Judge
from lanterne.experiment.rows import make_row
from lanterne.models import LayerStack
from lanterne.protocol import Algorithm
from lanterne.tree import Shape
from studies.harness.race import split_of

#: A network that a study brings: from the shape of a sample and the number of classes.
Make = Callable[[Shape, int], nn.Sequential]
#: So many times the rounds that everybody's work would need, after which a method is taken to be stuck.
_MOST = 100
#: A share that by rounding is a little short was reached.
_ROUNDING = 1e-9
_LABEL = "method"


class Counted(Streams):
    """Streams that know which batches have been read; one that is read twice counts once."""

    def __init__(self, of: Streams, rows: Sequence[Any]) -> None:
        super().__init__(rows, of.batch, of.seed, of.augment)
        self._read: set[tuple[int, int]] = set()

    def rows(self, client: int, steps: range) -> Any:  # noqa: ANN401 - as the class above
        """The rows of these steps."""
        self._read.update((client, step) for step in steps)
        return super().rows(client, steps)

    @property
    def read(self) -> int:
        """Samples so far."""
        return self.batch * len(self._read)


def learn(settings: Mapping[str, Any], folder: Path, networks: Mapping[str, Make] | None = None) -> dict[str, Any]:
    """Compute a cell.

    Args:
        settings: of `EpochProblem.cell`.
        folder: holds the data sets as folders.
        networks: the study's own, by name; others are the zoo's.

    Returns:
        `rows`, one for each share of `settings["shares"]`; `rounds` done; `limit`, the deadline that the method was
        given, in seconds, or None; `diverged`, the round in which the weights were no longer finite, or None; `seconds`
        of computing.
    """
    begun = time.process_time()
    data = split_of(str(folder), settings["data"], settings["samples"], settings["split"])
    if settings["tests"] is not None:
        data = replace(data, test_x=data.test_x[: settings["tests"]], test_y=data.test_y[: settings["tests"]])
    network = (networks or {}).get(settings["model"])
    limit = None
    if settings["limit"] is not None and settings["fleet_numbers"].get("share"):
        limit = settings["patience"] * _usual(settings, data, network)
    prepared = _prepared(settings, data, network, settings["fleet_numbers"], limit)
    rows, diverged = follow(prepared, settings["seed"], settings["epochs"], settings["shares"])
    return {
        "rows": rows,
        "rounds": rows[-1]["round"],
        "limit": limit,
        "diverged": diverged,
        "seconds": time.process_time() - begun,
    }


def follow(
    prepared: Prepared, seed: int, epochs: float, shares: Sequence[float]
) -> tuple[list[dict[str, Any]], int | None]:
    """Run the one competitor until the last share of its epochs, and judge the first version that has reached each.

    Args:
        prepared: the experiment.
        seed: of the run.
        epochs: samples that clients train on, in training rows.
        shares: of the epochs, ascending; 0 is the untrained model.

    Returns:
        A row for each share, and the round in which the method diverged: then its last row has no accuracy.
    """
    world, executor = prepared.world(seed), prepared.executor()
    streams = Counted(world.streams, world.rows)
    world = replace(world, streams=streams)
    try:
        simulator, judge = prepared.simulator(_LABEL, world, executor, seed), prepared.judge(world, executor)
        algorithm: Algorithm[Any] = prepared.algorithms[_LABEL]
        state: Any = algorithm.init(world.w)
        training, done = prepared.config.training, 0
        asked = len(simulator.fleet) * streams.batch * (training.local_steps or 1)
        most = _MOST * math.ceil(epochs * len(prepared.data) / asked)
        rows: list[dict[str, Any]] = []
        while True:
            reached = streams.read / len(prepared.data)
            due = [share for share in shares[len(rows) :] if share * epochs <= reached + _ROUNDING]
            models = simulator.models(algorithm, state)
            finite = bool(torch.isfinite(models).all())
            judged = judge_all(judge, models) if due and finite else {}
            if not finite or not math.isfinite(judged.get("loss", 0.0)):
                last = make_row(_LABEL, seed, done, simulator, {"accuracy": None}, 0.0)
                return [*rows, {**last, "share": reached / epochs, "epochs_done": reached}], done
            if due:
                row = {**make_row(_LABEL, seed, done, simulator, judged, 0.0), "epochs_done": reached}
                rows += [{**row, "share": share} for share in due]
            if len(rows) == len(shares):
                return rows, None
            if done >= most:
                raise RuntimeError(f"{done} rounds have trained on {reached:.2f} of {epochs} epochs")
            state, done = simulator.round(algorithm, state), done + 1
            simulator.timeline.clear()
    finally:
        executor.close()


def judge_all(judge: Judge, w: Tensor) -> dict[str, float]:
    """The mean accuracy and loss of some models, for the price of one: every row of the test split is for one of them.

    The rows go round: model `m` of `M` has the rows `m, m + M, m + 2M, ...`. That is an estimate of the mean over
    models and rows, as good as what so many rows say of a single model.

    Args:
        judge: has the test split.
        w: `[size]`, or `[models, size]`.
    """
    models = w.reshape(-1, w.shape[-1])[: len(judge.data.test_y)]
    found = {"accuracy": 0.0, "loss": 0.0}
    for m, model in enumerate(models):
        own = slice(m, None, len(models))
        part = replace(judge.data, test_x=judge.data.test_x[own], test_y=judge.data.test_y[own])
        judged = replace(judge, data=part)(model)
        for name in found:
            found[name] += judged[name] * len(part.test_y) / len(judge.data.test_y)
    return found


# --------------------------------------------------------------------------------------------------------- building
def _usual(settings: Mapping[str, Any], data: Dataset, network: Make | None) -> float:
    """What a method waits for in its second round if nobody straggles, in seconds.

    At the cut it is its longest request to a client, for a round all of the round.
    """
    prepared = _prepared(settings, data, network, _nobody(settings["fleet_numbers"]), None)
    world, executor = prepared.world(settings["seed"]), prepared.executor()
    try:
        simulator = prepared.simulator(_LABEL, world, executor, settings["seed"])
        algorithm: Algorithm[Any] = prepared.algorithms[_LABEL]
        state = simulator.round(algorithm, algorithm.init(world.w))
        simulator.timeline.clear()
        begun = simulator.now
        simulator.round(algorithm, state)
        if settings["limit"] == "round_deadline":
            return simulator.now - begun
        return max(float(r["arrived"] - r["sent"]) for r in simulator.timeline if r["class"] != "server")
    finally:
        executor.close()


def _nobody(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The same devices, none of which straggles."""
    return {"kind": "uniform", **{k: v for k, v in numbers.items() if k not in ("kind", "share", "slowdown", "load")}}


def _prepared(
    settings: Mapping[str, Any], data: Dataset, network: Make | None, numbers: Mapping[str, Any], limit: float | None
) -> Prepared:
    method = {"algorithm": settings["algorithm"], **settings["parameters"]}
    if limit is not None:
        method[settings["limit"]] = limit
    tables: dict[str, Any] = {
        "seeds": [settings["seed"]],
        "training": {"lr": settings["lr"], "local_steps": settings["local_steps"]},
        "data": {
            "source": settings["data"],
            "clients": settings["clients"],
            "batch": settings["batch"],
            "partition": settings["partition"],
        },
        "fleet": dict(numbers),
        "runtime": {"threads": 1, "executor": "loop"},
        "algorithms": {_LABEL: method},
    }
    if network is None:
        return prepare(parse_config({**tables, "model": {"name": settings["model"]}}), Objects(data=data))
    with torch.device("meta"):  # without weights: those are drawn from the seed
        stack = LayerStack(network(data.sample_shape, data.classes), data.sample_shape)
    return prepare(parse_config(tables), Objects(data=data, model=stack))
