"""The command of the study: `python -m studies.salf --size small --data FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lanterne.errors import LanterneError
from studies.harness import study
from studies.harness.cells import Cell, compute, read
from studies.harness.measures import Row
from studies.harness.publish import collect, fill, read_rows, write_rows
from studies.salf import convex
from studies.salf.plan import FULL, METHODS, NONE, SIZES
from studies.salf.slopes import picture, slopes

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
    plan, cells = SIZES[options.size], options.out / "cells"
    failed: dict[str, str] = {}
    parts = _parts(options.only)

    def wanted(cell: Cell) -> bool:
        return parts <= _parts(cell.name)

    for method in METHODS:
        if not method.known:
            console.print(f"{method.label}: this version of lanterne has no algorithm {method.algorithm!r}; left out.")
    curves = [cell for cell in convex.cells() if wanted(cell)] if options.part in ("convex", "all") else []
    if options.plan:
        seconds = sum(cell.seconds for cell in curves)
        seconds += study.expected_seconds(plan) if options.part in ("nets", "all") else 0
        console.print(f"{options.size}: about {seconds / 60:.0f} minutes of one core, {options.jobs} at a time.")
        return 0
    try:
        if options.part in ("nets", "all"):
            failed |= study.run(plan, options.data, cells, options.jobs, console.print, wanted)
        if curves:
            console.print(f"convex problem: {len(curves)} cells.")
            failed |= compute(curves, convex.descend, cells, options.jobs, console.print)
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
    small = {(setting.problem.name, setting.fleet.name) for setting in SIZES["small"].settings}
    names = {(setting.problem.name, setting.fleet.name) for setting in FULL.settings}
    collected = collect(FULL, cells, dict.fromkeys(names - small, "only in --size full"))
    rows: list[Row] = []
    for cell in convex.cells():
        result = read(cells, cell)
        rows += [{**cell.settings, **row} for row in (result or {"rows": []})["rows"]]
        if result is None:
            limit = "waits" if cell.settings["deadline"] is None else f"T / m = {cell.settings['deadline']:g}"
            collected.missing.append({
                "problem": f"convex, {cell.settings['batches']} batches",
                "fleet": f"{cell.settings['clock']}, {limit}",
                "method": cell.settings["method"],
                "seed": cell.settings["seed"],
                "why": "not computed",
            })  # fmt: skip
    tables = study.publish(folder, collected, FULL, NONE.name)
    if rows:
        write_rows(folder / "convex.parquet", rows)
        picture(rows, folder / "pictures" / "convex.png")
    tables["convex"] = slopes(rows) if rows else ""
    page = (HERE / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(fill(page, tables), encoding="utf-8")


def _parts(name: str) -> set[str]:
    return {part.strip() for part in name.lower().split(",")} - {""}


def published() -> dict[str, str]:
    """The tables that the committed rows give."""
    rows, curves = read_rows(HERE / "rows.parquet"), read_rows(HERE / "convex.parquet")
    return {**study.tables(rows, FULL, NONE.name), "convex": slopes(curves) if curves else ""}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.salf")
    parser.add_argument(
        "--size", choices=list(SIZES), default="small", help="small ends within 60 minutes on two cores"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds mnist/ and cifar10/")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/salf"), help="where results are kept")
    parser.add_argument(
        "--part", choices=("nets", "convex", "all"), default="all", help="networks, or the convex problem"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="PARTS",
        help="only cells that have all these parts between the commas of their names, as in 'vgg11, salf, seed 1'",
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
