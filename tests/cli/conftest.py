"""The command line with an experiment that costs nothing, and leaves a run directory like a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import lanterne.experiment
from lanterne.cli import main
from lanterne.experiment.config import Config, read_config, to_toml


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@dataclass
class Experiment:
    """Stands in for `prepare`, `run_experiment` and `resume_experiment`."""

    configs: list[Config] = field(default_factory=list)
    tuned: list[bool] = field(default_factory=list)
    trouble: dict[int, BaseException] = field(default_factory=dict)  # by round, raised before its row is written
    diverges: int | None = None
    unheard: list[str] = field(default_factory=list)

    def prepare(self, config: Config) -> Any:
        self.configs.append(config)
        return type("Prepared", (), {"config": config, "unheard": self.unheard})

    def run(self, prepared: Any, out: Path, listener: Any, *, tune: bool = False) -> dict[str, Any]:
        self.tuned.append(tune)
        (out / "cells").mkdir(parents=True)
        (out / "config.toml").write_text(to_toml(prepared.config))
        return self.go(prepared.config, out, listener)

    def resume(self, out: Path, listener: Any) -> dict[str, Any]:
        return self.go(read_config(out / "config.toml"), out, listener)

    def go(self, config: Config, out: Path, listener: Any) -> dict[str, Any]:
        cells = [(seed, label) for seed in config.seeds for label in config.algorithms]
        return {"out": str(out), "runs": [self.cell(config, out, listener, *cell) for cell in cells]}

    def cell(self, config: Config, out: Path, listener: Any, seed: int, label: str) -> dict[str, Any]:
        folder = out / "cells" / f"{label}-seed{seed}"
        folder.mkdir(exist_ok=True)
        rows = folder / "rows.jsonl"
        done = len(rows.read_text().splitlines()) if rows.exists() else 0
        listener.begin(label, seed, max(done - 1, 0), config.rounds)
        row: dict[str, Any] = {}
        for at in range(done, config.rounds + 1):
            if at in self.trouble:
                raise self.trouble.pop(at)
            gone = self.diverges is not None and at >= self.diverges
            row = {
                "algorithm": label, "seed": seed, "round": at, "virtual_seconds": 0.5 * at, "wall_seconds": 0.1 * at,
                "accuracy": None if gone else at / (at + 1), "loss": None if gone else 1 / (at + 1),
                "bytes_up": 10 * at, "bytes_down": 20 * at, "bytes": {"model_up": 10 * at, "model_down": 20 * at},
                "samples_trained": 8 * at,
                "replies": {"complete": 2, "partial": 9}, "late": list(range(9)) if at else [],
            }  # fmt: skip
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            listener.row(row)
            if gone:
                break
        kept = {key: value for key, value in row.items() if key not in ("round", "replies", "late")}
        result = {**kept, "rounds": row["round"], "best_accuracy": 0.5, "diverged": self.diverges}
        (folder / "result.json").write_text(json.dumps(result))
        listener.end(result)
        return {**result, "loss": float("nan")} if self.diverges is not None else result


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """What the verbs talk to instead of the real experiment."""
    fake = Experiment()
    monkeypatch.setattr(lanterne.experiment, "prepare", lambda config: fake.prepare(config))
    monkeypatch.setattr(lanterne.experiment, "run_experiment", lambda *args, **options: fake.run(*args, **options))
    monkeypatch.setattr(lanterne.experiment, "resume_experiment", lambda *args, **_: fake.resume(*args))
    return fake


@pytest.fixture
def lanterne_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """`lanterne_command("run", "salf")` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def command(*words: object) -> Outcome:
        status = main([str(word) for word in words])
        return Outcome(status, *capsys.readouterr())

    return command
