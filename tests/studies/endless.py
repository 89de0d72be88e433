"""A study of four cells, one of which never ends: run as a program, so that it can be killed."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path

from studies.harness.cells import Cell, compute

CELLS = [Cell(f"cell {n}", {"n": n}) for n in range(4)]


def work(settings, endless: int | None):
    if settings["n"] == endless:
        threading.Event().wait()
    return {"square": settings["n"] ** 2, "process": os.getpid()}


if __name__ == "__main__":
    compute(CELLS, partial(work, endless=3), Path(sys.argv[1]), 2, print)
