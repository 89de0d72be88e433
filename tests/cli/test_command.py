"""The command as a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lanterne.cli import main

LANTERNE = [sys.executable, "-m", "lanterne"]
SLOW = {"torch", "numpy", "sklearn", "pyarrow", "matplotlib", "datasets", "flwr_datasets", "pydantic", "tomlkit"}


def lanterne(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LANTERNE, *words], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("words", ["--help", "run --help", "resume -h", "compare -h", "plot -h", "list -h"])
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    assert "Usage: lanterne" in captured.out
    assert captured.err == ""


def test_without_a_verb_there_is_help_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: lanterne" in capsys.readouterr().out


def test_version() -> None:
    found = lanterne("--version")
    assert found.returncode == 0
    assert found.stdout.startswith("lanterne 0.")
    assert found.stderr == ""


def test_help_imports_nothing_slow() -> None:
    code = "import sys; from lanterne.cli import main; main(['run', '--help']); print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    # Some versions of typer import pydantic themselves.
    assert set(found.stderr.split()) & SLOW <= {"pydantic"}


def test_a_real_race(tmp_path: Path) -> None:
    words = shlex.split("run salf drop --rounds 2 --clients 10 --model salf-mlp --out race --format json")
    found = lanterne(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    runs = json.loads(found.stdout)["runs"]
    assert [run["algorithm"] for run in runs] == ["salf", "drop"]
    assert (tmp_path / "race/config.toml").is_file()
    repeat = shlex.split("run race/config.toml --out again --format json --no-plots --quiet")
    again = lanterne(*repeat, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr == ""
    for one, other in zip(runs, json.loads(again.stdout)["runs"], strict=True):
        assert {**one, "wall_seconds": 0} == {**other, "wall_seconds": 0}
    refused = lanterne(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: race exists")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run slaf", "Did you mean 'salf'"),
        ("run salf --data mnist", "mnist"),
        ("run salf --partition dirichle:1", "Did you mean 'dirichlet'"),
        ("run salf --fleet none.csv", "none.csv"),
        ("run salf --deadline 1e-9", "Nobody"),
        ("run salf --clients 100000", "100000"),
    ],
)
def test_real_mistakes(words: str, said: str, lanterne_command: Callable[..., Any], tmp_path: Path) -> None:
    found = lanterne_command(*words.split())
    assert found.status == 2
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert said in found.err
    assert list(tmp_path.iterdir()) == []


def test_control_c_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    words = ["run", "salf", "--rounds", "300", "--clients", "5", "--model", "salf-mlp", "--out", "race", "--no-plots"]
    # Where a shell has started the tests in the background, they and their children ignore Ctrl-C.
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = [sys.executable, "-c", f"{listen}from lanterne.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*program, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    rows = tmp_path / "race/cells/salf-seed1/rows.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.is_file() and rows.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("error: Interrupted.")
    assert "lanterne resume race" in err
    resumed = lanterne("resume", "race", "--format", "json", "--no-plots", "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["runs"][0]["rounds"] == 300
    assert len(rows.read_text().splitlines()) == 301


def test_a_reader_who_leaves_early_hears_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        found = subprocess.run([*LANTERNE, "list"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(write)
    assert found.stderr == ""


def test_the_end_of_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [*LANTERNE, "list", "--format", "json"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert found.returncode == 1
    assert found.stderr.startswith("error: No space left")
