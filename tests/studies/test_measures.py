"""Numbers and tables from rows that are written by hand."""

from __future__ import annotations

import math

import pytest

from studies.harness import measures, tables
from studies.harness.measures import at, at_the_end, deadlines_to, movement, target_of

SHARES = (0.1, 0.25, 0.5, 0.8, 0.9, 1.0)


def rows(seed: int, accuracies, **more):
    diverged = 7 if None in accuracies else None
    shared = {
        "split": "test", "problem": "p", "fleet": "f", "method": "m", "lr": 0.1, "deadlines": 100, "deadline": 0.5,
        "diverged": diverged, "partition": "iid", "fast": None, "straggler": None, "worst_tenth": None,
    }  # fmt: skip
    return [
        {**shared, "seed": seed, "share": share, "virtual_seconds": share * 50, "accuracy": accuracy, **more}
        for share, accuracy in zip(SHARES, accuracies, strict=False)
    ]


RISING = rows(1, (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)) + rows(2, (0.1, 0.3, 0.5, 0.6, 0.7, 0.8))
LOST = rows(3, (0.2, 0.4, None))


def test_accuracy_at_equal_time() -> None:
    assert at(RISING, 0.25).mean == pytest.approx(0.35)
    assert at_the_end(RISING).mean == pytest.approx(0.75)
    assert at_the_end(RISING).deviation == pytest.approx(0.1 / math.sqrt(2))


def test_a_diverged_seed_is_counted_and_not_averaged() -> None:
    end = at_the_end(RISING + LOST)
    assert (end.mean, end.known, end.seeds) == (pytest.approx(0.75), 2, 3)
    assert tables.percent(end) == "75.0 ± 7.1, 1 of 3 diverged"
    late = rows(4, (0.2, 0.4, 0.6, 0.8, None))
    assert at_the_end(RISING + late).known == at_the_end(RISING).known == 2
    assert at(RISING + LOST, 0.1).known == 3
    assert at(RISING + LOST, 0.9).known == 2


def test_time_to_a_target_is_the_first_judgement_that_has_it() -> None:
    assert deadlines_to(RISING, 0.6).mean == pytest.approx((50 + 80) / 2)
    only_one = deadlines_to(RISING, 0.85)
    assert (only_one.mean, only_one.known, only_one.seeds) == (100.0, 1, 2)
    assert deadlines_to(RISING, 0.95).known == 0


def test_the_target_is_of_fedavg_without_stragglers() -> None:
    assert target_of(RISING) == 0.712  # 95 % of 75 %, rounded down
    assert math.isnan(target_of([]))


def test_movement_is_the_median_slope_of_the_last_fifth() -> None:
    assert movement(RISING).mean == pytest.approx(0.2)
    assert movement(rows(1, (0.0, 0.0, 0.0, 0.9, 0.7, 0.9))).mean == pytest.approx(0.0)
    late = tuple(0.8 + 0.02 * i for i in range(11))
    own = [{"seed": 1, "share": share, "accuracy": 0.5 + 0.1 * share} for share in late]
    own[0]["accuracy"] = 0.2  # a straight line by least squares would rise by 0.11
    assert movement(own).mean == pytest.approx(0.02)


def of(method: str, fleet: str, accuracies, **more):
    return [r for seed in (1, 2) for r in rows(seed, accuracies, method=method, fleet=fleet, **more)]


def test_the_table_of_accuracy() -> None:
    flat = (0.2, 0.5, 0.8, 0.8, 0.8, 0.8)
    every = of("fedavg", "none", flat) + of("fedavg", "90 %", (0.1, 0.2, 0.3, 0.4, 0.4, 0.4))
    every += of("salf", "90 %", flat, lr=0.3)
    same = {("p", "none", "salf"): "fedavg", ("p", "90 %", "cond"): "salf", ("q", "none", "cond"): "salf"}
    assert tables.accuracy(every, "none", same) == (
        "**p**\n\n"
        "| method | none: learning rate | end % | at a quarter % | deadlines to 76.0 % "
        "| 90 %: learning rate | end % | at a quarter % | deadlines to 76.0 % |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| fedavg | 0.1 | 80.0 ± 0.0 | 50.0 ± 0.0 | 50 | 0.1 | 40.0 ± 0.0 | 20.0 ± 0.0 | never |\n"
        "| salf |  | = fedavg |  |  | 0.3 | 80.0 ± 0.0 | 50.0 ± 0.0 | 50 |\n"
        "| cond |  |  |  |  |  | = salf |  |  |\n"
    )


def test_the_table_of_what_has_settled() -> None:
    every = of("fedavg", "none", (0.2, 0.5, 0.8, 0.8, 0.801, 0.802)) + of("salf", "none", (0, 0, 0, 0.1, 0.2, 0.3))
    [line] = tables.settled(every, "none").splitlines()[2:]
    assert line == "| p | 100 | 80.1 ± 0.0 | +0.20 ± 0.00 | yes |"
    assert tables.settled(of("fedavg", "none", (0, 0, 0, 0.8, 0.81, 0.82)), "none").endswith("| no |\n")
    alone = rows(1, (0, 0, 0, 0.8, 0.8, 0.8), method="fedavg", fleet="none")
    assert "nan" not in tables.settled(alone, "none")
    assert tables.settled(alone, "none").endswith("| unknown |\n")
    unlike = rows(1, (0, 0, 0, 0.8, 0.81, 0.82), method="fedavg", fleet="none")
    unlike += rows(2, (0, 0, 0, 0.82, 0.81, 0.8), method="fedavg", fleet="none")
    # One rises and one falls: that is no proof of rest.
    assert tables.settled(unlike, "none").endswith("| +0.00 ± 2.00 | within its error |\n")


def test_the_table_of_choices() -> None:
    grid = [
        row
        for lr, accuracies in ((0.1, (0, 0, 0, 0.5, 0.5, 0.5)), (0.3, (0, 0, 0, 0.7, 0.7, 0.7)), (1.0, (0, None)))
        for row in rows(1, accuracies, lr=lr, chosen=0.3)
    ]
    assert tables.choices(grid).splitlines()[-1] == "| m | 50.0 | **70.0** | diverged |"
    edge = [row | {"chosen": 0.1} for row in grid]
    assert tables.choices(edge).splitlines()[-1] == "| m | **50.0** (edge) | 70.0 | diverged |"


def test_the_table_of_classes_has_settings_with_stragglers_only() -> None:
    every = of("salf", "none", (0.5,) * 6, fast=0.5) + of(
        "salf", "90 %", (0.5,) * 6, fast=0.9, straggler=0.1, worst_tenth=0.05
    )
    [line] = tables.classes(every).splitlines()[2:]
    assert line == "| p | 90 % | salf | 50.0 ± 0.0 | 90.0 ± 0.0 | 10.0 ± 0.0 | 5.0 ± 0.0 |"


def test_spread_without_a_known_value() -> None:
    assert measures.Spread.of([math.nan]).known == 0
    assert tables.percent(measures.Spread.of([math.nan])) == "diverged"
    assert tables.percent(measures.Spread.of([])) == ""
