"""Summaries, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lanterne.errors import ConfigError
from lanterne.report.records import CellRecords, load_run
from lanterne.report.summary import default_target, summarise


def cell(
    label: str,
    accuracies: Sequence[float | None],
    *,
    seed: int = 1,
    result: dict[str, Any] | None = None,
    replies: dict[str, int] | None = None,
    **last: Any,
) -> CellRecords:
    """Ten seconds and 100 + 10 bytes a round."""
    rows = [
        {
            "round": at,
            "virtual_seconds": 10.0 * at,
            "accuracy": accuracy,
            "bytes_down": 100 * at,
            "bytes_up": 10 * at,
            "replies": replies or {"complete": 2},
        }
        for at, accuracy in enumerate(accuracies)
    ]
    if rows:
        rows[-1] |= last
    return CellRecords(label, seed, Path(f"{label}-seed{seed}"), tuple(rows), result)


def test_one_seed_has_a_mean_and_no_deviation() -> None:
    (entry,) = summarise([cell("salf", [0.1, 0.9, 0.8], busy_seconds=8.0, wasted_seconds=2.0, idle_seconds=24.0)])
    assert entry["accuracy"] == {"mean": 0.8, "std": None, "n": 1}
    assert entry["best_accuracy"]["mean"] == 0.9
    assert entry["rounds"]["mean"] == 2
    assert entry["virtual_seconds"]["mean"] == 20.0
    assert entry["bytes"]["mean"] == 220
    assert entry["wasted_share"]["mean"] == 0.25
    assert entry["idle_share"]["mean"] == 0.75
    assert entry["unfinished"] == [1]


def test_seeds_have_the_deviation_of_a_sample() -> None:
    cells = [cell("salf", [0.1, last], seed=seed, accuracy_by_class={"slow": last - 0.1}) for seed, last in
             enumerate([0.5, 0.6, 0.7])]  # fmt: skip
    (entry,) = summarise(cells)
    assert entry["seeds"] == [0, 1, 2]
    assert entry["accuracy"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1), "n": 3}
    assert entry["accuracy_by_class"]["slow"] == {"mean": pytest.approx(0.5), "std": pytest.approx(0.1), "n": 3}


def test_a_target_is_reached_in_the_first_row_that_has_it() -> None:
    (entry,) = summarise([cell("salf", [0.1, 0.3, 0.5, 0.4, 0.6])], [0.5])
    (target,) = [found for found in entry["targets"] if found["accuracy"] == 0.5]
    assert (target["reached"], target["seeds"]) == (1, 1)
    assert target["virtual_seconds"]["mean"] == 20.0
    assert target["bytes"]["mean"] == 220
    assert target["rounds"]["mean"] == 2


def test_a_target_that_was_not_reached_has_no_time() -> None:
    cells = [cell("salf", [0.1, 0.6]), cell("salf", [0.1, 0.4], seed=2), cell("drop", [0.1, 0.2])]
    salf, drop = summarise(cells, [0.5])
    both = {entry["algorithm"]: next(t for t in entry["targets"] if t["accuracy"] == 0.5) for entry in (salf, drop)}
    assert (both["salf"]["reached"], both["salf"]["seeds"]) == (1, 2)
    assert both["drop"]["reached"] == 0
    nothing = {"mean": None, "std": None, "n": 0}
    assert all(found[key] == nothing for found in both.values() for key in ("virtual_seconds", "bytes", "rounds"))


def test_the_default_target_is_nine_tenths_of_the_best_that_waits() -> None:
    waiting = [cell("fedavg", [0.1, 0.8]), cell("fedbuff", [0.1, 0.7, 0.6])]
    cutting = [cell("salf", [0.1, 0.99], replies={"partial": 3}), cell("drop", [0.1, 0.95], replies={"cancelled": 1})]
    assert default_target([*cutting, *waiting]) == 0.72
    assert default_target(cutting) == pytest.approx(0.891)
    assert default_target([cell("fedavg", [0.1, 0.7777])]) == 0.699
    assert default_target([cell("fedavg", [None])]) is None
    assert default_target([]) is None


def test_targets_are_sorted_and_distinct() -> None:
    (entry,) = summarise([cell("fedavg", [0.1, 0.8])], [0.9, 0.72, 0.2])
    assert [target["accuracy"] for target in entry["targets"]] == [0.2, 0.72, 0.9]


@pytest.mark.parametrize(("target", "told"), [(90, "Write 0.9 for 90 %"), (-0.1, "between 0 and 1"), (math.nan, "nan")])
def test_a_target_that_is_no_accuracy_is_refused(target: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        summarise([cell("fedavg", [0.1])], [target])


def test_a_diverged_seed_is_named_and_not_averaged() -> None:
    gone = cell("salf", [0.1, 0.3, None], seed=2, result={"accuracy": None, "diverged": 2, "best_accuracy": 0.3})
    (entry,) = summarise([cell("salf", [0.1, 0.5, 0.6]), gone])
    assert entry["accuracy"] == {"mean": 0.6, "std": None, "n": 1}
    assert entry["diverged"] == {2: 2}
    assert entry["unfinished"] == [1]


def test_the_result_counts_over_the_last_row() -> None:
    (entry,) = summarise([cell("salf", [0.1, 0.5], result={"accuracy": 0.55, "rounds": 7, "diverged": None})])
    assert entry["accuracy"]["mean"] == 0.55
    assert entry["rounds"]["mean"] == 7


def test_a_cell_without_rows_is_all_unknown() -> None:
    (entry,) = summarise([cell("salf", [])])
    assert entry["accuracy"] == {"mean": None, "std": None, "n": 0}
    assert entry["replies"] == {}
    assert entry["targets"] == []
    assert summarise([]) == []


def test_replies_are_shares_over_all_rows() -> None:
    (entry,) = summarise([cell("salf", [0.1, 0.2], replies={"complete": 1, "partial": 3})])
    assert entry["replies"] == {"complete": 0.25, "partial": 0.75}


def test_the_demo_says_what_dropping_does_to_whom(demo: Path) -> None:
    entries = {entry["algorithm"]: entry for entry in summarise(load_run(demo).cells)}
    drop, salf = entries["drop"], entries["salf"]
    assert drop["accuracy_by_class"]["fast"]["mean"] > 0.8 > 0.6 > drop["accuracy_by_class"]["straggler"]["mean"]
    assert drop["wasted_share"]["mean"] > 0.8
    assert salf["wasted_share"]["mean"] == 0.0
    assert [entries[name]["targets"][0]["reached"] for name in ("salf", "drop", "fedavg")] == [1, 0, 1]
