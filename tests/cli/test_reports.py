"""`lanterne compare` and `lanterne plot`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def runs(lanterne_command: Command, experiment: Any) -> None:
    for name, rounds in (("a", 2), ("b", 3)):
        words = ["run", "salf", "drop", "--rounds", rounds, "--out", name, "--no-plots", "--quiet"]
        assert lanterne_command(*words).status == 0


@pytest.mark.usefixtures("runs")
def test_compare_as_table_json_and_markdown(lanterne_command: Command) -> None:
    table = lanterne_command("compare", "a", "b", "--target", 0.5, "--target", 0.6)
    assert table.status == 0
    assert "a/salf" in table.out
    assert "50.0 %" in table.out
    assert "rounds: 2 in a, 3 in b" in table.out
    found = json.loads(lanterne_command("compare", "a", "b", "--target", 0.5, "--format", "json").out)
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert 0.5 in found["targets"]
    assert found["plots"] == []
    text = lanterne_command("compare", "a", "b", "--format", "markdown").out
    assert text.startswith("| algorithm |")
    assert "| b/drop |" in text


@pytest.mark.usefixtures("runs")
def test_compare_at_equal_budgets(lanterne_command: Command) -> None:
    """All three by default; one where it is asked for; a run of an earlier version is told apart from a bad wish."""
    table = lanterne_command("compare", "a", "b").out
    heads = [f"Accuracy % at equal {name}" for name in ("virtual time", "bytes sent, up and down", "samples trained")]
    assert [line for line in map(str.strip, table.splitlines()) if line in heads] == heads
    found = json.loads(lanterne_command("compare", "a", "b", "--at", "samples", "--format", "json").out)["equal"]
    assert [(entry["at"], entry["why_not"]) for entry in found] == [("samples", None)]
    assert list(found[0]["accuracy"]) == ["a/salf", "a/drop", "b/salf", "b/drop"]
    text = lanterne_command("compare", "a", "b", "--at", "time", "--format", "markdown").out
    assert text.count("Accuracy % at equal") == 1
    for rows in Path("a").rglob("rows.jsonl"):
        rows.write_text(rows.read_text().replace('"samples_trained"', '"other"'))
    old = lanterne_command("compare", "a", "b")
    assert old.status == 0
    assert "rows without samples_trained" in " ".join(old.out.split())
    refused = lanterne_command("compare", "a", "b", "--at", "samples")
    assert (refused.status, refused.out) == (2, "")
    assert "samples_trained" in refused.err


@pytest.mark.usefixtures("runs")
def test_compare_draws_when_asked(lanterne_command: Command) -> None:
    found = json.loads(lanterne_command("compare", "a", "b", "--out", "pictures", "--format", "json").out)
    assert found["plots"]
    assert all(Path(path).parent == Path("pictures") and Path(path).is_file() for path in found["plots"])


@pytest.mark.usefixtures("runs")
def test_plot(lanterne_command: Command) -> None:
    outcome = lanterne_command("plot", "a")
    assert outcome.status == 0
    assert "a/plots/accuracy.png" in outcome.out.splitlines()
    words = ["plot", "a", "--out", "there", "--as", "svg", "--as", "pdf", "--format", "json"]
    found = json.loads(lanterne_command(*words).out)
    assert found["run"] == "a"
    assert {Path(path).suffix for path in found["plots"]} == {".svg", ".pdf"}
    assert all(Path(path).parent == Path("there") and Path(path).is_file() for path in found["plots"])


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "nowhere"], "nowhere"),
        (["compare", "a", "a"], "twice"),
        (["compare", "a", "--target", "80"], "0.8"),
        (["compare", "a", "--target", "much"], "--target"),
        (["compare", "a", "--format", "html"], "markdown"),
        (["compare", "a", "--at", "rounds"], "samples"),
        (["plot", "nowhere"], "nowhere"),
        (["plot", "a", "--as", "gif"], "png"),
        (["plot", "a", "--format", "markdown"], "json"),
    ],
)
def test_mistakes(lanterne_command: Command, words: list[str], said: str) -> None:
    outcome = lanterne_command(*words)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err


@pytest.mark.usefixtures("runs")
def test_pictures_that_cannot_be_written_have_status_1(lanterne_command: Command) -> None:
    Path("taken").write_text("")
    outcome = lanterne_command("plot", "a", "--out", "taken/here")
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
