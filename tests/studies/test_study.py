"""A whole study on a tiny problem: tuning, final cells, what is published; interrupted and gone on with."""

from __future__ import annotations

import re

import pytest

from studies.harness import study
from studies.harness.cells import read
from studies.harness.plan import TIMES, Method, Plan, Setting, StragglerFleet, TimedProblem
from studies.harness.publish import collect, fill, read_rows
from studies.harness.tune import scores

NONE, MOST = StragglerFleet("none", 0.0), StragglerFleet("80 %", 0.8)
PROBLEM = TimedProblem("digits", "salf-mlp", "iid", 60, MOST, clients=5, batch=8)
METHODS = (
    Method("fedavg", "fedavg"),
    Method("salf", "salf", without_stragglers="fedavg"),
    Method("future", "no-such"),
)
PLAN = Plan((Setting(PROBLEM, NONE), Setting(PROBLEM, MOST)), METHODS, seeds=(1, 2), grid=(1e-4, 0.5))
#: FedAvg on both fleets, SALF where somebody straggles: each tuned with two rates, and run with two seeds.
CELLS = 3 * 2 + 3 * 2


class StopError(Exception):
    pass


def timeless(out) -> dict:
    """Every result but for the seconds that it took."""
    found = {}
    for cell in [*study.tuning_cells(PLAN), *study.final_cells(PLAN, out)]:
        result = read(out, cell)
        found[cell.name] = None if result is None else {k: v for k, v in result.items() if k != "seconds"}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert study.run(PLAN, out, out / "cells", 1, lambda _: None) == {}
    return out


def test_every_cell_is_computed(whole) -> None:
    found = timeless(whole / "cells")
    assert len(found) == CELLS
    assert all(found.values())


@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupted_study_goes_on_to_the_same_end(whole, tmp_path, after: int) -> None:
    heard: list[str] = []

    def stop(line: str) -> None:
        heard.append(line)
        if sum(" min left" in each for each in heard) == after:
            raise StopError

    with pytest.raises(StopError):
        study.run(PLAN, tmp_path, tmp_path, 1, stop)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert len(before) == after
    assert study.run(PLAN, tmp_path, tmp_path, 1, heard.append) == {}
    assert all(path.read_bytes() == line for path, line in before.items())
    assert timeless(tmp_path) == timeless(whole / "cells")


def test_every_method_gets_the_whole_grid_and_its_best(whole) -> None:
    for method in METHODS[:2]:
        for fleet in (NONE, MOST):
            known = scores(PLAN, PROBLEM, fleet, method, whole / "cells")
            assert set(known) == set(PLAN.grid)
            assert known[0.5] > known[1e-4] + 0.2
    assert {cell.settings["lr"] for cell in study.final_cells(PLAN, whole / "cells")} == {0.5}
    assert {cell.settings["split"] for cell in study.tuning_cells(PLAN)} == {"validation"}
    assert {cell.settings["split"] for cell in study.final_cells(PLAN, whole / "cells")} == {"test"}


def test_a_wrong_choice_would_be_seen_in_the_final_cells(whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "choose", min)
    wrong = study.final_cells(PLAN, whole / "cells")
    assert {cell.settings["lr"] for cell in wrong} == {1e-4}
    assert all(read(whole / "cells", cell) is None for cell in wrong)  # no result of another rate is taken for theirs


def test_a_rate_is_chosen_only_from_a_whole_grid(whole, tmp_path) -> None:
    [first, *_] = study.tuning_cells(PLAN)
    (tmp_path / first.file).write_bytes((whole / "cells" / first.file).read_bytes())
    assert scores(PLAN, PROBLEM, NONE, METHODS[0], tmp_path) is None
    assert study.final_cells(PLAN, tmp_path) == []


def test_what_is_published(whole, tmp_path) -> None:
    collected = collect(PLAN, whole / "cells", {(PROBLEM.name, MOST.name): "for want of time"})
    tables = study.publish(tmp_path, collected, PLAN, NONE.name)
    rows = read_rows(tmp_path / "rows.parquet")
    assert study.tables(rows, PLAN, NONE.name) == tables  # from the rows alone
    assert len([row for row in rows if row["split"] == "test"]) == 6 * len(TIMES)
    assert "| salf |  | = fedavg |  |  | 0.5 | " in tables["accuracy"]
    assert re.search(r"\| salf \| \d+\.\d \| \*\*\d+\.\d\*\* \(edge\) \|", tables["choices"])
    assert "| digits, salf-mlp, iid | 60 |" in tables["settled"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["digits-salf-mlp-iid-80.png"]
    missing = (tmp_path / "not_run.md").read_text()
    assert "| digits, salf-mlp, iid | 80 % | future | this version has no algorithm 'no-such' | 1, 2 | 2 |" in missing
    assert "salf" not in missing.replace("salf-mlp", "")


def test_what_is_not_there_is_said(tmp_path) -> None:
    collected = collect(PLAN, tmp_path, {(PROBLEM.name, MOST.name): "for want of time"})
    tables = study.publish(tmp_path, collected, PLAN, NONE.name)
    assert set(tables.values()) == {""}
    missing = (tmp_path / "not_run.md").read_text()
    assert "| digits, salf-mlp, iid | none | fedavg | not computed | 1, 2 | 2 |" in missing
    assert "| digits, salf-mlp, iid | 80 % | fedavg, salf | for want of time | 1, 2 | 4 |" in missing
    assert not (tmp_path / "rows.parquet").exists()


def test_data_that_is_not_there_is_left_out(tmp_path) -> None:
    problem = TimedProblem("mnist", "salf-mlp", "iid", 3, MOST)
    said: list[str] = []
    assert study.run(Plan((Setting(problem, MOST),), METHODS), tmp_path, tmp_path / "cells", 1, said.append) == {}
    [line] = said
    assert line.startswith("tuning: 10 cells need ")  # of FedAvg and of SALF


def test_only_some_cells(tmp_path) -> None:
    study.run(PLAN, tmp_path, tmp_path, 1, lambda _: None, lambda cell: "fedavg" in cell.name)
    assert {key for key, found in timeless(tmp_path).items() if found} == {
        key for key in timeless(tmp_path) if "fedavg" in key
    }


def test_a_page_is_filled() -> None:
    page = "a\n<!-- begin x, written by the study -->\nold\n<!-- end x -->\nb\n"
    once = fill(page, {"x": "| 1 |\n"})
    assert once == "a\n<!-- begin x, written by the study -->\n| 1 |\n<!-- end x -->\nb\n"
    assert fill(once, {"x": "| 1 |\n"}) == once
    assert "Not run yet." in fill(once, {"x": ""})
    with pytest.raises(ValueError, match="no place for the table 'y'"):
        fill(page, {"y": ""})
