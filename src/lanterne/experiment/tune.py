"""Choosing the executor by the clock on the wall, when asked to."""

from __future__ import annotations

import time
from dataclasses import replace

from lanterne.experiment.build import Prepared
from lanterne.runtime import EXECUTORS

_ROUNDS = 2


def tune_executor(prepared: Prepared) -> Prepared:
    """Time every executor on the first rounds of every competitor and keep the fastest.

    What was chosen stands in the configuration, which is what a resumed run follows.

    Args:
        prepared: an experiment that has not begun.
    """
    seed = prepared.config.seeds[0]
    world = prepared.world(seed)
    seconds = {}
    for name in EXECUTORS:
        executor = prepared.executor(name)
        try:
            seconds[name] = 0.0
            for label, algorithm in prepared.algorithms.items():
                simulator = prepared.simulator(label, world, executor, seed)
                state = simulator.round(algorithm, algorithm.init(world.w))
                begun = time.perf_counter()
                for _ in range(_ROUNDS):
                    state = simulator.round(algorithm, state)
                seconds[name] += time.perf_counter() - begun
        finally:
            executor.close()
    best = min(seconds, key=seconds.__getitem__)
    runtime = prepared.config.runtime.model_copy(update={"executor": best})
    return replace(prepared, config=prepared.config.model_copy(update={"runtime": runtime}))
