"""Processes of their own for the tests, forked from one that has imported the libraries: to import them takes seconds.

A test that is about the start of a process, or about its environment, starts one by `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "torch",
        "lanterne.experiment",
        "lanterne.report",
        "lanterne.cli.app",
        "sklearn.datasets",
        "flwr_datasets.partitioner",
    ]
)


class Ended(NamedTuple):
    """What a process has left: its exit status, negative for a signal, and what it has written."""

    status: int
    output: str


def fork(do: Callable[..., object], *arguments: object, directory: Path, timeout: float = 540) -> Ended:
    """Call a function of an importable module in a process of its own; a number that it returns is the exit status."""
    output = directory / f".output-{os.getpid()}"
    process = _FORKS.Process(target=_call, args=(do, arguments, str(directory), str(output)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    written = output.read_text() if output.exists() else ""
    output.unlink(missing_ok=True)
    return Ended(process.exitcode, written)


def _call(do: Callable[..., object], arguments: tuple[object, ...], directory: str, output: str) -> None:
    os.chdir(directory)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = do(*arguments)
    sys.exit(status if isinstance(status, int) else 0)


def lanterne(*words: str) -> int:
    """The command line."""
    from lanterne.cli import main

    return main(words)


def script(path: str, *words: str) -> None:
    """`python path words`."""
    sys.argv = [path, *words]
    sys.path.insert(0, str(Path(path).resolve().parent))
    runpy.run_path(path, run_name="__main__")
