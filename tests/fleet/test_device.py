"""A device's numbers are possible ones, and its times of absence are what a scan of the clock finds."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.jobs import DRAW, steps
from lanterne.errors import FleetError
from lanterne.fleet import Device, Work
from lanterne.fleet.device import NUMBERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flops": 0.0}, r"flops of a device is 0\.0, .* Give a number above 0"),
        ({"flops": -1.0}, "flops of a device is -1.0"),
        ({"flops": math.nan}, "flops of a device is nan"),
        ({"flops": 1e-300}, r"flops of a device is 1e-300, so slow that one FLOP .*Give FLOPs per second, at least"),
        ({"down": 5e-324}, r"down of a device is 5e-324, so slow that one byte takes more than 1000 seconds"),
        ({"up": 0.00099}, r"up of a device is 0\.00099, so slow .*Give bytes per second, at least 0\.001; a"),
        ({"memory": 0.0}, "memory of a device is 0.0"),
        ({"down": 0.0}, "down of a device is 0.0"),
        ({"up": -3.0}, "up of a device is -3.0"),
        ({"latency": -0.1}, r"latency of a device is -0\.1 seconds\. Give a finite number, 0 or more"),
        ({"latency": math.inf}, "latency of a device is inf"),
        ({"latency": 1e16}, r"latency of a device is 1e\+16 seconds\. Give a finite number, 0 or more and at most"),
        ({"latency": math.nan}, "latency of a device is nan"),
        ({"overhead": -1.0}, "overhead of a device is -1.0"),
        ({"dropout": 1.1}, r"dropout of a device is 1\.1, but it is a probability\. Give a number from 0 to 1"),
        ({"failure": -0.1}, "failure of a device is -0.1, but it is a probability"),
        ({"failure": math.nan}, "failure of a device is nan"),
        ({"period": 0.0}, r"period of a device is 0\.0\. Give seconds above 0"),
        ({"period": math.nan}, "period of a device is nan"),
        ({"available": ((5.0, 3.0),)}, r"available of a device holds 5:3, but its times must ascend.*Sort them"),
        ({"available": ((3.0, 3.0),)}, "holds 3:3"),
        ({"available": ((-1.0, 3.0),)}, "holds -1:3"),
        ({"available": ((0.0, 3.0), (2.0, 4.0))}, "holds 2:4, .* not overlap"),
        ({"available": ((4.0, 5.0), (2.0, 3.0))}, "holds 2:3, .* ascend"),
        ({"available": ((0.0, 3.0),), "period": 2.0}, "holds 0:3, .* fit its period"),
        ({"available": ((0.0, math.nan),)}, "holds 0:nan"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        Device(**changes)  # type: ignore[arg-type]


def test_possible_numbers_are_taken() -> None:
    Device(flops=math.inf, memory=math.inf, latency=0.0, dropout=1.0, failure=1.0, period=math.inf)
    Device(flops=1e-3, down=1e-3, up=1e-3, latency=2.0**53, overhead=2.0**53, memory=1.0)
    Device(available=((0.0, 2.0), (2.0, math.inf)))
    Device(available=((0.0, 2.0), (3.0, 4.0)), period=4.0)
    Device(available=())
    assert set(NUMBERS) == {
        "flops", "memory", "down", "up", "latency", "overhead", "dropout", "failure", "period",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- availability
GRID = 0.25  # all times are multiples of it, which floats hold exactly


@st.composite
def coming_and_going(draw: st.DrawFn) -> Device:
    """Devices whose times lie on the grid; some of them follow each other without a gap."""
    edges = sorted(draw(st.sets(st.integers(0, 24), min_size=2, max_size=8)))
    spans = [(a, b) for a, b in pairwise(edges) if draw(st.booleans())]
    forever = draw(st.booleans())
    period = math.inf if forever else GRID * draw(st.integers(edges[-1], 30))
    windows = tuple((GRID * a, GRID * b) for a, b in spans)
    if forever and windows and draw(st.booleans()):
        windows = (*windows[:-1], (windows[-1][0], math.inf))
    return Device(available=windows, period=period)


def there(device: Device, tick: int) -> bool:
    """Whether the device is there at a tick of the grid, looked up in integers."""
    assert device.available is not None
    if math.isfinite(device.period):
        tick %= round(device.period / GRID)
    return any(round(a / GRID) <= tick and (math.isinf(b) or tick < round(b / GRID)) for a, b in device.available)


@given(coming_and_going(), st.integers(0, 100))
@example(Device(available=((0.0, 5.0), (5.0, 10.0)), period=10.0), 12)  # always there, written in two
@example(Device(available=((0.0, 1.0), (1.0, 2.0), (3.0, 4.0)), period=4.0), 13)  # goes on over the turn of the period
def test_availability_is_a_scan_of_the_clock(device: Device, tick: int) -> None:
    t, horizon = GRID * tick, range(tick, tick + 300)  # more than two periods and everything that is finite
    assert device.online(t) == there(device, tick)
    assert device.online(t + GRID / 2) == there(
        device, tick
    )  # from the start of a span up to its end, which is outside
    back = next((GRID * k for k in horizon if there(device, k)), math.inf)
    assert device.returns(t) == back
    if there(device, tick):
        gone = next((GRID * k for k in horizon if not there(device, k)), math.inf)
        assert device.leaves(t) == gone


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).filter(lambda p: len(set(p)) == 3),
    st.floats(0, 1e6),
)
@example((0.03, 0.05, 0.1), 1.03)  # 1.03 % 0.1 is a hair less than 0.03: here the clock once stood still for ever
def test_whoever_returns_is_there_whatever_is_rounded(times: tuple[float, float, float], t: float) -> None:
    start, end, period = sorted(times)
    if end - start < 1e-6:
        return
    device = Device(available=((start, end),), period=period)
    back = device.returns(t)
    assert device.online(back)
    assert t <= back <= t + period + 1e-9
    assert device.returns(back) == back
    gone = device.leaves(back)
    assert back <= gone <= back + (end - start) + 1e-9
    assert not device.online(gone + 1e-9) or start + period - end < 2e-9


def test_always_and_never() -> None:
    always, never = Device(), Device(available=())
    assert always.online(1e9)
    assert always.leaves(1e9) == math.inf
    assert always.returns(3.0) == 3.0
    assert not never.online(0.0)
    assert never.returns(0.0) == math.inf
    past = Device(available=((0.0, 1.0),))
    assert past.returns(1.0) == math.inf


def test_times_too_short_for_the_clock_are_none() -> None:
    """After eleven days a span of a picosecond lies between two floats: better never than waiting for ever."""
    device = Device(available=((0.5, 0.5 + 1e-12),), period=1.0)
    assert device.returns(1e6 + 0.6) == math.inf or device.online(device.returns(1e6 + 0.6))


# ---------------------------------------------------------------------------------------------------- work
def test_work_adds_up() -> None:
    work = steps(2, 2)
    assert len(work) == 8
    assert work.cumulative.tolist() == [sum(work.flops[: k + 1]) for k in range(8)]
    assert work.total == sum(work.flops)
    assert work.batches.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert work.begun == 2
    assert work.layers.tolist() == [0, 0, 1, 2, 2, 2, 3, 4]
    assert (len(Work()), Work().total, Work().begun) == (0, 0.0, 0.0)


def test_no_work_takes_no_time() -> None:
    device = Device(overhead=1.0)
    assert device.whole(Work(), DRAW) == device.expected(Work()) == 0.0
    assert device.finished(Work(), DRAW).tolist() == []
