"""When replies arrive and what they hold: closed forms, brute force over the units, and the line is in time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.jobs import CONSTANT, DRAW, PACES, devices, jobs, steps, upload, works
from lanterne.fleet import Device, Draw, ExponentialLayers, Job, Loaded, Pace, Timing, Work, reach, timing

# By hand: 0.5 + 12/100 = 0.62 s down; blocks of 10 and 20 FLOPs forward, 40 and 20 back, at 100 FLOP/s and 0.25 s per
# batch, end at 0.35, 0.55, 0.95, 1.15 s after that; a reply of 0, 30, 80 bytes takes 0.5, 0.5 + 0.6, 0.5 + 1.6 s.
DEVICE = Device(flops=100.0, down=100.0, up=50.0, latency=0.5, overhead=0.25)
WORK = Work((10.0, 20.0, 40.0, 20.0), (False, False, True, True), (True, False, False, False))
JOB = Job(12, WORK, upload([30, 50], 2))
WHOLE = 0.62 + 1.15 + 0.5 + 1.6


def near(found: Timing, downloaded: float, useful: float, computed: float, arrived: float, units: int | None) -> None:
    assert found[:4] == pytest.approx((downloaded, useful, computed, arrived), rel=1e-14)
    assert found.units == units


# ---------------------------------------------------------------------------------------------------- closed forms
def test_without_a_deadline_everything_is_done() -> None:
    near(timing(DEVICE, JOB, DRAW), 0.62, 1.77, 1.77, WHOLE, None)


@pytest.mark.parametrize(
    ("deadline", "useful", "computed", "units"),
    [
        (3.5, 0.62 + 0.95, 3.5 - 1.1, 3),  # the whole would be there at 3.87; with one block less 30 bytes are sent
        (2.7, 0.62 + 0.95, 2.7 - 1.1, 3),  # 1.57 + 1.1 = 2.67 is just in time
        (2.6, 0.62 + 0.55, 2.6 - 0.5, 2),  # 2.67 is not: an empty reply
        (1.3, 0.62, 1.3 - 0.5, 0),  # there is no time for the first unit, which ends at 0.97, and the way back
    ],
)
def test_a_device_that_is_interrupted_works_until_it_has_to_send(
    deadline: float, useful: float, computed: float, units: int
) -> None:
    near(timing(DEVICE, JOB._replace(deadline=deadline), DRAW), 0.62, useful, computed, deadline, units)


@pytest.mark.parametrize(
    ("deadline", "useful", "units"),
    [(1.7, 0.62 + 0.95, 3), (1.2, 0.62 + 0.55, 2), (1.0, 0.62 + 0.35, 1), (0.7, 0.62, 0)],
)
def test_where_the_upload_may_end_later_only_the_computation_is_cut(deadline: float, useful: float, units: int) -> None:
    found = timing(DEVICE, JOB._replace(deadline=deadline, stop="compute"), DRAW)
    near(found, 0.62, useful, deadline, deadline + 0.5 + JOB.up(units) / 50, units)


def test_a_request_without_bytes_has_been_on_its_way_while_it_waited() -> None:
    nothing = JOB._replace(down=0)
    near(timing(DEVICE, nothing, DRAW, 0.2), 0.5, 1.65, 1.65, 1.65 + 2.1, None)
    near(timing(DEVICE, nothing, DRAW, 3.0), 3.0, 4.15, 4.15, 4.15 + 2.1, None)
    near(timing(DEVICE, JOB, DRAW, 3.0), 3.62, 4.77, 4.77, 4.77 + 2.1, None)


def test_a_device_that_need_not_answer_is_done_when_it_is_done() -> None:
    silent = JOB._replace(answers=False)
    near(timing(DEVICE, silent, DRAW), 0.62, 1.77, 1.77, 1.77, None)
    near(timing(DEVICE, silent._replace(deadline=1.2), DRAW), 0.62, 0.62 + 0.55, 1.2, 1.2, 2)


@pytest.mark.parametrize("waited", [0.0, 0.4])
def test_a_deadline_before_the_download_ends_everything_there(waited: float) -> None:
    """Nothing is done and nothing comes back: there is no model to do it with."""
    end = max(0.3, waited)
    for stop in ("arrive", "compute"):
        found = timing(DEVICE, JOB._replace(deadline=0.3, stop=stop), DRAW, waited)
        near(found, waited + 0.62, end, end, end, 0)
        assert not found.heard


def test_who_could_not_even_send_an_empty_reply_in_time_sends_none() -> None:
    empty = 0.62 + 0.5 + JOB.up(0) / 50
    assert timing(DEVICE, JOB._replace(deadline=empty), DRAW).heard
    late = timing(DEVICE, JOB._replace(deadline=empty - 1e-9), DRAW)
    assert (late.heard, late.arrived) == (False, empty - 1e-9)
    assert timing(DEVICE, JOB._replace(deadline=empty - 1e-9, stop="compute"), DRAW).heard


def test_waiting_shifts_the_work_but_not_the_deadline() -> None:
    near(timing(DEVICE, JOB, DRAW, 2.0), 2.62, 3.77, 3.77, 2 + WHOLE, None)
    near(timing(DEVICE, JOB._replace(deadline=WHOLE), DRAW, 1.0), 1.62, 1.62 + 0.95, WHOLE - 1.1, WHOLE, 3)


def test_a_job_without_work_takes_its_links() -> None:
    near(timing(DEVICE, Job(12, Work(), lambda k: 5), DRAW), 0.62, 0.62, 0.62, 0.62 + 0.5 + 0.1, None)
    late = timing(DEVICE, Job(12, Work(), lambda k: 5, deadline=1.0), DRAW)
    assert (late.arrived, late.units) == (1.0, 0)


# ---------------------------------------------------------------------------------------------------- on the line
@given(devices, jobs())
def test_exactly_at_the_deadline_is_in_time_and_a_hair_later_is_not(device: Device, job: Job) -> None:
    whole = timing(device, job._replace(deadline=math.inf), DRAW)
    line = whole.arrived if job.stop == "arrive" else whole.computed
    assert timing(device, job._replace(deadline=line), DRAW) == whole
    late = timing(device, job._replace(deadline=math.nextafter(line, -math.inf)), DRAW)
    assert late.units is not None
    assert late.units < len(job.work)


def by_trying(device: Device, job: Job, draw: Draw, waited: float) -> int | None:
    """The most units that fit, each number of units tried; None if all do."""
    start = waited + device.latency + job.down / device.down
    ends = [0.0, *device.finished(job.work, draw).tolist()]

    def fits(k: int, reply: int | None) -> bool:
        back = device.latency + job.up(reply) / device.up if job.stop == "arrive" else 0.0
        return start + ends[k] + back <= job.deadline

    if fits(len(job.work), None):
        return None
    return max((k for k in range(len(job.work)) if fits(k, k)), default=0)


@given(devices, jobs(), st.floats(0, 5), st.integers(0, 3))
def test_the_units_in_time_are_those_found_by_trying_all(device: Device, job: Job, waited: float, nth: int) -> None:
    draw = Draw(1, 2, nth, nth)
    found = timing(device, job, draw, waited)
    assert found.units == by_trying(device, job, draw, waited)


@given(devices, jobs(), st.floats(0, 5))
def test_times_are_in_order_and_nobody_is_heard_late(device: Device, job: Job, waited: float) -> None:
    found = timing(device, job, DRAW, waited)
    if not found.heard:
        assert found.useful <= found.computed == found.arrived == max(job.deadline, waited)
        assert found.units == 0
        return
    assert found.downloaded <= found.useful <= found.computed <= found.arrived
    if found.units is None:
        assert found.useful == found.computed
    elif job.stop == "arrive":
        assert found.arrived == max(job.deadline, waited)
    else:
        assert found.computed == max(job.deadline, found.downloaded)


@given(devices, jobs("arrive"), st.floats(0, 10))
def test_more_time_never_means_less_work(device: Device, job: Job, more: float) -> None:
    def units(deadline: float) -> int:
        found = timing(device, job._replace(deadline=deadline), DRAW).units
        return len(job.work) if found is None else found

    assert units(job.deadline) <= units(job.deadline + more)
    assert units(job.deadline) <= units(math.inf) == len(job.work)


def test_the_wrong_variant_forgets_the_upload() -> None:
    job = JOB._replace(deadline=2.6)
    assert timing(DEVICE, job, DRAW).units == 2
    assert timing(DEVICE, job._replace(stop="compute"), DRAW).units is None


# ---------------------------------------------------------------------------------------------------- to the bit
@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
@settings(max_examples=30)
@given(work=works, flops=st.floats(0.01, 100), overhead=st.floats(0, 1), nth=st.integers(0, 9))
def test_the_end_of_the_last_unit_is_the_end_of_all(
    pace: Pace | None, work: Work, flops: float, overhead: float, nth: int
) -> None:
    device, draw = Device(flops=flops, overhead=overhead, pace=pace), Draw(0, 1, nth, nth)
    finished = device.finished(work, draw)
    assert finished.shape == (len(work),)
    assert (finished[1:] >= finished[:-1]).all()
    assert device.whole(work, draw) == finished[-1]
    assert device.finished(work, draw).tolist() == finished.tolist()  # a function of the draw alone


@pytest.mark.parametrize("pace", CONSTANT.values(), ids=CONSTANT)
@settings(max_examples=40)
@given(job=jobs(), numbers=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 1), st.floats(0, 1)))
def test_for_a_constant_pace_reach_is_what_the_clock_does(
    pace: Pace | None, job: Job, numbers: tuple[float, float, float, float]
) -> None:
    """Exactly 0 or 1, and 1 for whoever needs exactly the deadline: every unit's line is tried, and a hair off it."""
    flops, up, latency, overhead = numbers
    device = Device(flops=flops, up=up, down=7.0, latency=latency, overhead=overhead, pace=pace)
    start, ends = latency + job.down / 7.0, device.finished(job.work, DRAW)
    for k in range(len(job.work)):
        reply = k + 1 if k + 1 < len(job.work) else None
        back = latency + job.up(reply) / up if job.stop == "arrive" else 0.0
        line = start + float(ends[k]) + back
        for deadline in (line, math.nextafter(line, -math.inf), math.nextafter(line, math.inf)):
            asked = job._replace(deadline=deadline)
            units = timing(device, asked, DRAW).units
            done = len(job.work) if units is None else units
            assert reach(device, asked).tolist() == [float(u < done) for u in range(len(job.work))]
            assert (done > k) or deadline < line


