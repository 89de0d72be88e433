"""A run killed at any moment and resumed gives the same weights, rows and timeline to the bit, wall times excepted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lanterne.errors import ConfigError, RunError
from lanterne.experiment import checkpoint, parse_config, prepare, resume_experiment, run_experiment
from lanterne.rng import uniform
from processes import fork
from run_directories import contents, differences, killed

CONFIG: dict[str, Any] = {
    "rounds": 5,
    "seeds": [3],
    "training": {"lr": 0.1, "momentum": 0.5, "local_steps": 2},
    "data": {"clients": 6, "batch": 8, "partition": "iid"},
    "fleet": {"kind": "stragglers", "share": 0.5, "dropout": 0.1, "rejoin": 0.3},
    "model": {"name": "salf-mlp"},
    "runtime": {"threads": 2},
    "algorithms": {
        "salf": {"keep_momentum": True, "deadline": 0.2},
        "fedavg": {"keep_momentum": True},
        "fedbuff": {"buffer": 2, "keep_momentum": True},
        "scaffold": {},
        "fedopt": {"server": "yogi"},
        "fedasync": {"keep_momentum": True},
        "psl": {},
        "splitfed_v1": {"keep_optimiser": True},
    },
}


@pytest.fixture(scope="module", params=["loop", "batched"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run with each executor."""
    config = {**CONFIG, "runtime": {**CONFIG["runtime"], "executor": request.param}}
    out = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(prepare(parse_config(config)), out)
    return config, out


@pytest.mark.parametrize("n", range(10))
def test_killed_anywhere_and_resumed_is_the_same(whole: tuple[dict[str, Any], Path], n: int, tmp_path: Path) -> None:
    """Ten kill points for each executor, drawn over everything that the run does to its files; some are hit twice."""
    config, expected = whole
    out = tmp_path / "run"
    chance = uniform(7, "kill", config["runtime"]["executor"], n)
    at = 2 + int(chance * 100) if n % 2 else -1 - int(chance * 1500)
    first = fork(killed, out, config, at, directory=tmp_path)
    assert first.status in ((-signal.SIGKILL,) if n % 2 else (-signal.SIGALRM, 0)), first.output
    if not (out / "config.toml").exists():
        # Killed before the experiment was written down: nothing to resume, nothing lost.
        with pytest.raises(ConfigError, match="holds no run"):
            resume_experiment(out)
        shutil.rmtree(out, ignore_errors=True)
        run_experiment(prepare(parse_config(config)), out)
    elif n % 3 == 0:
        again = fork(killed, out, config, 9 if n % 2 else -200, directory=tmp_path)
        assert again.status in (-signal.SIGKILL, -signal.SIGALRM, 0), again.output
    resume_experiment(out)
    assert differences(out, expected) == []
    assert not list(out.rglob("*.partial"))


def test_a_different_seed_would_be_noticed(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config, expected = whole
    run_experiment(prepare(parse_config({**config, "seeds": [4]})), tmp_path / "run")
    other = {k.replace("seed4", "seed3"): v for k, v in contents(tmp_path / "run").items()}
    name = "cells/fedavg-seed3/checkpoint.safetensors"
    assert other[name] != contents(expected)[name]


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(
    whole: tuple[dict[str, Any], Path], threads: int, tmp_path: Path
) -> None:
    config, expected = whole
    run_experiment(
        prepare(parse_config({**config, "runtime": {**config["runtime"], "threads": threads}})), tmp_path / "run"
    )
    found, wanted = contents(tmp_path / "run"), contents(expected)
    del found["config.toml"], wanted["config.toml"]
    assert found == wanted


def test_a_finished_run_resumes_to_itself(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, expected = whole
    shutil.copytree(expected, tmp_path / "run")
    result = resume_experiment(tmp_path / "run")
    assert [r["algorithm"] for r in result["runs"]] == list(CONFIG["algorithms"])
    assert differences(tmp_path / "run", expected) == []


def test_damaged_checkpoints_are_recognised(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, expected = whole
    shutil.copytree(expected, tmp_path / "run")
    cell = tmp_path / "run" / "cells" / "salf-seed3"
    (cell / "result.json").unlink()
    path = cell / "checkpoint.safetensors"
    whole_file = path.read_bytes()
    for damaged in (whole_file[: len(whole_file) // 2], b"", b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged"):
            resume_experiment(tmp_path / "run")
    path.write_bytes(whole_file)
    (cell / "rows.jsonl").write_text("")
    with pytest.raises(RunError, match="shorter than its checkpoint says"):
        resume_experiment(tmp_path / "run")
    shutil.rmtree(cell)
    resume_experiment(tmp_path / "run")
    assert differences(tmp_path / "run", expected) == []


def test_what_is_read_begins_where_every_tensor_begins(tmp_path: Path) -> None:
    """Some processors' products depend on where a tensor begins, so a restored one must not begin anywhere."""
    checkpoint.save(tmp_path / "file", {n: torch.zeros(n) for n in (1, 3, 17, 1001)})
    found = checkpoint.load(tmp_path / "file", {})
    assert [tensor.data_ptr() % 64 for tensor in found.values()] == [0, 0, 0, 0]


def test_a_half_written_file_is_discarded(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, expected = whole
    shutil.copytree(expected, tmp_path / "run")
    cell = tmp_path / "run" / "cells" / "fedbuff-seed3"
    (cell / "result.json").unlink()
    (cell / "checkpoint.partial").write_bytes(b"half")
    with (cell / "rows.jsonl").open("a") as file:
        file.write('{"algorithm": "fedbu')
    resume_experiment(tmp_path / "run")
    assert differences(tmp_path / "run", expected) == []


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes fail after a while, and the message says how to go on; with room again the run ends as if nothing was."""
    expected, out = tmp_path / "expected", tmp_path / "run"
    prepared = prepare(parse_config(CONFIG))
    run_experiment(prepared, expected)
    save, left = checkpoint.save, [7]

    def full(path: Path, tree: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        save(path, tree)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(RunError, match=r"No space left on device.*lanterne resume"):
        run_experiment(prepared, out)
    monkeypatch.undo()
    resume_experiment(out)
    assert differences(out, expected) == []


def test_the_environment_does_not_matter(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Another process, another hash seed, another number of OpenMP threads: the same bits."""
    config, expected = whole
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    program = """
import json, sys
from pathlib import Path
from lanterne.experiment import checkpoint, parse_config, prepare, run_experiment
run_experiment(prepare(parse_config(json.loads(sys.argv[2]))), Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(out), json.dumps(config)], check=True, env=environment)
    assert differences(out, expected) == []
