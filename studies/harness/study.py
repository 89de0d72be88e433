"""A race study from its plan to its folder: tuning, then the final cells, then what is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.harness.cells import Cell, Say, Work, compute
from studies.harness.plan import Fleet, Plan, Problem
from studies.harness.publish import Collected, not_run, pictures, write_rows
from studies.harness.race import race
from studies.harness.tables import accuracy, choices, classes, settled
from studies.harness.tune import choose, scores

Wanted = Callable[[Cell], bool]


def tuning_cells(plan: Plan) -> list[Cell]:
    """All cells from which learning rates are chosen, of methods that this version has."""
    methods = [method for method in plan.methods if method.known]
    every = [
        cell
        for problem, fleet in plan.tuned
        for method in methods
        for cell in plan.tuning(problem, fleet, method).values()
    ]
    return list({cell.file: cell for cell in every}.values())  # of methods that are one there, one


def final_cells(plan: Plan, out: Path) -> list[Cell]:
    """The cells of the tables whose learning rate has been chosen.

    Args:
        plan: what is wanted.
        out: the folder of results.
    """
    found = []
    rates: dict[tuple[Problem, Fleet, str], float | None] = {}
    for setting, method in plan.wanted():
        fleet = plan.tuning_fleet(setting)
        key = setting.problem, fleet, method.label
        if key not in rates:
            known = scores(plan, setting.problem, fleet, method, out) if method.known else None
            rates[key] = None if known is None else choose(known)
        lr = rates[key]
        if lr is not None:
            found += [plan.final(setting, method, seed, lr) for seed in plan.seeds]
    return found


def expected_seconds(*plans: Plan) -> float:
    """About how long some plans compute together, on one core; a cell of several counts once."""
    cells = [cell for plan in plans for cell in tuning_cells(plan)]
    cells += [
        plan.final(setting, method, seed, plan.grid[0])
        for plan in plans
        for setting, method in plan.wanted()
        if method.known
        for seed in plan.seeds
    ]
    return sum(cell.seconds for cell in {cell.file: cell for cell in cells}.values())


def run(
    plan: Plan,
    data: Path,
    out: Path,
    jobs: int,
    say: Say,
    wanted: Wanted = lambda cell: True,
    work: Callable[..., dict[str, Any]] = race,
) -> dict[str, str]:
    """Compute what is missing of a plan.

    Args:
        plan: of the study.
        data: a folder that holds the data sets as folders.
        out: the folder of results.
        jobs: processes.
        say: hears how it goes.
        wanted: which cells, where it is not all.
        work: computes a cell from its settings and `folder`, that of the data sets.

    Returns:
        What went wrong, by the name of the cell.
    """
    compute_one: Work = partial(work, folder=data)

    def stage(name: str, cells: list[Cell]) -> dict[str, str]:
        failed: dict[str, str] = {}
        for source, own in _by_data(cell for cell in cells if wanted(cell)).items():
            if source == "digits" or (data / source).is_dir():
                say(f"{name} on {source}: {len(own)} cells.")
                failed |= compute(own, compute_one, out, jobs, say)
            else:
                say(f"{name}: {len(own)} cells need {data / source}, which is not there; left out.")
        return failed

    return stage("tuning", tuning_cells(plan)) | stage("final cells", final_cells(plan, out))


def publish(folder: Path, collected: Collected, plan: Plan, without: str) -> dict[str, str]:
    """Write rows, tables and pictures.

    Args:
        folder: where to.
        collected: what there is.
        plan: for its methods.
        without: the fleet without stragglers.

    Returns:
        The tables by name; `not_run` among them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if collected.test or collected.validation:
        write_rows(folder / "rows.parquet", [*collected.validation, *collected.test])
    pictures(collected.test, folder / "pictures", without)
    (folder / "not_run.md").write_text(f"# Cells that were not run\n\n{not_run(collected.missing)}", encoding="utf-8")
    return tables(collected.validation + collected.test, plan, without)


def tables(rows: Iterable[Mapping[str, object]], plan: Plan, without: str) -> dict[str, str]:
    """All tables by name, from rows alone.

    Args:
        rows: of tuning and of the final cells.
        plan: for its methods.
        without: the fleet without stragglers.
    """
    every = list(rows)
    test = [row for row in every if row["split"] == "test"]
    if not test:
        return dict.fromkeys(("accuracy", "classes", "settled", "choices"), "")
    same = {
        (setting.problem.name, setting.fleet.name, method.label): label
        for setting in plan.settings
        for method in plan.methods
        if (label := method.same_as(setting.problem, setting.fleet)) is not None
    }
    return {
        "accuracy": accuracy(test, without, same),
        "classes": classes([row for row in test if row["partition"] == "by-speed"]),
        "settled": settled(test, without),
        "choices": choices([row for row in every if row["split"] == "validation"]),
    }


def _by_data(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells by data set: a process keeps one in memory."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.settings["data"], []).append(cell)
    return found
