"""Run directories as the simulator would leave them, from a toy simulator that knows only clocks."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL = 400_000
BATCH = 32
Row = dict[str, Any]


class Fleet:
    """30 clients by default, nine tenths of them `slowdown` times slower than the rest."""

    def __init__(self, clients: int = 30, stragglers: float = 0.9, slowdown: float = 10.0, scale: float = 1.0) -> None:
        slow = round(stragglers * clients)
        self.classes = {c: "straggler" if c >= clients - slow else "fast" for c in range(clients)}
        self.speed = {c: slowdown if name == "straggler" else 1.0 for c, name in self.classes.items()}
        self.scale = scale

    def tiers(self, names: Sequence[str]) -> Fleet:
        """Each of the first clients in a class of its own, all others in the last one."""
        self.classes = {client: names[min(client, len(names) - 1)] for client in self.classes}
        return self

    def times(self, client: int, rng: np.random.Generator) -> tuple[float, float, float]:
        work = self.speed[client] * float(rng.lognormal(0.0, 0.08))
        return 0.15 * self.scale, 1.6 * work * self.scale, 0.3 * self.scale


def _request(at: int, client: int, name: str, start: float, spans: Sequence[float], end: float, outcome: str) -> Row:
    down, work = start + spans[0], start + spans[0] + spans[1]
    return {
        "round": at, "client": client, "class": name, "handler": "train", "sent": start, "start": start,
        "downloaded": min(down, end), "computed": min(work, end), "arrived": end, "outcome": outcome,
        "units": 12 if outcome == "complete" else 5, "of": 12,
    }  # fmt: skip


def _synchronous(kind: str, fleet: Fleet, rounds: int, rng: np.random.Generator) -> Iterator[tuple[float, list[Row]]]:
    now, deadline = 0.0, 2.6 * fleet.scale
    for at in range(1, rounds + 1):
        requests = []
        for client, name in fleet.classes.items():
            down, work, up = fleet.times(client, rng)
            total = down + work + up
            if kind == "fedavg" or total <= deadline:
                requests.append(_request(at, client, name, now, (down, work), now + total, "complete"))
            elif kind == "drop":
                requests.append(_request(at, client, name, now, (down, work), now + deadline, "cancelled"))
            else:
                up *= 0.4
                spans = (down, deadline - down - up)
                requests.append(_request(at, client, name, now, spans, now + deadline, "partial"))
        now = max(r["arrived"] for r in requests)
        yield now, requests


def _buffered(
    fleet: Fleet, rounds: int, rng: np.random.Generator, buffer: int = 10
) -> Iterator[tuple[float, list[Row]]]:
    queue: list[tuple[float, int, int, float, tuple[float, float]]] = []
    now, idle = 0.0, list(fleet.classes)
    for at in range(1, rounds + 1):
        requests: list[Row] = []
        while len(requests) < buffer:
            for client in idle:
                down, work, up = fleet.times(client, rng)
                heapq.heappush(queue, (now + down + work + up, client, at, now, (down, work)))
            now, client, sent_in, begun, spans = heapq.heappop(queue)
            requests.append(_request(sent_in, client, fleet.classes[client], begun, spans, now, "complete"))
            idle = [client]
        yield now, requests


_CURVES = {  # final accuracy of the fast and of the straggler class, rounds to get there
    "fedavg": (0.93, 0.925, 12.0),
    "salf": (0.93, 0.905, 15.0),
    "drop": (0.90, 0.47, 10.0),
    "fedbuff": (0.91, 0.88, 22.0),
}


def write_cell(
    run: Path,
    label: str,
    seed: int,
    fleet: Fleet,
    rounds: int = 60,
    *,
    kind: str | None = None,
    finished: bool = True,
    diverges: int | None = None,
    every: int = 1,
    model: float = MODEL,
) -> Path:
    """One cell: rows, timeline and, if finished, the result."""
    kind = kind or label.partition(":")[0]
    rng = np.random.default_rng([abs(seed), *label.encode()])
    folder = run / "cells" / f"{label}-seed{seed}"
    folder.mkdir(parents=True)
    fast, slow, pace = _CURVES[kind]
    share = sum(name == "fast" for name in fleet.classes.values()) / len(fleet.classes)
    total = {
        "bytes_up": 0,
        "bytes_down": 0,
        "busy_seconds": 0.0,
        "wasted_seconds": 0.0,
        "flops": 0.0,
        "flops_wasted": 0.0,
        "samples_trained": 0,
    }
    rows: list[Row] = []
    timeline: list[Row] = []

    def row(at: int, now: float, requests: list[Row]) -> Row:
        for request in requests:
            spent = request["arrived"] - request["start"]
            total["busy_seconds"] += spent
            total["flops"] += 1e9 * request["units"]
            total["samples_trained"] += BATCH
            total["wasted_seconds"] += spent * (request["outcome"] == "cancelled")
            total["flops_wasted"] += 1e9 * request["units"] * (request["outcome"] == "cancelled")
            total["bytes_down"] += int(model)
            total["bytes_up"] += int(model * {"complete": 1.0, "partial": 0.4}.get(request["outcome"], 0.0))
        gone = diverges is not None and at >= diverges
        way = 1 - math.exp(-at / pace)
        jitter = rng.normal(0, 0.03 * math.exp(-at / 25) + 0.006, 2) * (at > 0)
        by = {
            "fast": 0.1 + (fast - 0.1) * way + jitter[0],
            "straggler": 0.1 + (slow - 0.1) * way + jitter[1],
        }
        mean = None if gone else share * by["fast"] + (1 - share) * by["straggler"]
        replies = dict.fromkeys(("complete", "partial", "refused", "failed", "lost", "cancelled"), 0)
        for request in requests:
            replies[request["outcome"]] += 1
        return {
            "algorithm": label, "seed": seed, "round": at, "virtual_seconds": now, "wall_seconds": 0.02 * at,
            "accuracy": mean, "loss": math.nan if gone else 2.3 * math.exp(-at / pace) + 0.3,
            "accuracy_by_class": None if gone else by,
            "loss_by_class": None if gone else {name: 1 - value for name, value in by.items()},
            "accuracy_worst_tenth": None if gone else max(0.02, by["straggler"] - 0.12),
            "accuracy_spread": None if gone else 0.05 + abs(by["fast"] - by["straggler"]) / 4,
            **total, "bytes": {"model_down": total["bytes_down"], "model_up": total["bytes_up"], "scalar_up": 0},
            "idle_seconds": max(0.0, now * len(fleet.classes) - total["busy_seconds"]), "replies": replies,
            "late": [r["client"] for r in requests if r["outcome"] != "complete"],
        }  # fmt: skip

    rows.append(row(0, 0.0, []))
    events = _buffered(fleet, rounds, rng) if kind == "fedbuff" else _synchronous(kind, fleet, rounds, rng)
    for at, (now, requests) in enumerate(events, start=1):
        timeline += sorted(requests, key=lambda request: (request["arrived"], request["client"]))
        rows.append(row(at, now, requests))
        if diverges is not None and at >= diverges:
            break
    rows = [entry for entry in rows if entry["round"] % every == 0 or entry is rows[-1]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    (folder / "timeline.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in timeline))
    if finished:
        last = {key: value for key, value in rows[-1].items() if key not in ("round", "late", "replies", "loss")}
        best = max((entry["accuracy"] for entry in rows if entry["accuracy"] is not None), default=None)
        result = {**last, "best_accuracy": best, "diverged": diverges, "rounds": rows[-1]["round"]}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_config(run: Path, algorithms: Sequence[str], **settings: object) -> None:
    run.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"algorithms": list(algorithms), **settings}.items()]
    (run / "config.toml").write_text("\n".join(lines) + "\n")
    (run / "cells").mkdir(exist_ok=True)


def write_run(
    run: Path,
    algorithms: Sequence[str] = ("salf", "drop", "fedavg", "fedbuff"),
    seeds: Sequence[int] = (1,),
    fleet: Fleet | None = None,
    rounds: int = 60,
    **options: Any,
) -> Path:
    """A whole run; options go to every cell."""
    fleet = fleet or Fleet()
    write_config(run, algorithms, seeds=list(seeds), rounds=rounds)
    for label in algorithms:
        for seed in seeds:
            write_cell(run, label, seed, fleet, rounds * (3 if label.startswith("fedbuff") else 1), **options)
    return run


@pytest.fixture(scope="session", name="write_run")
def _write_run() -> Callable[..., Path]:
    """Writes a run directory at a path, with the options of `write_run`."""
    return write_run


@pytest.fixture(scope="session", name="write_cell")
def _write_cell() -> Callable[..., Path]:
    """Adds one cell to a run directory, with the options of `write_cell`."""
    return write_cell


@pytest.fixture(scope="session", name="Fleet")
def _fleet() -> type[Fleet]:
    return Fleet


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory below the test's own folder: `make_run("demo", seeds=(1, 2))`."""
    return lambda name="demo", **options: write_run(tmp_path / name, **options)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the README, for tests that only read it."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")
