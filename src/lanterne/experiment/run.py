"""Running an experiment: cell by cell, a checkpoint after each round, after a kill to the bit where it was."""

from __future__ import annotations

import json
import math
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from lanterne.errors import ConfigError, RunError
from lanterne.experiment import checkpoint
from lanterne.experiment.build import Objects, Prepared, prepare
from lanterne.experiment.config import Config, read_config, to_toml
from lanterne.experiment.origin import check_versions, describe, located, note_versions, read_origin, write_origin
from lanterne.experiment.rows import make_clients, make_result, make_row
from lanterne.experiment.tune import tune_executor
from lanterne.runtime import one_thread, restore, snapshot

_RESULT = "result.json"


class Listener(Protocol):
    """Who wants to hear how a run goes."""

    def begin(self, label: str, seed: int, first_round: int, rounds: int) -> None:
        """A competitor with a seed begins, or goes on after `first_round` rounds."""

    def row(self, row: dict[str, Any]) -> None:
        """A row was written."""

    def end(self, result: dict[str, Any]) -> None:
        """A competitor with a seed is finished."""


class Silence:
    """A listener that does nothing."""

    def begin(self, label: str, seed: int, first_round: int, rounds: int) -> None:
        """Nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def end(self, result: dict[str, Any]) -> None:
        """Nothing."""


def run_experiment(
    prepared: Prepared, out: Path, listener: Listener | None = None, *, tune: bool = False
) -> dict[str, Any]:
    """Run every competitor with every seed into a fresh directory.

    Args:
        prepared: from `prepare`.
        out: the run directory; it must not exist, or be empty.
        listener: hears how it goes.
        tune: time both executors and keep the faster instead of following the rule.

    Returns:
        `{"out": ..., "runs": [one object per competitor and seed]}`.

    Raises:
        ConfigError: for a directory that holds something.
        RunError: if the machine fails; what was finished is safe.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already. Continue it with 'lanterne resume {out}', or give another directory.")
    origin = describe(prepared.config, prepared.objects, out)
    with one_thread():
        if tune:
            prepared = tune_executor(prepared)
        with _disk(out):
            (out / "cells").mkdir(parents=True)
            write_origin(out, origin)
            checkpoint.write_text(out / "config.toml", to_toml(prepared.config))
            return _run_cells(prepared, out, listener or Silence())


