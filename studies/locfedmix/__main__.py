"""The command of the study: `python -m studies.locfedmix --size small --data FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from lanterne.errors import LanterneError
from studies.harness import study
from studies.harness.cells import Cell
from studies.harness.epochs import learn
from studies.harness.measures import Row
from studies.harness.publish import Collected, collect, fill, not_run, read_rows, write_rows
from studies.locfedmix.pictures import pictures
from studies.locfedmix.plan import METHODS, NETWORKS, SIZES
from studies.locfedmix.results import rows_of, written

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is missing, and write what there is.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a cell failed, 130 if the study was interrupted.
    """
    options = _options(arguments)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    plans, cells = SIZES[options.size], options.out / "cells"
    parts = _parts(options.only)
    failed: dict[str, str] = {}

    def wanted(cell: Cell) -> bool:
        return parts <= _parts(cell.name)

    for method in METHODS:
        if not method.known:
            console.print(f"{method.label}: this version of lanterne has no algorithm {method.algorithm!r}; left out.")
    if options.plan:
        seconds = study.expected_seconds(*plans)
        console.print(f"{options.size}: about {seconds / 60:.0f} minutes of one core, {options.jobs} at a time.")
        return 0
    try:
        for plan in plans:
            work = partial(learn, networks=NETWORKS)
            failed |= study.run(plan, options.data, cells, options.jobs, console.print, wanted, work)
    except KeyboardInterrupt:
        console.print("Interrupted. Every finished cell is safe; the same command goes on.")
        return 130
    except LanterneError as error:
        console.print(f"error: {error}")
        return 2
    write(options.out / "report", cells)
    console.print(f"Rows, tables and pictures: {options.out / 'report'}")
    if options.publish:
        write(HERE, cells)
        console.print(f"Published in {HERE}")
    for name, why in failed.items():
        console.print(f"failed: {name}: {why}")
    return 1 if failed else 0


def write(folder: Path, cells: Path) -> None:
    """Write what was computed: rows, tables, pictures, what was not run, and the page.

    Args:
        folder: where to.
        cells: the folder of results.
    """
    collected = gathered(cells)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*collected.validation, *collected.test]
    if rows:
        write_rows(folder / "rows.parquet", rows)
    pictures(collected.test, folder / "pictures")
    (folder / "not_run.md").write_text(f"# Cells that were not run\n\n{not_run(collected.missing)}", encoding="utf-8")
    page = (HERE / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(fill(page, written(rows)), encoding="utf-8")


def gathered(cells: Path) -> Collected:
    """What there is of the race and of the ablation, LocFedMix-SL's own rows once.

    Args:
        cells: the folder of results.
    """
    validation: list[Row] = []
    test: list[Row] = []
    missing: list[Row] = []
    seen: set[str] = set()
    for plan, of_small in zip(SIZES["full"], SIZES["small"], strict=True):
        small = {(s.problem.name, s.fleet.name) for s in of_small.settings}
        names = {(s.problem.name, s.fleet.name) for s in plan.settings}
        found = collect(plan, cells, dict.fromkeys(names - small, "only in --size full"), rows_of)
        new = {method.label for method in plan.methods} - seen
        validation += [row for row in found.validation if row["method"] in new]
        test += [row for row in found.test if row["method"] in new]
        missing += [row for row in found.missing if row["method"] in new]
        seen |= new
    return Collected(validation, test, missing)


def published() -> dict[str, str]:
    """The tables that the committed rows give."""
    return written(read_rows(HERE / "rows.parquet"))


def _parts(name: str) -> set[str]:
    return {part.strip() for part in name.lower().split(",")} - {""}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.locfedmix")
    parser.add_argument(
        "--size", choices=list(SIZES), default="small", help="small ends within 60 minutes on two cores"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds mnist/ and cifar10/")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/locfedmix"), help="where results are kept")
    parser.add_argument(
        "--only",
        default="",
        metavar="PARTS",
        help="only cells that have all these parts between the commas of their names, as in 'iid, psl, seed 1'",
    )
    parser.add_argument("--plan", action="store_true", help="say how long it takes, and do nothing")
    parser.add_argument(
        "--publish", action="store_true", help="write rows, tables and pictures into the repository too"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs is the number of processes: 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
