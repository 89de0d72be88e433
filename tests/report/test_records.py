"""Reading run directories: whole, half-written, damaged, foreign."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanterne.errors import ConfigError
from lanterne.report.records import load_run, load_runs, number


def test_a_run_is_read_whole(demo: Path) -> None:
    run = load_run(demo)
    assert run.name == "demo"
    assert run.settings["rounds"] == 60
    assert [(cell.label, cell.seed, cell.finished, cell.diverged) for cell in run.cells] == [
        ("salf", 1, True, None),
        ("drop", 1, True, None),
        ("fedavg", 1, True, None),
        ("fedbuff", 1, True, None),
    ]
    salf = run.cells[0]
    assert [row["round"] for row in salf.rows] == list(range(61))
    records = list(salf.timeline())
    assert len(records) == 60 * 30
    assert {record["outcome"] for record in records} == {"complete", "partial"}


def test_cells_stand_in_the_order_of_the_config_then_by_seed(make_run) -> None:
    labels = ["fedbuff", "salf:rule=cond,cap=4", "drop", "salf"]
    run = load_run(make_run(algorithms=labels, seeds=(10, 2, -1), rounds=1))
    assert [(cell.label, cell.seed) for cell in run.cells] == [(name, seed) for name in labels for seed in (-1, 2, 10)]


def test_a_label_that_the_config_does_not_name_comes_last(make_run) -> None:
    path = make_run(algorithms=["salf", "drop"], rounds=1)
    (path / "config.toml").write_text('[race]\nalgorithms = ["salf"]\n')
    assert [cell.label for cell in load_run(path).cells] == ["salf", "drop"]


def test_a_cell_before_its_first_row_is_there_and_empty(make_run) -> None:
    path = make_run(algorithms=["salf", "drop"], rounds=1)
    folder = path / "cells" / "drop-seed1"
    shutil.rmtree(folder)
    folder.mkdir()
    cell = load_run(path).cells[1]
    assert (cell.rows, cell.result, cell.finished, list(cell.timeline())) == ((), None, False, [])


def test_half_a_line_at_the_end_is_ignored(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=2)
    folder = path / "cells" / "salf-seed1"
    for name in ("rows.jsonl", "timeline.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"round": 3, "accu')
    (folder / "result.json").write_text('{"algorithm": "sa')
    cell = load_run(path).cells[0]
    assert len(cell.rows) == 3
    assert len(list(cell.timeline())) == 60
    assert not cell.finished


@given(data=st.data())
def test_a_file_cut_anywhere_gives_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = [{"round": at, "virtual_seconds": 0.5 * at, "accuracy": 0.1, "note": "é"} for at in range(4)]
    whole = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("run")
    (path / "config.toml").write_text("")
    folder = path / "cells" / "salf-seed1"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(whole[:cut])
    found = load_run(path).cells[0].rows
    assert list(found) == rows[: len(found)]
    assert len(found) - whole[:cut].count(b"\n") in (0, 1)


@pytest.mark.parametrize("line", ["{half", "12", '{"round": 1}', "", "\0\0\0\0"])
@pytest.mark.parametrize("name", ["rows.jsonl", "timeline.jsonl"])
def test_damage_further_up_is_refused_with_its_place_and_the_repair(make_run, name: str, line: str) -> None:
    path = make_run(algorithms=["salf"], rounds=2)
    file = path / "cells" / "salf-seed1" / name
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(ConfigError, match=rf"{name} is damaged: line 2 .*resume the run") as caught:
        list(load_run(path).cells[0].timeline())
    assert "salf-seed1" in str(caught.value)


def test_a_result_that_is_no_object_is_refused(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=1)
    (path / "cells" / "salf-seed1" / "result.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"result\.json is damaged.*Delete it"):
        load_run(path)


def test_what_is_no_run_directory_is_told_apart(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "There is no run directory .*nowhere",
        tmp_path / "file": "it is a file",
        tmp_path / "empty": r"config\.toml and cells/ is missing|config\.toml and cells/",
        demo / "cells" / "salf-seed1": "it is one cell of a run. Name the run itself: demo",
        demo.parent: r"it holds 1 of them\. Name one, as in .*demo",
    }
    for path, told in cases.items():
        with pytest.raises(ConfigError, match=told):
            load_run(path)


def test_a_damaged_config_is_refused(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=1)
    for text in ("rounds = ", "\x00"):
        (path / "config.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.toml is damaged"):
            load_run(path)
    (path / "config.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"config\.toml is damaged"):
        load_run(path)


def test_a_folder_that_is_no_cell_is_refused_unless_hidden(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=1)
    (path / "cells" / ".partial").mkdir()
    (path / "cells" / "notes.txt").write_text("")
    assert len(load_run(path).cells) == 1
    (path / "cells" / "salf-old").mkdir()
    with pytest.raises(ConfigError, match=r"salf-old is not a cell.*Move it out"):
        load_run(path)


def test_a_run_without_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "cells").mkdir()
    with pytest.raises(ConfigError, match="holds no cell yet"):
        load_run(tmp_path)


def test_several_runs_are_distinct_and_at_least_one(demo: Path) -> None:
    assert [run.name for run in load_runs([demo])] == ["demo"]
    with pytest.raises(ConfigError, match="named twice"):
        load_runs([demo, demo / ".." / "demo"])
    with pytest.raises(ConfigError, match="No run directory was named"):
        load_runs([])


@pytest.mark.parametrize("value", [None, "0.5", True, math.nan, math.inf, [1.0], {}])
def test_what_is_no_finite_number_is_not_known(value: object) -> None:
    assert math.isnan(number({"accuracy": value}, "accuracy"))
    assert math.isnan(number({}, "accuracy"))
