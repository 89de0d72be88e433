"""Fleets: who shares a lane, how much memory a million devices take, and what a fleet cannot be."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from lanterne.errors import FleetError
from lanterne.fleet import Classes, Device, Fleet, Server, preset


def test_the_fleet_imports_no_torch() -> None:
    code = "import sys, lanterne.fleet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_million_devices_take_a_byte_each() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fleet = preset("stragglers", share=0.3).build(1_000_000, 0, 5)
        held = tracemalloc.get_traced_memory()[0] - before
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert held < 2e6
    assert peak < 50e6  # a permutation of a million numbers, while it is built
    assert len(fleet) == 1_000_000
    assert fleet.devices[0] in fleet.devices.table  # type: ignore[attr-defined]
    assert fleet.always_available


def test_classes_are_a_sequence_of_devices() -> None:
    table = [Device(tier="a"), Device(tier="b")]
    classes = Classes(np.array([0, 1, 1, 0], dtype=np.uint8), table)
    assert [d.tier for d in classes] == ["a", "b", "b", "a"]
    assert len(classes) == 4
    assert classes[-1] is table[0]
    with pytest.raises(IndexError):
        classes[4]


def test_replicas_share_machines_and_clients_share_nothing() -> None:
    shared, own = Fleet([Device()] * 3, server=Server(machines=2)), Fleet([Device()] * 3)
    assert [shared.lane(("server", r)) for r in range(4)] == [("machine", 0), ("machine", 1)] * 2
    assert [own.lane(("server", r)) for r in range(2)] == [("server", 0), ("server", 1)]
    assert [shared.lane(c) for c in range(3)] == [0, 1, 2]
    assert len({shared.lane(0), shared.lane(("server", 0)), own.lane(("server", 0))}) == 3


def test_one_device_that_goes_away_is_noticed() -> None:
    assert Fleet([Device()] * 3).always_available
    assert not Fleet([Device(), Device(available=((0.0, 1.0),))]).always_available
    table = [Device(), Device(available=((0.0, 1.0),))]
    assert not Fleet(Classes(np.zeros(3, dtype=np.uint8), table)).always_available


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fleet([]), "no devices"),
        (lambda: Fleet([Device()], detection=-1.0), r"detection of the fleet is -1\.0 seconds"),
        (lambda: Fleet([Device()], rejoin=math.inf), "rejoin of the fleet is inf seconds"),
        (lambda: Fleet([Device()], rejoin=math.nan), "rejoin of the fleet is nan"),
        (lambda: Server(flops=1e-9), r"server's flops are 1e-09, so slow that one FLOP takes more than 1000 seconds"),
        (lambda: Server(flops=0.0), r"server's flops are 0\.0\. Give a number above 0, or inf"),
        (lambda: Server(flops=math.nan), "server's flops are nan"),
        (lambda: Server(machines=0), "server has 0 machines. Give 1 or more, or leave it out"),
    ],
)
def test_impossible_fleets_are_refused(make: object, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        make()  # type: ignore[operator]
