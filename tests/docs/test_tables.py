"""The pages' tables say what the code says: hyperparameters, columns of a run directory and of a fleet file, tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lanterne.algorithms import ALGORITHMS
from lanterne.experiment import parse_config, prepare, run_experiment
from lanterne.experiment.parameters import parameters_of
from lanterne.fleet import Device
from lanterne.split import SplitMethod

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "algorithms").glob("*.md"))


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, cell by cell, code marks left out."""
    _, found, rest = (DOCS / page).read_text().partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    lines = re.search(r"(?:^\|.*\n)+", rest.partition("\n## ")[0], re.MULTILINE)
    assert lines, f"{page} has no table under {heading!r}"
    rows = [[cell.strip().replace("`", "") for cell in line.strip("| ").split("|")] for line in lines[0].splitlines()]
    return rows[2:]


def default(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_page_lists_the_hyperparameters_of_its_algorithm(name: str) -> None:
    documented = [(row[0], row[2]) for row in table(f"algorithms/{name}.md", "Hyperparameters")]
    assert documented == [(key, default(each.default)) for key, each in parameters_of(ALGORITHMS[name]).items()]


def test_every_algorithm_has_a_page_and_a_line() -> None:
    assert {page.stem for page in PAGES} == {*ALGORITHMS, "index"}
    assert set(re.findall(r"^\| \[`(\w+)`\]", (DOCS / "algorithms/index.md").read_text(), re.MULTILINE)) == {
        *ALGORITHMS
    }


def test_every_page_of_an_algorithm_has_the_same_headings() -> None:
    headings = {
        page.stem: re.findall("^## (.*)", page.read_text(), re.MULTILINE) for page in PAGES if page.stem != "index"
    }
    assert len({tuple(found) for found in headings.values()}) == 1, headings


@pytest.mark.parametrize("name", sorted(name for name, kind in ALGORITHMS.items() if issubclass(kind, SplitMethod)))
def test_the_page_of_a_split_method_says_how_near_it_is_to_the_paper(name: str) -> None:
    """One label of three, under the citation; what is ambiguous names its choices, a port its code."""
    above = (DOCS / "algorithms" / f"{name}.md").read_text().partition("\n## ")[0]
    labels = re.findall(r"^Fidelity: (.*)$", above, re.MULTILINE)
    assert len(labels) == 1
    assert re.fullmatch(r"`paper-exact`\.|`paper-ambiguous` \(.+\)\.|`port` of .+\.", labels[0]), labels[0]
    assert set(re.findall(r"`(\w+)`", labels[0])) - {"port"} <= set(parameters_of(ALGORITHMS[name]))


def test_the_tests_that_pages_name_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named
    assert named - there == set()


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = {"algorithms": ["salf"], "rounds": 1, "data": {"clients": 2}, "model": {"name": "salf-mlp"}}
    out = tmp_path_factory.mktemp("run") / "run"
    run_experiment(prepare(parse_config(experiment)), out)
    return out / "cells" / "salf-seed1"


@pytest.mark.parametrize("file", ["rows.jsonl", "timeline.jsonl", "clients.jsonl"])
def test_the_columns_of_a_run_directory_are_documented(cell: Path, file: str) -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in (cell / file).read_text().splitlines()]
    documented = [row[0] for row in table("run_directory.md", file)]
    assert all(list(record) == documented for record in records), (documented, list(records[0]))


def test_the_result_of_a_cell_is_documented(cell: Path) -> None:
    result = json.loads((cell / "result.json").read_text())
    row = [row[0] for row in table("run_directory.md", "rows.jsonl")]
    added = [row[0] for row in table("run_directory.md", "result.json")]
    assert list(result) == [name for name in row if name not in ("round", "replies", "late")] + added


def test_the_columns_of_a_fleet_file_are_documented() -> None:
    documented = {name.strip() for row in table("bring_your_own.md", "Fleet") for name in row[0].split(",")}
    assert documented == set(Device.__dataclass_fields__) - {"pace"}
