"""What is committed of a study: its rows, its table and its pictures, from the run directories.

python studies/collect.py STUDY_FOLDER RUN...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from lanterne.report import compare, load_runs, markdown, plot_cells


def main(study: Path, runs: list[Path]) -> None:
    """Write `rows.parquet`, `table.md` and one picture of accuracy and classes per run.

    Args:
        study: the folder of the study.
        runs: finished run directories.
    """
    rows = []
    for run in load_runs(runs):
        for cell in run.cells:
            if not cell.finished:
                sys.exit(f"{cell.path} is not finished. Go on with 'lanterne resume {run.path}'.")
            for row in cell.rows:
                plain = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
                rows.append({"run": run.name, **plain})
        plot_cells(run.cells, study / run.name, ("png",), ("accuracy", "classes"))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), study / "rows.parquet", compression="zstd")
    (study / "table.md").write_text(markdown(compare(runs)["algorithms"]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]])
