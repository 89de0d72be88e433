"""Cells are computed once, whatever happens to the study."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from studies.harness import cells
from studies.harness.cells import Cell, compute, read

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("endless.py")
spec = importlib.util.spec_from_file_location("endless", PROGRAM)
endless = importlib.util.module_from_spec(spec)
spec.loader.exec_module(endless)


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.json")}


def wait_for(what, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def square(settings):
    return {"square": settings["n"] ** 2}


def broken_at_2(settings):
    if settings["n"] == 2:
        raise ValueError("two")
    return square(settings)


def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    study = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: len(results(tmp_path)) == 3)
    workers = psutil.Process(study.pid).children(recursive=True)
    study.kill()
    study.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # nobody goes on computing
    before = results(tmp_path)
    assert len(before) == 3

    said: list[str] = []
    assert compute(endless.CELLS, partial(endless.work, endless=None), tmp_path, 1, said.append) == {}
    assert before.items() <= results(tmp_path).items()
    assert [read(tmp_path, cell)["square"] for cell in endless.CELLS] == [0, 1, 4, 9]
    assert read(tmp_path, endless.CELLS[3])["process"] == os.getpid()
    [line] = said
    assert line.startswith("[4/4] cell 3: ")
    assert line.endswith(" min left")


def test_a_result_is_one_line_that_says_what_it_is_of(tmp_path: Path) -> None:
    cell = Cell("a cell", {"n": 3})
    compute([cell], square, tmp_path, 1, lambda _: None)
    [path] = tmp_path.iterdir()
    [line] = path.read_text().splitlines()
    found = json.loads(line)
    assert (found["name"], found["settings"], found["result"]) == ("a cell", {"n": 3}, {"square": 9})
    assert set(found["versions"]) == {"lanterne", "torch", "numpy"}


def test_another_plan_has_other_results(tmp_path: Path) -> None:
    compute([Cell("a cell", {"n": 3})], square, tmp_path, 1, lambda _: None)
    assert read(tmp_path, Cell("a cell", {"n": 4})) is None
    assert read(tmp_path, Cell("a cell", {"n": 3})) == {"square": 9}


def test_a_write_that_is_interrupted_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_disk(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(cells.os, "fsync", no_disk)
    cell = Cell("a cell", {"n": 3})
    assert compute([cell], square, tmp_path, 1, lambda _: None) == {"a cell": "OSError: no space"}
    assert read(tmp_path, cell) is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_is_told_and_tried_again(tmp_path: Path, jobs: int) -> None:
    plan = [Cell(f"cell {n}", {"n": n}) for n in range(4)]
    said: list[str] = []
    assert compute(plan, broken_at_2, tmp_path, jobs, said.append) == {"cell 2": "ValueError: two"}
    assert len(results(tmp_path)) == 3
    assert "cell 2 failed: ValueError: two" in said
    assert compute(plan, square, tmp_path, 1, said.append) == {}
    assert read(tmp_path, plan[2]) == {"square": 4}


def test_the_long_ones_come_first_and_the_estimate_follows_them(tmp_path: Path) -> None:
    said: list[str] = []
    plan = [Cell(f"cell {n}", {"n": n}, seconds=n + 1) for n in range(3)]
    compute(plan, square, tmp_path, 1, said.append)
    assert [line.split(": ")[0] for line in said] == ["[1/3] cell 2", "[2/3] cell 1", "[3/3] cell 0"]


def test_results_of_other_sources_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plan = [Cell(f"n {n}", {"n": n}) for n in range(3)]
    compute(plan[:2], square, tmp_path, 1, said.append)
    compute(plan[:2], square, tmp_path, 1, said.append)
    assert not any("other sources" in line for line in said)
    monkeypatch.setattr(cells, "sources", lambda: "later")
    compute(plan, square, tmp_path, 1, said.append)
    assert [line for line in said if "other sources" in line] == [
        f"2 results are of other sources than those that are here: remove them from {tmp_path} to compute anew."
    ]
    assert cells.of_other_sources(tmp_path, plan) == 2
