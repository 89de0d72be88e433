"""Jobs and devices that the tests of the fleet share."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st

from lanterne.fleet import (
    Device,
    Draw,
    ExponentialLayers,
    Job,
    Loaded,
    NormalTime,
    Pace,
    Slower,
    SometimesSlower,
    UniformDepth,
    Work,
)

DRAW = Draw(0, 0, 0, 0)


def steps(blocks: int, count: int = 1, flops: Callable[[int], float] = lambda unit: 1.0 + unit % 3) -> Work:
    """Local steps: each goes forward through the blocks and back."""
    n = 2 * blocks * count
    backward = tuple(unit % (2 * blocks) >= blocks for unit in range(n))
    starts = tuple(unit % (2 * blocks) == 0 for unit in range(n))
    return Work(tuple(float(flops(unit)) for unit in range(n)), backward, starts)


def upload(sizes: list[int], blocks: int) -> Callable[[int | None], int]:
    """Bytes of a reply that holds the blocks whose backward pass was finished, nearest the output first."""

    def up(units: int | None) -> int:
        if units is None:
            return sum(sizes)
        whole, rest = divmod(units, 2 * blocks)
        return sum(sizes) if whole else sum(sizes[: max(0, rest - blocks)])

    return up


CONSTANT: dict[str, Pace | None] = {
    "steady": None,
    "slower": Slower(3.0),
    "never slower": SometimesSlower(0.0, 5.0),
    "always slower": SometimesSlower(1.0, 5.0),
    "loaded by nothing": Loaded(1.0),
    "one depth": UniformDepth(2.0, 2, 2),
}
PACES: dict[str, Pace | None] = {
    **CONSTANT,
    "sometimes slower": SometimesSlower(0.3, 5.0),
    "loaded": Loaded(4.0),
    "normal": NormalTime(0.2),
    "normal, often cut off at 0": NormalTime(0.8),
    "exponential layers": ExponentialLayers(0.4),
    "uniform depth": UniformDepth(2.0, 1, 3),
    "uniform depth from 0": UniformDepth(2.0, 0, 3),
    "never finished": UniformDepth(2.0, 1, 2),
}

numbers = st.floats(0.01, 100.0)
works = st.builds(
    lambda blocks, count, values: steps(blocks, count, lambda unit: values[unit % len(values)]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=8),
)
devices = st.builds(
    Device,
    flops=numbers,
    down=numbers | st.just(math.inf),
    up=numbers | st.just(math.inf),
    latency=st.floats(0, 1),
    overhead=st.floats(0, 1),
    pace=st.sampled_from(list(PACES.values())),
)


@st.composite
def jobs(draw: st.DrawFn, stop: str | None = None) -> Job:
    """Jobs whose uploads grow with the units, the whole reply above all; deadlines are of the order of their length."""
    work = draw(works)
    grown = [0]
    for extra in draw(st.lists(st.integers(0, 20), min_size=len(work) + 1, max_size=len(work) + 1)):
        grown.append(grown[-1] + extra)
    deadline = draw(st.floats(0, 50) | st.just(math.inf))
    stop = draw(st.sampled_from(["arrive", "compute"])) if stop is None else stop
    return Job(draw(st.integers(0, 50)), work, lambda k: grown[-1 if k is None else k], deadline, stop)
