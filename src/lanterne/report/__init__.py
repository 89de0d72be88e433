"""Tables and pictures of run directories. Reads files only: nothing here knows how a run is made.

From a run to its table and its pictures:

    run = load_run("runs/demo")
    Console().print(table(summarise(run.cells)))
    plot_run("runs/demo")                           # runs/demo/plots/accuracy.png, classes.png, timeline.png
    compare(["runs/a", "runs/b"], targets=[0.9])
"""

from __future__ import annotations

from lanterne.report.compare import compare, plot_compare
from lanterne.report.equal import Equal, equal, equal_markdown, equal_table
from lanterne.report.plots import plot_cells, plot_run
from lanterne.report.records import CellRecords, RunRecords, load_run, load_runs
from lanterne.report.summary import Reached, Stat, Summary, default_target, summarise
from lanterne.report.tables import as_json, markdown, table

__all__ = [
    "CellRecords",
    "Equal",
    "Reached",
    "RunRecords",
    "Stat",
    "Summary",
    "as_json",
    "compare",
    "default_target",
    "equal",
    "equal_markdown",
    "equal_table",
    "load_run",
    "load_runs",
    "markdown",
    "plot_cells",
    "plot_compare",
    "plot_run",
    "summarise",
    "table",
]
