"""Threads do not show in a split method's result: number 22 of section 9 of the specification."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lanterne.algorithms import ALGORITHMS, SplitFedV1
from lanterne.protocol import Handler
from lanterne.rng import fold
from lanterne.runtime import Loop
from lanterne.split import SplitMethod
from lanterne.testing import simulate, tiny_problem, uneven_fleet
from lanterne.testing.runtimes import run_in_process

SPLIT = sorted(name for name, kind in ALGORITHMS.items() if issubclass(kind, SplitMethod))
#: Those whose result does not depend on who is quick, so that real threads may not show either.
ORDERLY = ["cyclesl", "locsplitfed", "psl", "sglr", "sl", "splitfed_v1", "splitfed_v2"]
OPTIONS: dict[str, Any] = {"lr": 0.1, "local_steps": 3, "momentum": 0.5}


class Delayed:
    """An algorithm each of whose calls takes some milliseconds longer, by a rule of its own for every salt."""

    def __init__(self, algorithm: Any, salt: int) -> None:
        self.algorithm, self.salt = algorithm, salt
        self.handlers = {name: self.delayed(handler) for name, handler in algorithm.handlers.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def delayed(self, handler: Handler) -> Handler:
        def after(task: Any, state: Any, inbox: Any, local: Any) -> Any:
            if not local.key.is_meta:  # time is decided on shapes alone
                time.sleep(fold(self.salt, int(local.key)) % 8 * 5e-4)
            return handler(task, state, inbox, local)

        return after


class Interleaved(SplitFedV1):
    """Wrong: a client's step depends on how many have been done before it, whoever's they were."""

    @property
    def handlers(self) -> Mapping[str, Handler]:
        steps, lock = [0], threading.Lock()

        def backward(task: Any, state: Any, inbox: Any, local: Any) -> Any:
            with lock:
                steps[0] += not local.key.is_meta
                count = steps[0]
            return self.halves.backward(task, {**state, "w": state["w"] * (1 + 1e-6 * count)}, inbox, local)

        return {**self.halves.handlers, "backward": backward}


def results(kind: type[Any]) -> list[Tensor]:
    """The models after two rounds with 1, 2 and 4 threads, each with calls that are late in different ways."""
    return [
        simulate(
            lambda s, salt=salt: Delayed(kind(stack=s, **OPTIONS), salt),
            tiny_problem(),
            uneven_fleet(),
            2,
            Loop,
            threads=threads,
        )[0]
        for threads, salt in product((1, 2, 4), (0, 1))
    ]


@pytest.mark.parametrize("name", SPLIT)
def test_22_threads_and_repetitions_do_not_show(name: str) -> None:
    first, *others = results(ALGORITHMS[name])
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, tiny_problem().w.expand_as(first))


def test_22_a_step_that_counts_the_steps_before_it_shows() -> None:
    first, *others = results(Interleaved)
    assert not all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", ORDERLY)
def test_22_the_server_takes_arrivals_in_the_order_of_its_requests(name: str) -> None:
    """On the real clock replies arrive in whatever order the delays make; the bits are the same."""
    first, second = (
        run_in_process(lambda s, salt=salt: Delayed(ALGORITHMS[name](stack=s, **OPTIONS), salt), tiny_problem(), 2)
        for salt in (2, 3)
    )
    assert torch.equal(first, second)
