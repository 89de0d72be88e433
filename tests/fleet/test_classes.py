"""Devices in columns are the devices that they describe, and their windows are those of devices asked one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lanterne.errors import FleetError
from lanterne.fleet import Classes, Device, Fleet, Slower, Windows

KINDS = np.array([0, 1, 1, 0, 1], dtype=np.uint8)
TABLE = [Device(tier="a", memory=7.0), Device(tier="b", latency=0.5, pace=Slower(2.0))]


def windows_of(devices: list[Device]) -> Windows:
    """The same times in flat arrays."""
    pairs = [d.available or () for d in devices]
    first = np.cumsum([0, *map(len, pairs)])
    flat = np.array([p for own in pairs for p in own], dtype=np.float64).reshape(-1, 2)
    return Windows(flat[:, 0], flat[:, 1], first, np.array([d.period for d in devices]))


@st.composite
def away(draw: st.DrawFn) -> Device:
    """A device with some windows, or none, that repeat or do not."""
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=8)))
    pairs = tuple(zip(map(float, edges[::2]), map(float, edges[1::2]), strict=False))
    period = draw(st.sampled_from([math.inf, 40.0, 41.5]))
    return Device(available=pairs, period=period)


# ----------------------------------------------------------------------------------------------------------- columns
def test_columns_take_the_place_of_the_kinds_numbers() -> None:
    flops, up = np.arange(1.0, 6.0), np.arange(11.0, 16.0)
    devices = Classes(KINDS, TABLE, {"flops": flops, "up": up})
    for c in range(5):
        kind = TABLE[KINDS[c]]
        found = devices[c]
        assert (found.flops, found.up) == (flops[c], up[c])
        assert (found.tier, found.memory, found.latency, found.pace) == (
            kind.tier,
            kind.memory,
            kind.latency,
            kind.pace,
        )
        assert type(found.flops) is float
    assert [d.up for d in devices] == up.tolist()
    assert devices[-1].flops == 5.0
    assert devices[np.int64(2)].flops == 3.0
    with pytest.raises(IndexError):
        devices[5]
    assert Fleet(devices).always_available
    assert {tier: who.tolist() for tier, who in Fleet(devices).members.items()} == {"a": [0, 3], "b": [1, 2, 4]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"flops": np.array([1.0, 2.0, 0.0, 1.0, 1.0])}, r"Client 2: flops of a device is 0\.0"),
        ({"down": np.array([1.0, math.nan, 1.0, 1.0, 1.0])}, "Client 1: down of a device is nan"),
        ({"latency": np.array([1.0, 2.0, 3.0, math.inf, 1.0])}, "Client 3: latency of a device is inf"),
        ({"dropout": np.array([0.0, 0.0, 0.0, 0.0, 1.5])}, "Client 4: dropout of a device is 1.5"),
        ({"flops": np.ones(4)}, r"A column 'flops' of shape \(4,\) does not fit 5 devices"),
        ({"speed": np.ones(5)}, "A column 'speed' .* Give one number per client for one of flops, memory"),
    ],
)
def test_impossible_columns_are_refused(columns: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        Classes(KINDS, TABLE, columns)


# ----------------------------------------------------------------------------------------------------------- windows
@given(st.lists(away(), min_size=1, max_size=6), st.integers(1, 9), st.floats(0, 200))
@example([Device(available=((4.8, 7.1),), period=7.1)], 1, 6471.895115742501)  # a sum that falls short of the window
def test_windows_are_those_of_devices_asked_one_by_one(own: list[Device], clients: int, t: float) -> None:
    devices = Classes(np.zeros(clients, dtype=np.uint8), [Device()], windows=windows_of(own))
    plain = [own[c % len(own)] for c in range(clients)]
    assert [d.available for d in devices] == [d.available for d in plain]
    assert [d.period for d in devices] == [d.period for d in plain]
    lazy, listed = Fleet(devices), Fleet(plain)
    for now in (t, math.floor(t)):  # windows begin and end at whole seconds
        there = [d.online(now) for d in plain]
        assert lazy.online(now).tolist() == listed.online(now).tolist() == there
        back = min((d.returns(now) for d in plain if not d.online(now)), default=math.inf)
        assert lazy.returns(now) == listed.returns(now) == back


def test_kinds_with_times_of_their_own_are_asked_once_each() -> None:
    table = [Device(), Device(available=((5.0, 6.0),)), Device(available=((1.0, 2.0),))]
    fleet = Fleet(Classes(np.array([1, 0, 1], dtype=np.uint8), table))
    assert not fleet.always_available
    assert [fleet.online(t).tolist() for t in (0.0, 5.5)] == [[False, True, False], [True, True, True]]
    assert (fleet.returns(0.0), fleet.returns(5.5), fleet.returns(7.0)) == (5.0, math.inf, math.inf)


def test_taking_traces_keeps_each_whole() -> None:
    own = [Device(available=p) for p in [((1.0, 2.0), (3.0, 4.0)), (), ((5.0, 6.0),)]]
    taken = windows_of(own).take(np.array([2, 0, 1, 2]))
    assert [taken.of(c)["available"] for c in range(4)] == [own[i].available for i in (2, 0, 1, 2)]
    assert len(taken) == 4


def test_who_is_there_is_who_is_there_whatever_holds_them() -> None:
    always = Fleet(Classes(KINDS, TABLE))
    assert always.online(3.0).tolist() == [True] * 5
    assert always.returns(3.0) == math.inf
    assert Fleet([Device(tier="x"), Device(tier="y")]).members["y"].tolist() == [1]
    absent = Fleet(Classes(np.zeros(2, dtype=np.uint8), TABLE))
    assert list(absent.members) == ["a"]
