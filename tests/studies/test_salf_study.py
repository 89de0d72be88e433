"""What the study of SALF promises: its plan, and a page whose tables are those of the committed rows."""

from __future__ import annotations

from pathlib import Path

from lanterne.models.zoo import build
from studies.harness.publish import fill
from studies.salf.__main__ import main, published
from studies.salf.plan import EVERYBODY, FULL, METHODS, NONE, SMALL

FOLDER = Path(__file__).parents[2] / "studies" / "salf"


def test_small_is_a_part_of_full() -> None:
    assert set(SMALL.settings) < set(FULL.settings)
    assert (SMALL.methods, SMALL.seeds, SMALL.grid) == (FULL.methods, FULL.seeds, FULL.grid)


def test_small_keeps_methods_seeds_and_extremes() -> None:
    assert len(SMALL.seeds) == 3
    assert SMALL.methods == METHODS
    for axis in ("data", "partition", "local_steps"):
        small, full = ({getattr(s.problem, axis) for s in plan.settings} for plan in (SMALL, FULL))
        assert small == full
    for plan in (SMALL, FULL):
        assert {0.0, 0.9} <= {s.fleet.share for s in plan.settings}
        assert {True, False} == {s.fleet.finish for s in plan.settings}
    assert {s.problem.model for s in FULL.settings} == {"salf-mlp", "salf-cnn", "vgg11"}
    assert {s.fleet.share for s in FULL.settings if s.problem.data == "mnist"} == {0.0, 0.5, 0.9, 1.0}
    assert EVERYBODY in {s.fleet for s in SMALL.settings}
    # Every problem is run without stragglers, which is what it is compared with, and where it is tuned.
    for plan in (SMALL, FULL):
        for problem in plan.problems:
            fleets = {s.fleet for s in plan.settings if s.problem == problem}
            assert {NONE, problem.tuned_on} <= fleets


def test_what_is_not_computed_is_computed_elsewhere() -> None:
    for setting in FULL.settings:
        for method in METHODS:
            twin = FULL.computed(method, setting.problem, setting.fleet)
            assert twin.same_as(setting.problem, setting.fleet) is None
            # A method and its twin are tuned by the same cells.
            fleet = FULL.tuning_fleet(setting)
            if twin is not method and FULL.computed(method, setting.problem, fleet) is twin:
                files = [[c.file for c in FULL.tuning(setting.problem, fleet, m).values()] for m in (method, twin)]
                assert files[0] == files[1]


def test_methods_are_those_of_the_question() -> None:
    assert {m.algorithm for m in METHODS} == {"fedavg", "drop", "fedprox", "timelyfl", "fedasync", "fedbuff", "salf"}
    assert {m.parameters["rule"] for m in METHODS if m.algorithm == "salf"} == {"paper", "cond", "code", "ht"}


def test_the_models_can_have_stragglers_that_never_finish() -> None:
    for setting in FULL.settings:
        shape = (1, 28, 28) if setting.problem.data == "mnist" else (3, 32, 32)
        assert len(build(setting.problem.model, shape, 10)) >= 3


def test_the_page_has_the_tables_of_the_committed_rows() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert fill(page, published()) == page


def test_the_plan_is_told_without_computing(tmp_path: Path, capsys) -> None:
    assert main(["--plan", "--out", str(tmp_path / "out")]) == 0
    assert "minutes of one core" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
