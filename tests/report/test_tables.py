"""Tables in the terminal, in Markdown, as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lanterne.report import Summary, as_json, load_run, markdown, summarise, table


def render(summaries: list[Summary], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(summaries, width, title="runs [demo]"))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Summary]:
    write_run = request.getfixturevalue("write_run")
    path = write_run(tmp_path_factory.mktemp("run"), algorithms=["salf", "drop", "fedavg"], seeds=(1, 2, 3), rounds=20)
    return summarise(load_run(path).cells, [0.5])


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 100, 140, 240])
def test_a_table_fits_its_line_and_cuts_no_number(seeds: list[Summary], demo: Path, width: int) -> None:
    for summaries in (seeds, summarise(load_run(demo).cells, [0.5, 0.95])):
        text = render(summaries, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for entry in summaries:
            assert any(line.startswith(f"{entry['algorithm']} ") for line in text.splitlines())


def test_eighty_columns_hold_what_matters(demo: Path) -> None:
    narrow = render(summarise(load_run(demo).cells), 80)
    for heading in ("accuracy", "fast", "straggler", "time to", "virtual"):
        assert heading in narrow
    assert "not reached" in narrow
    wide = render(summarise(load_run(demo).cells), 140)
    for heading in ("best", "spread", "wasted", "rounds", "bytes to"):
        assert heading not in narrow or heading == "rounds"
        assert heading in wide


def test_both_ends_of_the_classes_stand_together_or_not_at_all(seeds: list[Summary]) -> None:
    for width in range(40, 160):
        text = render(seeds, width)
        assert ("fast" in text) == ("straggler" in text)


def test_marks_are_explained(write_run, tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", algorithms=["salf", "drop"], rounds=5, finished=False)
    (path / "cells" / "drop-seed1" / "result.json").write_text('{"accuracy": null, "diverged": 4}')
    text = render(summarise(load_run(path).cells), 80)
    assert "salf *" in text
    assert "drop !" in text
    assert "* unfinished, up to its last row: salf." in words(text)
    assert "! drop diverged in round 4 (seed 1)." in words(text)


def test_some_of_the_seeds_is_not_a_time(write_run, tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", algorithms=["salf"], seeds=(1, 2), rounds=20)
    rows = path / "cells" / "salf-seed2" / "rows.jsonl"
    rows.write_text("".join(line + "\n" for line in rows.read_text().splitlines()[:3]))
    assert "1 of 2 seeds" in words(markdown(summarise(load_run(path).cells, [0.5])))


def test_markdown_has_every_column_in_every_line(seeds: list[Summary]) -> None:
    text = markdown(seeds)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({line.count(" | ") for line in lines}) == 1
    assert text.endswith("over seeds.\n")
    for heading in ("accuracy %", "worst tenth %", "bytes to 50.0 %", "wasted %"):
        assert heading in lines[0]


def test_json_is_strict_and_round_trips(seeds: list[Summary], write_run, tmp_path: Path) -> None:
    troubled = write_run(tmp_path / "a", algorithms=["salf"], rounds=5, diverges=2)
    for summaries in (seeds, summarise(load_run(troubled).cells), []):
        found = as_json(summaries)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert as_json(seeds)["targets"][0] == 0.5
    assert as_json([])["algorithms"] == []


def test_names_are_text_and_not_markup(write_run, tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", algorithms=["salf:x=[red]"], rounds=1)
    assert "salf:x=[red]" in render(summarise(load_run(path).cells), 80)
