"""What is published of a study: rows, tables, pictures, what was not run; and a page that holds the tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lanterne.report import CellRecords, plot_cells
from studies.harness.cells import read
from studies.harness.measures import Row, Rows
from studies.harness.plan import Plan
from studies.harness.tables import groups, pick, table
from studies.harness.tune import choose, scores

#: What stands in a page before there is a result.
NOT_RUN = "Not run yet."
_PLACE = "<!-- begin {0}, written by the study -->\n{1}\n<!-- end {0} -->"
_SETTINGS = (
    "split", "problem", "fleet", "method", "lr", "seed", "data", "samples", "model", "partition", "clients", "batch",
    "local_steps", "finish", "deadlines",
)  # fmt: skip
_COLUMNS = ("share", "virtual_seconds", "round", "accuracy", "loss", "bytes_up", "bytes_down", "flops")


@dataclass(frozen=True)
class Collected:
    """The rows that there are, and what is missing.

    Args:
        validation: of tuning.
        test: of the final cells.
        missing: `problem`, `fleet`, `method`, `seed` and `why` of each final cell that has no result.
    """

    validation: list[Row]
    test: list[Row]
    missing: list[Row]


def collect(
    plan: Plan,
    out: Path,
    elsewhere: Mapping[tuple[str, str], str] | None = None,
    rows_of: Callable[[Mapping[str, Any], Mapping[str, Any] | None], list[Row]] | None = None,
) -> Collected:
    """Read what was computed of a plan.

    Args:
        plan: all that could have been.
        out: the folder of results.
        elsewhere: why a setting was left out, by the names of its problem and its fleet.
        rows_of: a cell's rows from its settings and its result; those of a race by default.
    """
    rows_of = rows_of or race_rows
    validation: list[Row] = []
    test: list[Row] = []
    missing: list[Row] = []
    rates: dict[tuple[str, str, str], float | None] = {}
    for problem, fleet in plan.tuned:
        for method in plan.methods:
            known = scores(plan, problem, fleet, method, out) if method.known else None
            chosen = None if known is None else choose(known)
            rates[problem.name, fleet.name, method.label] = chosen
            if known is None or method.same_as(problem, fleet) is not None:
                continue
            for cell in plan.tuning(problem, fleet, method).values():
                validation += [{**row, "chosen": chosen} for row in rows_of(cell.settings, read(out, cell))]
    for setting, method in plan.wanted():
        names = {"problem": setting.problem.name, "fleet": setting.fleet.name, "method": method.label}
        why = (elsewhere or {}).get((setting.problem.name, setting.fleet.name), "not computed")
        lr = rates[setting.problem.name, plan.tuning_fleet(setting).name, method.label]
        for seed in plan.seeds:
            final = None if lr is None else plan.final(setting, method, seed, lr)
            result = None if final is None else read(out, final)
            if final is None or result is None:
                unknown = f"this version has no algorithm '{method.algorithm}'"
                missing.append({**names, "seed": seed, "why": why if method.known else unknown})
            else:
                test += rows_of(final.settings, result)
    return Collected(validation, test, missing)


def race_rows(settings: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[Row]:
    """A cell's rows as plain columns, each with the cell's settings."""
    if result is None:
        return []
    shared = {name: settings[name] for name in _SETTINGS} | {"stragglers": settings["share"]}
    shared |= {"deadline": result["deadline"], "diverged": result["diverged"]}
    found: list[Row] = []
    for row in result["rows"]:
        by_class = row.get("accuracy_by_class") or {}
        tiers = {tier: by_class.get(tier) for tier in ("fast", "straggler")}
        worst = {"worst_tenth": row.get("accuracy_worst_tenth")}
        found.append({**shared, **{name: row.get(name) for name in _COLUMNS}, **tiers, **worst})
    return found


def not_run(missing: Sequence[Row]) -> str:
    """The cells that have no result, those of one setting and reason in a line."""
    if not missing:
        return "All cells were run.\n"
    lines = []
    for (problem, fleet, why), own in groups(missing, "problem", "fleet", "why").items():
        methods = ", ".join(method for (method,) in groups(own, "method"))
        seeds = ", ".join(map(str, sorted({row["seed"] for row in own})))
        lines.append([problem, fleet, methods, why, seeds, f"{len(own)}"])
    return table(["problem", "fleet", "methods", "why", "seeds", "cells"], lines, words=4)


def pictures(rows: Rows, folder: Path, without: str) -> list[Path]:
    """Accuracy against virtual time, rounds and bytes, one picture for each setting with stragglers.

    Args:
        rows: of the test split.
        folder: for the pictures.
        without: the fleet without stragglers, whose FedAvg is drawn beside the others.
    """
    written = []
    for (problem, fleet), own in groups(rows, "problem", "fleet").items():
        if fleet == without:
            continue
        beside = [{**row, "method": without} for row in pick(rows, problem=problem, fleet=without, method="fedavg")]
        cells = []
        for (method, seed), found in groups([*beside, *own], "method", "seed").items():
            steps = tuple(sorted(found, key=lambda row: float(row["share"])))
            diverged = steps[-1]["diverged"] if steps[-1]["accuracy"] is None else None
            cells.append(CellRecords(method, int(seed), folder, steps, {"diverged": diverged}))
        name = re.sub(r"[^a-z0-9]+", "-", f"{problem} {fleet}".lower()).strip("-")
        [drawn] = plot_cells(cells, folder / name, ("png",), ("accuracy",))
        written.append(drawn.replace(folder / f"{name}.png"))
        drawn.parent.rmdir()
    return written


def write_rows(path: Path, rows: Rows) -> None:
    """Rows as Parquet, in a file that is written whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pyarrow.parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), partial, compression="zstd")
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` has written; nothing where there is no file."""
    return pyarrow.parquet.read_table(path).to_pylist() if path.is_file() else []


def fill(page: str, tables: Mapping[str, str]) -> str:
    """A page with tables in their places, each between two comments that name it.

    Args:
        page: Markdown.
        tables: by name; one that is empty is said not to have been run.

    Raises:
        ValueError: for a table that has no place on the page.

    Examples:
        >>> print(fill("<!-- begin a, written by the study --><!-- end a -->", {"a": "| x |"}))
        <!-- begin a, written by the study -->
        | x |
        <!-- end a -->
    """
    for name, text in tables.items():
        place = re.compile(rf"<!-- begin {name}, written by the study -->.*?<!-- end {name} -->", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no place for the table {name!r}")
        before, after = place.split(page, maxsplit=1)
        page = before + _PLACE.format(name, text.strip() or NOT_RUN) + after
    return page
