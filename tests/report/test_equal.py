"""Methods at equal budgets, by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lanterne.errors import ConfigError
from lanterne.report import compare, equal, equal_markdown, equal_table, load_run
from lanterne.report.equal_curves import figure
from lanterne.report.records import CellRecords

DIVERGED = {"diverged": 2}


def cell(
    label: str,
    accuracies: Sequence[float | None],
    pace: float = 1.0,
    *,
    seed: int = 1,
    result: dict[str, Any] | None = None,
    **extra: float,
) -> CellRecords:
    """`pace` seconds, 30 up and 70 down bytes, and 16 samples a round."""
    rows = [
        {
            "round": at,
            "virtual_seconds": pace * at,
            "accuracy": accuracy,
            "bytes_up": 30 * at,
            "bytes_down": 70 * at,
            "samples_trained": 16 * at,
            **extra,
        }
        for at, accuracy in enumerate(accuracies)
    ]
    return CellRecords(label, seed, Path(f"{label}-seed{seed}"), tuple(rows), result)


def means(cells: Sequence[CellRecords], at: Any) -> tuple[list[float], dict[str, list[float | None]]]:
    (entry,) = equal(cells, [at])
    return entry["budgets"], {label: [stat["mean"] for stat in stats] for label, stats in entry["accuracy"].items()}


def test_a_budget_is_what_every_run_has_spent() -> None:
    """The quick one has done eight rounds when the slow one, which is better in each, has done two."""
    quick, slow = cell("quick", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]), cell("slow", [0.0, 0.3, 0.6], 4.0)
    budgets, found = means([quick, slow], "time")
    assert budgets == [2.0, 4.0, 6.0, 8.0]
    assert found == {"quick": [0.2, 0.4, 0.6, 0.8], "slow": [0.0, 0.3, 0.3, 0.6]}
    budgets, found = means([quick, slow], "bytes")
    assert budgets == [50.0, 100.0, 150.0, 200.0]
    assert found == {"quick": [0.0, 0.1, 0.1, 0.2], "slow": [0.0, 0.3, 0.3, 0.6]}
    budgets, found = means([quick, slow], "samples")
    assert budgets == [8.0, 16.0, 24.0, 32.0]
    assert found == {"quick": [0.0, 0.1, 0.1, 0.2], "slow": [0.0, 0.3, 0.3, 0.6]}


def test_all_three_by_default_and_in_one_order() -> None:
    cells = [cell("a", [0.1, 0.2])]
    assert [entry["at"] for entry in equal(cells)] == ["time", "bytes", "samples"]
    assert [entry["at"] for entry in equal(cells, ["samples", "time"])] == ["time", "samples"]


def test_seeds_are_averaged_and_the_last_of_them_sets_the_budget() -> None:
    cells = [cell("a", [0.0, 0.2, 0.4]), cell("a", [0.0, 0.4], seed=2), cell("b", [0.0, 0.1, 0.1], seed=1)]
    (entry,) = equal(cells, ["time"])
    assert entry["budgets"][-1] == 1.0
    assert entry["accuracy"]["a"][-1]["mean"] == pytest.approx(0.3, abs=1e-15)
    assert entry["accuracy"]["a"][-1]["n"] == 2


def test_what_has_diverged_bounds_nothing_and_is_not_averaged_away() -> None:
    cells = [
        cell("a", [0.0, 0.2, 0.4, 0.5, 0.6]),
        cell("b", [0.0, 0.3, None], result=DIVERGED),
        cell("b", [0.0, 0.1, 0.1, 0.1, 0.1], seed=2),
    ]
    budgets, found = means(cells, "time")
    assert budgets == [1.0, 2.0, 3.0, 4.0]
    assert found["b"] == [pytest.approx(0.2), None, None, None]
    assert "| b | 20.0 ± 14.1 | - | - | - |" in equal_markdown(equal(cells, ["time"])[0])


def test_a_run_without_the_column_says_so() -> None:
    """By default the other budgets are still compared; asked for by name it is an error."""
    old = cell("old", [0.0, 0.5])
    old = CellRecords("old", 1, old.path, tuple({**row, "samples_trained": None} for row in old.rows), None)
    time, sent, samples = equal([old, cell("new", [0.0, 0.5])])
    assert time["budgets"]
    assert sent["budgets"]
    assert samples["budgets"] == []
    assert samples["why_not"] is not None
    for word in ("old-seed1", "samples_trained", "again"):
        assert word in samples["why_not"]
        assert word in equal_markdown(samples)
        assert word in str(equal_table(samples))
    with pytest.raises(ConfigError, match=r"old-seed1.*samples_trained"):
        equal([old], ["time", "samples"])


def test_there_is_nothing_to_compare_before_a_round_or_after_everything_diverged() -> None:
    assert "no row after its start" in str(equal([cell("a", [0.1]), cell("b", [0.1, 0.2])])[0]["why_not"])
    assert "diverged" in str(equal([cell("a", [0.1, 0.2, None], result=DIVERGED)])[0]["why_not"])
    assert "no run has a row yet" in str(equal([cell("a", [])])[0]["why_not"])
    assert figure([cell("a", [0.1])]) is None
    with pytest.raises(ConfigError, match="'rounds'"):
        equal([cell("a", [0.1, 0.2])], ["rounds"])  # type: ignore[list-item]


def test_tables_hold_budgets_and_accuracies() -> None:
    (entry,) = equal([cell("a|b", [0.0, 0.2, 0.4, 0.6, 0.8], 60.0)], ["time"])
    assert equal_markdown(entry).splitlines() == [
        "Accuracy % at equal virtual time:",
        "",
        "| algorithm | 60.0 s | 2.00 min | 3.00 min | 4.00 min |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b | 20.0 | 40.0 | 60.0 | 80.0 |",
    ]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(equal_table(entry, 60))
    assert "20.0      40.0      60.0      80.0" in console.export_text()


def test_the_picture_is_drawn_from_what_the_tables_hold(demo: Path) -> None:
    cells = load_run(demo).cells
    made = figure(cells)
    assert made is not None
    assert len(made.axes) == 3
    for axes, entry in zip(made.axes, equal(cells), strict=True):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
        for line, (label, stats) in zip(marks, entry["accuracy"].items(), strict=True):
            assert list(line.get_ydata()) == [100 * (stat["mean"] or 0) for stat in stats], label
        steps = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]
        for line, stats in zip(steps, entry["accuracy"].values(), strict=True):
            assert line.get_ydata()[-1] == pytest.approx(100 * (stats[-1]["mean"] or 0))


def test_compare_brings_them_along(demo: Path) -> None:
    found = compare([demo], at=["bytes"])
    assert [entry["at"] for entry in found["equal"]] == ["bytes"]
    assert list(found["equal"][0]["accuracy"]) == ["salf", "drop", "fedavg", "fedbuff"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
