"""On the network that was timed, the clock is FedScale's; who gets which entry follows from the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fleet.jobs import DRAW
from fleet.trace_files import BEHAVIOUR, CAPACITY, written
from lanterne.errors import FleetError
from lanterne.fleet import Device, Fleet, Job, Work, preset, timing


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    return {
        "capacity": str(written(tmp_path / "capacity", CAPACITY)),
        "availability": str(written(tmp_path / "availability", BEHAVIOUR)),
    }


def test_a_round_takes_what_fedscale_says(paths: dict[str, str]) -> None:
    """`3 · batch · steps · ms / 1000 + (up + down) / bandwidth`, sizes in kbit, for the network that was timed."""
    forward, batch, count = 5e6, 20, 4
    fleet = preset("fedscale", capacity=paths["capacity"], reference_flops=forward, latency=0.0).build(3, 1, 4)
    step = (forward * batch, 2 * forward * batch)
    job = Job(3000, Work(step * count, (False, True) * count, (True, False) * count), lambda units: 5000)
    found = sorted(timing(fleet.devices[c], job, DRAW).arrived for c in range(3))
    kbit = 8 * (3000 + 5000) / 1000
    wanted = sorted(
        3 * batch * count * float(e["computation"]) / 1000 + kbit / float(e["communication"]) for e in CAPACITY.values()
    )
    assert found == pytest.approx(wanted)


def test_entries_are_dealt_in_an_order_that_follows_from_the_seed(paths: dict[str, str]) -> None:
    def dealt(clients: int, seed: int) -> list[tuple[float, object]]:
        fleet = preset("fedscale", **paths).build(clients, seed, 4)
        return [(d.flops, d.available) for d in (fleet.devices[c] for c in range(clients))]

    once = dealt(8, 1)
    assert once == dealt(8, 1)
    assert once[:2] == dealt(2, 1)
    assert once[3:6] == once[:3]  # after the last, from the first again
    assert max(Counter(once).values()) - min(Counter(once).values()) <= 1
    orders = {tuple(dealt(3, seed)) for seed in range(60)}
    assert len({tuple(flops for flops, _ in order) for order in orders}) == 6
    assert len(orders) > 20  # which time goes with which speed is drawn as well


def test_devices_have_the_numbers_of_one_entry(paths: dict[str, str]) -> None:
    fleet = preset("fedscale", **paths, memory=3e9, dropout=0.1).build(30, 1, 4)
    speeds = {1e3 * 6e8 / float(e["computation"]): 125.0 * float(e["communication"]) for e in CAPACITY.values()}
    for c in range(30):
        device = fleet.devices[c]
        assert device.down == device.up == speeds[device.flops]
        assert (device.memory, device.dropout, device.latency) == (3e9, 0.1, 0.02)
        assert device.period in (518400.0, 259200.0)
    assert not fleet.always_available
    assert isinstance(fleet.devices[0], Device)


def test_without_times_everybody_is_always_there(paths: dict[str, str]) -> None:
    fleet = preset("fedscale", capacity=paths["capacity"]).build(5, 1, 4)
    assert isinstance(fleet, Fleet)
    assert fleet.always_available
    assert fleet.devices[0].available is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": ""}, "'fedscale' needs FedScale's file of capacities. Set capacity to the path"),
        ({"capacity": "nowhere"}, "nowhere cannot be read"),
        ({"availability": "nowhere"}, "nowhere cannot be read"),
        ({"reference_flops": 0}, "reference_flops is 0. Give the FLOPs of one sample"),
        ({"reference_flops": 1e-300}, r"reference_flops is 1e-300\. .* a number from 1e3 to 1e18"),
        ({"reference_flops": 1e308}, r"reference_flops is 1e\+308\. .* a number from 1e3 to 1e18"),
        ({"reference_flops": float("nan")}, "reference_flops is nan"),
    ],
)
def test_wrong_parameters_are_refused(paths: dict[str, str], changes: dict[str, object], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        preset("fedscale", **{**paths, **changes}).build(2, 1, 4)


def test_times_at_which_nobody_is_ever_there_are_refused(tmp_path: Path, paths: dict[str, str]) -> None:
    """Of all clients; where only some never come, the others race."""
    away: dict[int, dict[str, object]] = {c: {"active": [], "inactive": [], "finish_time": 9} for c in range(4)}
    path = str(written(tmp_path / "away", away))
    with pytest.raises(FleetError, match=r"away: nobody is ever there of the entries .* Leave availability out"):
        preset("fedscale", **{**paths, "availability": path}).build(9, 1, 4)
    path = str(written(tmp_path / "once", away | {4: {"active": [2], "inactive": [3], "finish_time": 9}}))
    there = preset("fedscale", **{**paths, "availability": path}).build(5, 1, 4)
    assert there.online(2.5).sum() == 1


def test_the_slowest_and_the_fastest_of_a_file_are_devices(tmp_path: Path) -> None:
    ends = {i: {"computation": c, "communication": k} for i, (c, k) in enumerate([(1e9, 1e-5), (1e-5, 1e9)])}
    path = str(written(tmp_path / "ends", ends))
    for reference in (1e3, 1e18):
        fleet = preset("fedscale", capacity=path, reference_flops=reference).build(2, 1, 4)
        assert all(fleet.devices[c].flops > 0 for c in range(2))


def test_files_given_for_each_other_are_refused(paths: dict[str, str]) -> None:
    with pytest.raises(FleetError, match="Each client has 'computation'"):
        preset("fedscale", capacity=paths["availability"]).build(2, 1, 4)
    with pytest.raises(FleetError, match="Each client has 'active'"):
        preset("fedscale", capacity=paths["capacity"], availability=paths["capacity"]).build(2, 1, 4)
