"""The cells of a study: computed in processes, each result one file that is written whole or not at all.

What is there is not computed again, so that a study that was killed goes on with what is missing. A file is named by
all that the plan says of its cell: where the plan changes, old results are left alone and not taken for new ones. Which
sources computed it stands inside; a study that goes on says how many of its results are of others.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lanterne
from lanterne.runtime import one_thread

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One cell of a study.

    Args:
        name: for people.
        settings: all that its result depends on, as plain data.
        seconds: about how long it takes, for the estimate and the order.
    """

    name: str
    settings: Mapping[str, Any]
    seconds: float = 1.0

    @property
    def file(self) -> str:
        """The name of its result.

        Examples:
            >>> Cell("mnist, 90 %", {"share": 0.9}).file
            'mnist-90-cd441e5ad402.json'
        """
        text = json.dumps(self.settings, sort_keys=True)
        readable = re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")
        return f"{readable}-{blake2b(text.encode(), digest_size=6).hexdigest()}.json"


def read(out: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell; None if it has none yet.

    Args:
        out: the folder of results.
        cell: whose.
    """
    path = out / cell.file
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
    return found


def of_other_sources(out: Path, cells: Iterable[Cell]) -> int:
    """How many cells have a result that other sources of lanterne, or of this harness, have computed.

    Args:
        out: the folder of results.
        cells: which.
    """
    paths = [out / cell.file for cell in cells]
    lines = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    return sum(line.get("sources") != sources() for line in lines)


@lru_cache(maxsize=1)
def sources() -> str:
    """A digest of lanterne's sources and of this harness's."""
    digest = blake2b(digest_size=8)
    for folder in (Path(lanterne.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def compute(cells: Sequence[Cell], work: Work, out: Path, jobs: int, say: Say) -> dict[str, str]:
    """Compute the cells that have no result yet.

    Args:
        cells: of one stage of a study; they must not depend on each other.
        work: from a cell's settings to its result, plain data both; importable by name, so that a process can be
            given it.
        out: the folder of results.
        jobs: processes; 1 is this one.
        say: hears how it goes, a line for each cell.

    Returns:
        What went wrong, by the name of the cell; such a cell is tried again by the next call.
    """
    out.mkdir(parents=True, exist_ok=True)
    # The long ones first: two processes then end at about the same time.
    missing = sorted((c for c in cells if read(out, c) is None), key=lambda c: -c.seconds)
    if others := of_other_sources(out, cells):
        say(f"{others} results are of other sources than those that are here: remove them from {out} to compute anew.")
    clock = _Clock(len(cells) - len(missing), len(cells), sum(c.seconds for c in missing))
    failed: dict[str, str] = {}
    with _pool(min(jobs, len(missing))) as pool:
        for cell, outcome in _outcomes(missing, work, out, pool):
            if isinstance(outcome, Exception):
                failed[cell.name] = f"{type(outcome).__name__}: {outcome}"
                say(f"{cell.name} failed: {failed[cell.name]}")
            else:
                say(clock.line(cell, outcome))
    return failed


def _outcomes(
    cells: Iterable[Cell], work: Work, out: Path, pool: Executor | None
) -> Iterator[tuple[Cell, float | Exception]]:
    """Each cell as it ends, and how many seconds it took."""
    if pool is None:
        with one_thread():
            for cell in cells:
                try:
                    yield cell, _one(cell, work, out)
                except Exception as error:
                    yield cell, error
        return
    futures: dict[Future[float], Cell] = {pool.submit(_one, cell, work, out): cell for cell in cells}
    for future in as_completed(futures):
        failure = future.exception()
        if isinstance(failure, BrokenProcessPool):
            raise SystemExit(
                "A process of the study was killed, perhaps because memory ran out. Every finished cell is safe: give "
                "the same command again, with --jobs 1 if memory is short."
            )
        if isinstance(failure, Exception):
            yield futures[future], failure
        else:
            yield futures[future], future.result()


def _one(cell: Cell, work: Work, out: Path) -> float:
    """Compute a cell and write its result."""
    begun = time.perf_counter()
    result = work(cell.settings)
    line = {"name": cell.name, "settings": cell.settings, "versions": versions(), "sources": sources()}
    line["result"] = result
    partial = out / f"{cell.file}.{os.getpid()}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / cell.file)
    return time.perf_counter() - begun


def versions() -> dict[str, str]:
    """What computed a result."""
    return {name: version(name) for name in ("lanterne", "torch", "numpy")}


# ---------------------------------------------------------------------------------------------------- processes
@contextmanager
def _pool(jobs: int) -> Iterator[Executor | None]:
    if jobs <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in an unknown state
    pool = ProcessPoolExecutor(jobs, context, _begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """One thread for each process, and no process that outlives the study."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass
class _Clock:
    """How far a stage is, and when it will end if the rest goes as fast as what was done."""

    done: int
    cells: int
    left: float
    spent: float = 0.0
    begun: float = 0.0

    def __post_init__(self) -> None:
        self.begun = time.perf_counter()

    def line(self, cell: Cell, seconds: float) -> str:
        """What is said when a cell has ended."""
        self.done += 1
        self.left -= cell.seconds
        self.spent += cell.seconds
        minutes = (time.perf_counter() - self.begun) / self.spent * self.left / 60
        width = len(str(self.cells))
        return f"[{self.done:{width}}/{self.cells}] {cell.name}: {seconds:.0f} s; about {minutes:.0f} min left"
