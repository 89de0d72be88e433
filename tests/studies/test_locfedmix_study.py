"""What the study of LocFedMix-SL promises: its plan, its tables, and a page whose tables are of the committed rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.parquet_files import write
from lanterne.algorithms import ALGORITHMS
from lanterne.experiment.parameters import parameters_of
from lanterne.models import LayerStack
from studies.harness import study
from studies.harness.plan import Plan, Setting
from studies.harness.publish import fill, read_rows
from studies.locfedmix import __main__ as command
from studies.locfedmix import results
from studies.locfedmix.plan import (
    ABLATED,
    FULL,
    FULL_ABLATION,
    LOCFEDMIX,
    METHODS,
    QUARTER,
    SHARES,
    SMALL,
    SMALL_ABLATION,
    UNIFORM,
    Competitor,
    EpochProblem,
    small_cnn,
)

FOLDER = Path(__file__).parents[2] / "studies" / "locfedmix"


# ------------------------------------------------------------------------------------------------------------- plan
def test_small_is_a_part_of_full() -> None:
    for small, full in ((SMALL, FULL), (SMALL_ABLATION, FULL_ABLATION)):
        assert set(small.settings) < set(full.settings)
        assert (small.methods, small.seeds, small.grid) == (full.methods, full.seeds, full.grid)


def test_small_keeps_methods_seeds_and_extremes() -> None:
    assert len(SMALL.seeds) == 3
    assert {m.label for m in METHODS} == {
        "locfedmix_sl", "sl", "psl", "splitfed_v1", "splitfed_v2", "locsplitfed", "cse_fsl", "fsl_sage", "sglr", "gas",
        "fedavg",
    }  # fmt: skip
    for data in ("mnist", "cifar10"):
        own = [s for s in SMALL.settings if s.problem.data == data]
        assert {(s.problem.partition, s.problem.clients) for s in own if s.fleet is UNIFORM} == {
            (p, n) for p in ("iid", "dirichlet:0.1") for n in (4, 40)
        }
        assert {s.problem.clients for s in own if s.fleet is QUARTER} == {4, 40}
    assert {s.problem.clients for s in FULL.settings} == {4, 10, 20, 40}
    assert {s.fleet for s in FULL.settings} == {UNIFORM, QUARTER}
    # Each problem is run where nobody straggles: there it is tuned, and from there is its target.
    for plan in (SMALL, FULL):
        for problem in plan.problems:
            assert Setting(problem, UNIFORM) in plan.settings
            assert plan.tuning_fleet(Setting(problem, QUARTER)) is UNIFORM


def test_the_counts_of_small() -> None:
    assert len(SMALL.settings) == 12
    assert len(list(SMALL.wanted())) * len(SMALL.seeds) == 12 * 11 * 3
    known = sum(method.known for method in METHODS)
    assert len(study.tuning_cells(SMALL)) == 8 * known * 5
    assert len(list(SMALL_ABLATION.wanted())) * 3 == 2 * 4 * 3


def test_the_same_cells_where_the_clients_are_4_or_40_but_for_the_split_of_the_rows() -> None:
    for setting in SMALL.settings:
        assert (setting.problem.batch, setting.problem.local_steps) == (10, 5)
    assert len({(s.problem.data, s.problem.samples, s.problem.model) for s in SMALL.settings}) == 2


def test_the_ablation_takes_away_one_ingredient_each() -> None:
    base = dict(LOCFEDMIX.parameters)
    changed = [{k: v for k, v in m.parameters.items() if base.get(k) != v} for m in ABLATED]
    assert changed == [{}, {"partners": 0}, {"gamma": 0.0}, {"average_every": 0}]
    assert {m.algorithm for m in ABLATED} == {LOCFEDMIX.algorithm}
    # Its own cells are those of the race.
    for setting in SMALL_ABLATION.settings:
        assert setting in SMALL.settings
        files = [plan.final(setting, LOCFEDMIX, 1, 0.1).file for plan in (SMALL, SMALL_ABLATION)]
        assert files[0] == files[1]


@pytest.mark.parametrize("method", [*METHODS, *ABLATED[1:]], ids=lambda method: method.label)
def test_every_method_has_what_it_is_given(method: Competitor) -> None:
    if not method.known:
        pytest.skip(f"this version of lanterne has no algorithm {method.algorithm}")
    there = parameters_of(ALGORITHMS[method.algorithm])
    assert {*method.parameters, *([method.limit] if method.limit else [])} <= set(there)
    # Whoever could stop waiting has a limit, the same rule for all.
    could = {"cut_deadline", "round_deadline"} & set(there)
    assert not could or method.limit in could
    assert "cut_deadline" not in could or method.limit == "cut_deadline"


def test_the_small_cnn_is_as_its_page_says() -> None:
    stack = LayerStack(small_cnn((3, 32, 32), 10), (3, 32, 32))
    assert stack.size == 3_962
    assert stack.forward is not None
    assert small_cnn((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# ----------------------------------------------------------------------------------------------------------- tables
def row(method: str, seed: int, share: float, accuracy: float | None, *, clients: int = 4, slow: float = 1.0, **more):
    shared = {
        "split": "test", "problem": f"p{clients}", "fleet": UNIFORM.name, "method": method, "lr": 0.1, "seed": seed,
        "data": "d", "samples": None, "model": "m", "partition": "iid", "clients": clients, "epochs": 10,
        "diverged": None if accuracy is not None else 3, "chosen": 0.1,
    }  # fmt: skip
    costs = {"epochs_done": 10 * share, "virtual_seconds": 100 * share * slow, "bytes": int(2e6 * share)}
    return {**shared, **costs, "share": share, "accuracy": accuracy, **more}


def runs(method: str, accuracies, **more):
    shares = (0.0, 0.25, 0.5, 0.8, 1.0)
    return [row(method, s, share, a, **more) for s in (1, 2) for share, a in zip(shares, accuracies, strict=True)]


def test_accuracy_at_equal_time_is_of_the_version_that_was_there() -> None:
    quick, slow = runs("psl", (0.1, 0.3, 0.5, 0.6, 0.7)), runs("sl", (0.1, 0.4, 0.8, 0.8, 0.9), slow=3.0)
    assert results.first_end(quick + slow, "virtual_seconds") == 100
    assert results.after(quick, 100, "virtual_seconds").mean == 0.7
    assert results.after(slow, 100, "virtual_seconds").mean == 0.4  # 75 s; the next is at 150 s
    assert results.after(slow, 2e6, "bytes").mean == 0.9
    assert results.first(slow, 0.75, "virtual_seconds").mean == 150
    assert results.first(slow, 0.95, "virtual_seconds").known == 0


def test_a_run_that_diverged_ends_nothing_and_is_counted() -> None:
    lost = [row("gas", 1, 0.0, 0.1), row("gas", 1, 0.1, None)]
    assert results.first_end(lost + runs("psl", (0.1,) * 5), "virtual_seconds") == 100
    assert results.after(lost, 100, "virtual_seconds").known == 0
    assert results.ended(lost) == {}


def test_scalability_is_many_minus_few_seed_by_seed() -> None:
    few = [row("psl", s, 1.0, 0.8 + 0.1 * s) for s in (1, 2)]
    many = [row("psl", s, 1.0, 0.7 + 0.1 * s, clients=40) for s in (1, 2)]
    text = results.scalability(few + many)
    assert text.splitlines()[-1] == "| psl | **-10.0 ± 0.0** |"
    assert results.scalability(few) == ""


def test_the_claims_are_differences_and_ratios() -> None:
    every = runs("fedavg", (0.1, 0.5, 0.8, 0.8, 0.8)) + runs("locfedmix_sl", (0.1, 0.6, 0.9, 0.9, 0.9))
    every += runs("sl", (0.1, 0.5, 0.7, 0.8, 0.8), slow=4.0) + runs("splitfed_v1", (0.1, 0.2, 0.3, 0.4, 0.4))
    line = results.claims(every).splitlines()[-1]
    # The target is 95 % of 80 %; LocFedMix-SL is there after 50 s, SL after 320 s.
    assert line == ("| p4, no stragglers | **+10.0 ± 0.0** | **+50.0 ± 0.0** |  |  | 6.40 | only it is there |  |  |")


def test_points_say_when_they_are_more_than_noise() -> None:
    assert results.points(results.difference({1: 0.5}, {1: 0.4})) == "+10.0"
    assert results.points(results.difference({1: 0.5}, {2: 0.4})) == ""
    assert results.points(results.difference({1: 0.5, 2: 0.4}, {1: 0.4, 2: 0.4})) == "+5.0 ± 5.0"


# ----------------------------------------------------------------------------------------------------- end to end
@pytest.fixture
def folder(tmp_path):
    """Two data sets on disk, of which a class is a bright corner."""
    g = np.random.default_rng(0)
    for name, shape in (("mnist", (8, 8)), ("cifar10", (8, 8, 3))):
        (tmp_path / name).mkdir()
        for split, rows in (("train", 120), ("test", 40)):
            labels = np.arange(rows) % 4
            images = g.integers(0, 120, (rows, *shape), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 120
            write(tmp_path / name / f"{split}.parquet", image=images, label=labels.tolist())
    return tmp_path


def tiny(data: str, model: str, clients: int) -> EpochProblem:
    return EpochProblem(data, model, "iid", clients, 8, samples=100, tests=30, batch=5, local_steps=2)


def test_a_study_from_its_data_to_its_page(folder, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    settings = (
        *(Setting(tiny("mnist", "mlp:widths=16-8", n), f) for n in (4, 40) for f in (UNIFORM, QUARTER)),
        Setting(tiny("cifar10", "small-cnn", 4), UNIFORM),
    )
    methods = tuple(m for m in METHODS if m.label in ("psl", "locsplitfed", "fedavg"))
    # What stands for the ablation here has the algorithm that every version has.
    own = replace(methods[0], label=ABLATED[1].label)
    methods = (*methods, replace(METHODS[0], algorithm="no-such"))
    plans = (
        Plan(settings, methods, seeds=(1, 2), grid=(0.03, 0.3)),
        Plan(settings[:1], (own,), seeds=(1, 2), grid=(0.03, 0.3)),
    )
    monkeypatch.setattr(command, "SIZES", {"small": plans, "full": plans})
    out = tmp_path / "out"
    arguments = ["--data", str(folder), "--out", str(out), "--jobs", "1"]
    assert command.main(arguments) == 0
    report = out / "report"
    rows = read_rows(report / "rows.parquet")
    test = [r for r in rows if r["split"] == "test"]
    assert len(test) == len(SHARES) * 2 * (5 * 3 + 1)
    assert len([r for r in rows if r["split"] == "validation"]) == 3 * 2 * (3 * 3 + 1)
    page = (report / "README.md").read_text()
    assert fill(page, results.written(rows)) == page  # from the rows alone
    assert "Not run yet" not in page.split("begin claims")[0]
    assert {path.name for path in (report / "pictures").iterdir()} == {
        "mnist-mlp-widths-16-8-no-stragglers.png", "mnist-mlp-widths-16-8-25-stragglers.png",
        "cifar10-small-cnn-no-stragglers.png", "scalability.png", "ablation.png",
    }  # fmt: skip
    assert "this version has no algorithm 'no-such'" in (report / "not_run.md").read_text()
    # It learns, and what is late is passed over.
    ends = {(r["problem"], r["method"]): r["accuracy"] for r in test if r["share"] == 1.0 and r["clients"] == 4}
    assert min(ends.values()) > 0.5
    limits = {(r["method"], r["fleet"]): r["limit"] for r in test}
    assert limits["psl", QUARTER.name]
    assert limits["locsplitfed", QUARTER.name]
    assert limits["fedavg", QUARTER.name] is limits["psl", UNIFORM.name] is None
    # Again: nothing is computed anew.
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert command.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before
    capsys.readouterr()


def test_the_page_has_the_tables_of_the_committed_rows() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert fill(page, command.published()) == page


def test_the_plan_is_told_without_computing(tmp_path: Path, capsys) -> None:
    assert command.main(["--plan", "--out", str(tmp_path / "out")]) == 0
    assert "minutes of one core" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
