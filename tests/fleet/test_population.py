"""What is asked of a whole fleet at once is what its devices answer one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fleet.jobs import DRAW, PACES, steps, upload
from lanterne.fleet import (
    Classes,
    Device,
    Job,
    Loaded,
    NormalTime,
    UniformDepth,
    population,
    reach,
    timing,
)
from lanterne.fleet.population import anybody_reaches, seconds, told_apart

BLOCKS = 3
JOB = Job(5, steps(BLOCKS, 2), upload([4, 10, 20], BLOCKS))
N = 23


def fleet(table: list[Device], columns: bool = True) -> Classes:
    g = np.random.Generator(np.random.PCG64(3))
    numbers = {
        "flops": g.uniform(1, 9, N), "down": g.uniform(1, 9, N), "up": g.uniform(1, 9, N),
        "latency": g.uniform(0, 1, N), "overhead": g.uniform(0, 1, N), "memory": g.uniform(1, 9, N),
    }  # fmt: skip
    return Classes(g.integers(len(table), size=N, dtype=np.uint8), table, numbers if columns else None)


def whole(device: Device) -> float:
    """Expected seconds, by the words of the documentation."""
    return device.latency + 5 / device.down + device.expected(JOB.work) + device.latency + JOB.up(None) / device.up


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("at_once", [4, 1 << 16])
def test_seconds_are_those_of_each_device(columns: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "_AT_ONCE", at_once)
    table = [Device(flops=2.0), Device(flops=3.0, pace=NormalTime(0.9)), Device(pace=Loaded(5.0))]
    devices = fleet(table, columns)
    assert seconds(devices, JOB, whole).tolist() == pytest.approx([whole(d) for d in devices])
    assert seconds(told_apart(list(devices)), JOB, whole).tolist() == [whole(d) for d in devices]


def test_the_steady_are_timed_as_the_clock_times_them() -> None:
    """To the bit, so that a default deadline is met by whom it was made for."""
    devices = fleet([Device(), Device(tier="other")])
    assert seconds(devices, JOB, whole).tolist() == [timing(d, JOB, DRAW).arrived for d in devices]


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_somebody_reaches_what_one_of_them_reaches(pace: object, columns: bool) -> None:
    kind = Device(flops=4.0, down=5.0, up=5.0, latency=0.5)
    devices = fleet([kind, replace(kind, pace=pace)], columns)  # type: ignore[arg-type]
    several = set()
    for deadline in (0.5, 2.0, 4.0, 6.0, 9.0, 30.0):
        for unit in (0, 3, 7, 11):
            job = replace_deadline(deadline)
            found = anybody_reaches(devices, job, unit)
            assert (
                found
                == any(reach(d, job)[unit] > 0 for d in devices)
                == anybody_reaches(told_apart(list(devices)), job, unit)
            )
            several.add(found)
    assert several == {True, False}


def replace_deadline(deadline: float) -> Job:
    return JOB._replace(deadline=deadline)


def test_nobody_asked_is_a_kind_that_nobody_is_of() -> None:
    """A table may hold kinds that this fleet has no device of: they must not answer for it."""
    quick = Device(flops=math.inf)
    slow = Device(flops=1e-3)
    for columns in (None, {"down": np.ones(2)}):
        devices = Classes(np.zeros(2, dtype=np.uint8), [slow, quick], columns)
        assert not anybody_reaches(devices, replace_deadline(50.0), 5)
        assert seconds(devices, JOB, whole).min() > 1e3


def test_the_best_of_all_numbers_is_nobodys() -> None:
    """One device has the speed, another the link: together they would be in time, alone neither is."""
    columns = {"flops": np.array([100.0, 1.0]), "down": np.array([0.1, 100.0])}
    devices = Classes(np.zeros(2, dtype=np.uint8), [Device()], columns)
    job = replace_deadline(5.0)
    assert reach(replace(devices[0], down=100.0), job)[5] > 0
    assert not anybody_reaches(devices, job, 5)


def test_a_depth_is_timed_by_its_own_pace() -> None:
    devices = fleet([Device(pace=UniformDepth(2.0, 1, 3))])
    assert seconds(devices, JOB, whole).tolist() == [whole(d) for d in devices]


def test_kinds_of_a_list_are_its_different_objects() -> None:
    a, b = Device(flops=1.0), Device(flops=2.0, available=((0.0, 1.0),))
    found = told_apart([a, b, a, a])
    assert found.kinds.tolist() == [0, 1, 0, 0]
    assert found.table == (a, b)
    assert told_apart(found) is found
    assert [d.available for d in found.always_there()] == [None] * 4
    lazy = Classes(found.kinds, found.table, {"up": np.arange(1.0, 5.0)})
    assert [d.up for d in lazy.always_there()] == [1.0, 2.0, 3.0, 4.0]