def resume_experiment(
    out: Path,
    listener: Listener | None = None,
    objects: Objects | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Go on with a run that was interrupted, to the bit where it would have been; from any directory.

    Args:
        out: its directory, wherever it is now.
        listener: hears how it goes.
        objects: what the user brought when it began; must be brought again.
        warn: is told where bits may be others than they would have been.

    Returns:
        What `run_experiment` returns.

    Raises:
        ConfigError: for a directory that holds no run; for one that was begun with objects that are missing now, with
            another lanterne, or from files that have changed.
    """
    objects, origin = objects or Objects(), read_origin(out)
    config = read_config(out / "config.toml", origin["objects"])
    if all((folder / _RESULT).is_file() for _, _, folder in _cells(config, out)):
        return {"out": str(out), "runs": [json.loads((f / _RESULT).read_text()) for _, _, f in _cells(config, out)]}
    missing = set(origin["objects"]) - set(objects.given)
    if missing:
        raise ConfigError(
            f"{out} was begun from Python with an own {', '.join(sorted(missing))}. "
            f"Resume it with lanterne.resume({str(out)!r}, ...) and bring it again."
        )
    config = located(config, origin, out, objects)
    different = check_versions(origin, out)
    if different:
        warn(different)
    prepared = prepare(config, objects)
    with one_thread(), _disk(out):
        note_versions(origin, out)
        for partial in out.rglob("*.partial"):
            partial.unlink()
        return _run_cells(prepared, out, listener or Silence())


def _cells(config: Config, out: Path) -> list[tuple[str, int, Path]]:
    """Every competitor with every seed, and where it is."""
    return [
        (label, seed, out / "cells" / f"{label}-seed{seed}") for seed in config.seeds for label in config.algorithms
    ]


def _run_cells(prepared: Prepared, out: Path, listener: Listener) -> dict[str, Any]:
    runs = []
    for label, seed, folder in _cells(prepared.config, out):
        if (folder / _RESULT).is_file():
            runs.append(json.loads((folder / _RESULT).read_text()))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        runs.append(_Cell(prepared, label, seed, folder).run(listener))
    return {"out": str(out), "runs": runs}


class _Cell:
    """One competitor with one seed: where its files are, and how far it is."""

    def __init__(self, prepared: Prepared, label: str, seed: int, folder: Path) -> None:
        self.prepared, self.label, self.seed, self.folder = prepared, label, seed, folder
        self.algorithm = prepared.algorithms[label]
        self.checkpoint = folder / "checkpoint.safetensors"
        self.rows, self.timeline = folder / "rows.jsonl", folder / "timeline.jsonl"

    def run(self, listener: Listener) -> dict[str, Any]:
        """Run it to its end, from its start or from its last checkpoint."""
        world = self.prepared.world(self.seed)
        executor = self.prepared.executor()
        try:
            simulator = self.prepared.simulator(self.label, world, executor, self.seed)
            judge = self.prepared.judge(world, executor)
            state: Any = self.algorithm.init(world.w)
            done, wall, best, last = 0, 0.0, -math.inf, None
            if self.checkpoint.is_file():
                saved = checkpoint.load(
                    self.checkpoint, checkpoint.state_classes(state), self.prepared.config.runtime.device
                )
                state, done, wall, best, last = (saved[k] for k in ("state", "round", "wall", "best", "last"))
                restore(simulator, saved["simulator"])
                _truncate(self.rows, saved["rows"])
                _truncate(self.timeline, saved["timeline"])
            else:
                _truncate(self.rows, 0)
                _truncate(self.timeline, 0)
            rounds = self.prepared.config.rounds
            listener.begin(self.label, self.seed, done, rounds)
            diverged = None
            if last is None:
                last = make_row(self.label, self.seed, 0, simulator, judge(world.w), wall)
                best = last["accuracy"]
                _append(self.rows, [last])
                listener.row(last)
            while done < rounds and diverged is None:
                begun = time.perf_counter()
                state = simulator.round(self.algorithm, state)
                done += 1
                w = simulator.models(self.algorithm, state)
                due = done % self.prepared.config.evaluate_every == 0 or done == rounds
                judged = judge(w) if due or not bool(torch.isfinite(w).all()) else None
                wall += time.perf_counter() - begun
                _append(self.timeline, simulator.timeline)
                if judged is not None:
                    if not (math.isfinite(judged["loss"]) and bool(torch.isfinite(w).all())):
                        diverged = done
                        judged = _nothing(judged)
                    last = make_row(self.label, self.seed, done, simulator, judged, wall)
                    best = max(best, last["accuracy"]) if last["accuracy"] is not None else best
                    _append(self.rows, [last])
                    listener.row(last)
                simulator.timeline.clear()
                if diverged is None:
                    saved = {"state": state, "round": done, "wall": wall, "best": best, "last": last}
                    saved["simulator"] = snapshot(simulator)
                    saved |= {"rows": self.rows.stat().st_size, "timeline": self.timeline.stat().st_size}
                    checkpoint.save(self.checkpoint, saved)
            _append(self.timeline, simulator.clock.under_way())
            costs = "".join(json.dumps(record) + "\n" for record in make_clients(simulator))
            checkpoint.write_text(self.folder / "clients.jsonl", costs)
            result = make_result(last, best, diverged, done)
            checkpoint.write_text(self.folder / _RESULT, json.dumps(result, allow_nan=False) + "\n")
            listener.end(result)
            return result
        finally:
            executor.close()


def _nothing(judged: dict[str, Any]) -> dict[str, Any]:
    """The columns of a model that has diverged: no number of it means anything."""
    return {k: dict.fromkeys(v) if isinstance(v, dict) else None for k, v in judged.items()}


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _truncate(path: Path, size: int) -> None:
    path.touch()
    if path.stat().st_size < size:
        raise RunError(
            f"{path} is shorter than its checkpoint says. Delete {path.parent} to run this part again from its start."
        )
    with path.open("rb+") as file:
        file.truncate(size)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Say of a failing disk what is safe and how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"Writing to {out} failed: {error.strerror or error}. Every finished round is safe; "
            f"go on with 'lanterne resume {shlex.quote(str(out))}'."
        ) from error
