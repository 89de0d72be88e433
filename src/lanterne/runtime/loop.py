"""The reference executor: one call at a time in each of a few Python threads, every operator on one core."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lanterne.budget import Budget
from lanterne.data import Augmentation
from lanterne.errors import HandlerError, LanterneError
from lanterne.learn import Graphs, Recordings, Task
from lanterne.protocol import Inbox, Local
from lanterne.runtime.job import Job, Result
from lanterne.runtime.ready import Ready

#: Up to so many weights of convolutions, images lie as [batch, height, width, channels] in memory. On batches of 4 to
#: 64 that is up to 1.3 times as fast for small models and AlexNet, and down to 0.64 times for VGG-11 and ResNet-18.
CHANNELS_LAST_WEIGHTS = 4_000_000


class Loop:
    """One client per core.

    Each call starts as soon as its own inputs are there; a thread that finds none helps with what another spreads.
    Results do not depend on the number of threads.

    Args:
        task: the model and the loss.
        x: `[n, ...]`, the resident training samples.
        y: `[n]`, their labels.
        threads: Python threads; PyTorch gives the lock back inside its operators.
        augment: how rows are changed when they are read; the streams need the same.
    """

    name = "loop"

    def __init__(self, task: Task, x: Tensor, y: Tensor, threads: int = 1, augment: Augmentation | None = None) -> None:
        kernels = sum(m.weight.numel() for m in task.stack.net.modules() if isinstance(m, nn.Conv2d))
        on_cpu = x.device.type == "cpu"
        self.recordings = (task.recordings or Recordings()) if on_cpu else None
        self.task = replace(
            task,
            channels_last=on_cpu and 0 < kernels <= CHANNELS_LAST_WEIGHTS,
            recordings=self.recordings,
            graphs=Graphs(),
            spread=self.spread,
        )
        self._ready: Ready | None = None
        self.x, self.y, self.threads, self.augment = x, y, threads, augment
        self._nothing = x.new_empty(0, 0, *x.shape[1:]), y.new_empty(0, 0)
        # Intra-op threads are a property of each thread, so the pool's must be set where they start.
        self._pool = ThreadPoolExecutor(threads, "lanterne", torch.set_num_threads, (1,))

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The samples and labels of rows of any shape: an index gather, augmented where that is asked for."""
        numbers = torch.from_numpy(rows).to(self.x.device)
        if self.augment is None:
            return self.x[numbers], self.y[numbers]
        return self.augment.read(self.x, self.y, numbers)

    def one(self, job: Job) -> Result:
        """Call one handler."""

        def read() -> tuple[Tensor, Tensor]:
            rows = job.rows()
            return self.read(rows) if rows.size else self._nothing

        local = Later(read, torch.scalar_tensor(job.key, dtype=torch.int64), job.budget)
        try:
            return job.function(self.task, dict(job.state), Inbox(job.arrays, job.config), local)
        except LanterneError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise HandlerError(f"The handler {job.handler!r} of {job.to} failed: {why}") from error

    def run(self, nodes: Sequence[Any], job: Callable[[Any], Job], done: Callable[[Any, Result], None]) -> None:
        """Compute calls that are in an order in which none needs a later one."""
        self.record()
        ready = self._ready = Ready(nodes)

        def work() -> None:
            while (node := ready.take()) is not None:
                try:
                    result = self.one(job(node))
                    with ready.lock:
                        done(node, result)
                        ready.finished(node)
                except BaseException as error:
                    ready.stop(error)

        if self.threads == 1 and torch.get_num_threads() == 1:
            work()
        with _quick_turns():
            workers = [] if ready.done else [self._pool.submit(work) for _ in range(self.threads)]
            for worker in workers:
                worker.result()
        self._ready = None
        if ready.error is not None:
            raise ready.error

    def record(self) -> None:
        """Record the gradients that have been taken often; nobody may be computing."""
        if self.recordings is not None and self.recordings.pending:
            self._pool.submit(self.recordings.record).result()

    def spread(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Apply a function to independent items of one call, with the threads that have nothing else to do.

        Args:
            function: of one item.
            items: whose results are wanted, in this order.
        """
        results: list[Future[Any]] = [Future() for _ in items]
        left = deque(zip(results, items, strict=True))

        def help() -> None:
            while left:
                try:
                    result, item = left.popleft()
                except IndexError:  # another thread was quicker
                    return
                try:
                    result.set_result(function(item))
                except BaseException as error:
                    result.set_exception(error)

        if self._ready is not None:
            self._ready.ask(help, self.threads - 1)
        else:
            for _ in range(self.threads - 1):
                self._pool.submit(help)
        help()  # so it ends whether anybody comes or not
        return [result.result() for result in results]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Apply a function to independent items in the pool's threads, results in order."""
        return list(self._pool.map(function, items))

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown()


class Later(Local):
    """Whose batches are read when a handler first looks at them: one that goes back through a graph never does.

    Args:
        read: gives the samples and their labels.
        key: of the call.
        budget: of the call.
    """

    def __init__(self, read: Callable[[], tuple[Tensor, Tensor]], key: Tensor, budget: Budget) -> None:
        self.__dict__.update(key=key, budget=budget, read=read)

    def __getattr__(self, name: str) -> Tensor:
        """The samples or their labels, which are not there yet."""
        if name not in ("x", "y"):
            raise AttributeError(name)
        x, y = self.__dict__["read"]()
        self.__dict__.update(x=x, y=y)
        found: Tensor = self.__dict__[name]
        return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Every operator on one core: results must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let threads ask for the interpreter after 0.1 ms, not 5: between operators they seldom need it for longer."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
