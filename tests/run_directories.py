"""Runs that are killed, and what a run has left, to be compared to the bit."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lanterne.experiment import parse_config, prepare, resume_experiment, run_experiment


def contents(out: Path) -> dict[str, Any]:
    """Everything that a run has left, without wall times."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.suffix in (".json", ".jsonl") and path.name != "origin.json":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in r.items() if k != "wall_seconds"} for r in records]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[name] = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
        elif path.name != "origin.json":
            found[name] = path.read_text()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs differ, by name: what they hold is too long for a message."""
    here, there = contents(one), contents(other)
    found = sorted(here.keys() ^ there.keys())
    for name in sorted(here.keys() & there.keys()):
        a, b = here[name], there[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}: {key}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            found += [f"{name}, line {n}: {x} and {y}" for n, (x, y) in enumerate(zip(a, b, strict=True), 1) if x != y]
        elif a != b:
            found.append(name)
    return found


def killed(out: Path, config: Mapping[str, Any], at: int) -> None:
    """Run an experiment, or go on with it, and end this process without any warning, be it in the middle of a write.

    Args:
        out: its directory.
        config: of the experiment.
        at: at which thing that it does to a file; or, negative, after how many milliseconds.
    """
    again = out.exists()
    prepared = None if again else prepare(parse_config(config))
    left = [at]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[0], str | os.PathLike) and str(out) in str(arguments[0])
        if opens or event in ("os.rename", "os.truncate"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if at < 0:
        signal.setitimer(signal.ITIMER_REAL, -at / 1000)
    else:
        sys.addaudithook(count)
    if prepared is None:
        resume_experiment(out)
    else:
        run_experiment(prepared, out)
