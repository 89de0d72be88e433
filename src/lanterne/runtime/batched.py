"""The executor of stacked clients: calls of equal signature become one call under vmap.

For small models, and for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from lanterne.data import Augmentation
from lanterne.errors import HandlerError, LanterneError
from lanterne.learn import Task
from lanterne.protocol import Inbox, Local
from lanterne.runtime.job import Job, Result
from lanterne.runtime.loop import Loop

#: Bytes of parameters, gradients and batches that a group's clients may stack: what stays near a core's cache.
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 4 << 30}


class Batched(Loop):
    """Calls of equal signature in one; what is the same for all of them is not stacked. Single calls go the loop's way.

    Groups are split into chunks by a rule of shapes, never of threads, so that results do not depend on their number.

    Args:
        task: the model and the loss.
        x: `[n, ...]`, the resident training samples.
        y: `[n]`, their labels.
        threads: Python threads.
        chunk_bytes: what a chunk may stack; by default a rule of the device's kind.
        augment: how rows are changed when they are read; the streams need the same.
    """

    name = "batched"

    def __init__(
        self,
        task: Task,
        x: Tensor,
        y: Tensor,
        threads: int = 1,
        chunk_bytes: int | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(task, x, y, threads, augment)
        self.stacked = Task(task.stack, task.loss, functional=True)
        self.chunk_bytes = chunk_bytes or CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cpu"])

    def run(self, nodes: Sequence[Any], job: Callable[[Any], Job], done: Callable[[Any, Result], None]) -> None:
        """Compute calls that are in an order in which none needs a later one, wave by wave."""
        left = list(nodes)
        self.record()
        while left:
            wave = [node for node in left if not node.needs]
            jobs = [job(node) for node in wave]
            groups: dict[Any, list[int]] = {}
            for i, j in enumerate(jobs):
                groups.setdefault(j.signature, []).append(i)
            chunks = [chunk for group in groups.values() for chunk in self._chunks(jobs, group)]
            computed = self.map(self._group, [[jobs[i] for i in chunk] for chunk in chunks])
            for chunk, results in zip(chunks, computed, strict=True):
                for i, result in zip(chunk, results, strict=True):
                    done(wave[i], result)
            left = [node for node in left if node.value is None]

    def _chunks(self, jobs: Sequence[Job], group: Sequence[int]) -> list[list[int]]:
        head = jobs[group[0]]
        held = sum(t.numel() * t.element_size() for t in (*head.state.values(), *head.arrays.values()))
        size = 3 * held + head.rows().size * self.x[0].numel() * self.x.element_size()
        most = max(1, self.chunk_bytes // max(size, 1))
        return [list(group[i : i + most]) for i in range(0, len(group), most)]

    def _group(self, jobs: Sequence[Job]) -> list[Result]:
        head = jobs[0]
        if len(jobs) == 1:
            return [self.one(head)]
        state, state_dims = _stack([j.state for j in jobs])
        arrays, array_dims = _stack([j.arrays for j in jobs])
        x, y = self.read(np.stack([j.rows() for j in jobs]))
        keys = torch.tensor([j.key for j in jobs])

        def call(state: dict[str, Tensor], arrays: dict[str, Tensor], x: Tensor, y: Tensor, key: Tensor) -> Result:
            return head.function(self.stacked, dict(state), Inbox(arrays, head.config), Local(x, y, key, head.budget))

        stacked = vmap(call, in_dims=(state_dims, array_dims, 0, 0, 0))
        try:
            after, out = stacked(state, arrays, x, y, keys)
        except LanterneError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise HandlerError(f"The handler {head.handler!r} failed for {len(jobs)} stacked clients: {why}") from error
        return [({n: v[i] for n, v in after.items()}, {n: v[i] for n, v in out.items()}) for i in range(len(jobs))]


def _stack(trees: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """Stack arrays of equal name; what is one tensor for all is left as it is."""
    values: dict[str, Tensor] = {}
    dims: dict[str, int | None] = {}
    for name, first in trees[0].items():
        same = all(tree[name] is first for tree in trees)
        values[name] = first if same else torch.stack([tree[name] for tree in trees])
        dims[name] = None if same else 0
    return values, dims