def test_reach_of_nothing_is_nothing() -> None:
    assert reach(DEVICE, Job(12, Work(), lambda k: 5, 1.0)).shape == (0,)
    assert reach(DEVICE, Job(0, steps(2), lambda k: 0)).tolist() == [1.0] * 4


def test_reach_never_increases_even_if_uploads_shrink() -> None:
    """Who sent the large reply of two units in time has finished one; the clock only meets uploads that grow."""
    job = Job(0, steps(2), lambda k: {1: 90, 2: 10, 3: 95}.get(4 if k is None else k, 0), 5.0)
    q = reach(Device(up=20.0, pace=ExponentialLayers(0.3)), job)
    assert (q[1:] <= q[:-1]).all()
    assert q.tolist() != [1.0] * 4


def test_work_that_takes_no_time_needs_none_under_any_load() -> None:
    work = Work((0.0, 0.0, 5.0), (False, True, True), (True, False, False))
    job = Job(10, work, lambda k: 0, deadline=0.25, stop="compute")
    device = Device(down=40.0, pace=Loaded(4.0))
    assert reach(device, job).tolist() == [1.0, 1.0, 0.0]
    assert timing(device, job, DRAW).units == 2
    assert reach(device, job._replace(deadline=0.2)).tolist() == [0.0, 0.0, 0.0]
