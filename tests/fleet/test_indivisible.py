"""Units that count only together: a device that is cut off among them has done none of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.jobs import CONSTANT, DRAW, PACES, devices, jobs, steps
from lanterne.fleet import Device, Draw, Job, Pace, reach, timing

together = st.integers(1, 5)


def by_trying(device: Device, job: Job, draw: Draw, each: int) -> int | None:
    """The most units that fit, each multiple tried; None if all fit."""
    start = device.latency + job.down / device.down
    ends = [0.0, *device.finished(job.work, draw).tolist()]

    def fits(k: int, reply: int | None) -> bool:
        back = device.latency + job.up(reply) / device.up if job.stop == "arrive" else 0.0
        return start + ends[k] + back <= job.deadline

    if fits(len(job.work), None):
        return None
    return max((k for k in range(0, len(job.work), each) if fits(k, k)), default=0)


@given(devices, jobs(), together, st.integers(0, 3))
def test_the_units_in_time_are_multiples(device: Device, job: Job, each: int, nth: int) -> None:
    draw = Draw(1, 2, nth, nth)
    found = timing(device, job._replace(indivisible=each), draw)
    assert found.units == by_trying(device, job, draw, each)


def test_what_is_cut_off_counts_neither_as_work_nor_as_time_well_spent() -> None:
    """Steps of 4 units and 1 second; the reply is free. The wrong variant counts single units."""
    job = Job(0, steps(2, 3, lambda _: 1.0), lambda _: 0, deadline=2.75)
    device = Device(flops=4.0)
    found = timing(device, job._replace(indivisible=4), DRAW)
    assert (found.units, found.useful, found.computed, found.arrived) == (8, 2.0, 2.75, 2.75)
    alone = timing(device, job, DRAW)
    assert (alone.units, alone.useful) == (11, 2.75)
    assert timing(device, job._replace(indivisible=4, deadline=0.75), DRAW).units == 0
    assert timing(device, job._replace(indivisible=4, deadline=3.0), DRAW).units is None


@pytest.mark.parametrize("pace", CONSTANT.values(), ids=CONSTANT)
@given(job=jobs(), each=together)
def test_for_a_constant_pace_reach_is_what_the_clock_does(pace: Pace | None, job: Job, each: int) -> None:
    device = Device(flops=3.0, up=11.0, down=7.0, latency=0.1, overhead=0.2, pace=pace)
    whole = timing(device, job._replace(deadline=math.inf), DRAW).arrived
    for share in (0.0, 0.3, 0.5, 0.8, 0.95, 1.0):
        asked = job._replace(deadline=share * whole, indivisible=each)
        units = timing(device, asked, DRAW).units
        done = len(job.work) if units is None else units
        assert reach(device, asked).tolist() == [float(u < done) for u in range(len(job.work))]


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
@given(job=jobs(), each=together)
def test_a_unit_is_reached_when_the_last_that_it_counts_with_is(pace: Pace | None, job: Job, each: int) -> None:
    device = Device(flops=3.0, up=11.0, pace=pace)
    alone, n = reach(device, job).tolist(), len(job.work)
    expected = [alone[min((u // each + 1) * each, n) - 1] for u in range(n)]
    assert reach(device, job._replace(indivisible=each)).tolist() == expected
