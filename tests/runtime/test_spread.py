"""Independent parts of one call: done by idle threads, and by the caller where there are none."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanterne.algorithms import PSL
from lanterne.budget import Units
from lanterne.errors import HandlerError
from lanterne.protocol import Inbox, Local
from lanterne.runtime import Batched, Job, Loop
from lanterne.testing import tiny_problem, uneven_fleet
from lanterne.testing.conformance import simulate


@dataclass(eq=False)
class Node:
    """A call whose handler is a function of the executor's task."""

    function: Any
    before: list[Node] = field(default_factory=list)
    value: Any = None

    @property
    def needs(self) -> list[Node]:
        """What is not computed yet."""
        return [node for node in self.before if node.value is None]


def run(executor: Loop, *nodes: Node) -> None:
    def job(node: Node) -> Job:
        def handler(task: Any, state: Any, inbox: Inbox, local: Local) -> Any:
            return {}, {"found": node.function(task)}

        return Job(0, "handler", id(node), handler, {}, {}, {}, lambda: np.empty((0, 4), np.int64), 0, Units())

    def done(node: Node, result: Any) -> None:
        node.value = result[1]["found"]

    executor.run(nodes, job, done)


def loop(threads: int, kind: type[Loop] = Loop) -> Loop:
    problem = tiny_problem()
    return kind(problem.task, problem.data.x, problem.data.y, threads)


@pytest.mark.parametrize("kind", [Loop, Batched])
def test_idle_threads_help_with_a_call(kind: type[Loop]) -> None:
    """Three parts that wait for each other end only where three threads are at work on them."""
    executor, barrier = loop(3, kind), threading.Barrier(3)

    def together(item: int) -> int:
        barrier.wait(timeout=20)
        return 10 * item

    node = Node(lambda task: task.spread(together, [1, 2, 3]))
    after = Node(lambda task: task.spread(together, [4, 5, 6]), [node])
    run(executor, node, after)
    assert node.value == [10, 20, 30]
    assert after.value == [40, 50, 60]
    assert executor.spread(together, [7, 8, 9]) == [70, 80, 90]  # outside of a run as well
    executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_may_be_spread_again(threads: int) -> None:
    executor = loop(threads)

    def outer(item: int) -> list[int]:
        return executor.spread(lambda other: 10 * item + other, range(5))

    nodes = [Node(lambda task: task.spread(outer, range(4))) for _ in range(5)]
    run(executor, *nodes)
    assert all(node.value == [[10 * i + j for j in range(5)] for i in range(4)] for node in nodes)
    assert executor.spread(outer, []) == []
    executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_part_is_the_calls(threads: int) -> None:
    executor = loop(threads)
    node = Node(lambda task: task.spread(lambda item: 1 / item, [1, 2, 0, 4]))
    with pytest.raises(HandlerError, match="division by zero"):
        run(executor, node)
    good = Node(lambda task: task.spread(abs, [-1]))
    run(executor, good)
    assert good.value == [1]
    executor.close()


def test_a_batch_is_read_when_it_is_looked_at() -> None:
    """A client that goes back through the graph of its forward pass does not read its samples again."""
    read: list[NDArray[np.int64]] = []

    class Watched(Loop):
        def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            read.append(rows)
            return super().read(rows)

    simulate(lambda s: PSL(stack=s, lr=0.1, local_steps=2), tiny_problem(), uneven_fleet(), 3, Watched)
    assert len(read) == 6 * 2 * 3


def test_what_is_not_there_is_missing() -> None:
    executor = loop(1)
    seen: list[Local] = []

    def handler(task: Any, state: Any, inbox: Inbox, local: Local) -> Any:
        seen.append(local)
        return {}, {}

    executor.one(Job(0, "handler", 0, handler, {}, {}, {}, lambda: np.arange(8).reshape(2, 4), 7, Units()))
    [local] = seen
    assert torch.equal(local.y, executor.y[:8].view(2, 4))
    assert torch.equal(local.x, executor.x[:8].view(2, 4, -1))
    assert int(local.key) == 7
    with pytest.raises(AttributeError, match="z"):
        _ = local.z
    executor.close()
