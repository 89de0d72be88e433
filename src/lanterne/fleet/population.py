"""Questions about all devices of a fleet at once: answered once per kind, and by whole arrays where all differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lanterne.fleet.classes import Classes
from lanterne.fleet.device import Device, Floats
from lanterne.fleet.pace import NormalTime
from lanterne.fleet.timing import Job, reach

#: Devices at once: what is computed in between stays small.
_AT_ONCE = 1 << 16


def told_apart(devices: Sequence[Device]) -> Classes:
    """The devices of a fleet by kind; of a list, those that are one object are of one kind.

    Args:
        devices: of a fleet.
    """
    if isinstance(devices, Classes):
        return devices
    kinds = {id(device): device for device in devices}
    number = {name: kind for kind, name in enumerate(kinds)}
    return Classes(np.array([number[id(device)] for device in devices]), list(kinds.values()))


def seconds(devices: Classes, job: Job, one: Callable[[Device], float]) -> Floats:
    """How long each device needs for the whole of a job, `[clients]`.

        t = latency + down bytes / down + (FLOPs / flops + overhead · batches) · mean factor + latency + up bytes / up

    Args:
        devices: of a fleet.
        job: what is asked.
        one: the seconds of one device. It has to follow the equation where a device's pace is None or `NormalTime`.
    """
    times: Floats
    if not devices.columns:
        times = np.array([one(device) for device in devices.table])[devices.kinds]
        return times
    times = np.empty(len(devices))
    for start in range(0, len(devices), _AT_ONCE):
        kinds = devices.kinds[start : start + _AT_ONCE]
        for kind in np.unique(kinds):
            who = start + np.flatnonzero(kinds == kind)
            device = devices.table[kind]
            if isinstance(device.pace, NormalTime | None):
                times[who] = _seconds(device, {name: column[who] for name, column in devices.columns.items()}, job)
            else:
                times[who] = [one(devices[client]) for client in who]
    return times


def _seconds(device: Device, columns: Mapping[str, Floats], job: Job) -> Floats:
    """Seconds of devices of a kind that differ in some numbers."""
    flops, down, up, latency, overhead = (
        columns.get(name, getattr(device, name)) for name in ("flops", "down", "up", "latency", "overhead")
    )
    compute = job.work.total / flops + overhead * job.work.begun
    if isinstance(device.pace, NormalTime):
        compute = compute * device.pace.mean
    whole: Floats = (latency + job.down / down) + compute + (latency + job.up(None) / up)
    return whole


def anybody_reaches(devices: Classes, job: Job, unit: int) -> bool:
    """Whether there is a device that may finish so many units of a job, and one more, by its deadline.

    Args:
        devices: of a fleet.
        job: what is asked.
        unit: which, from 0.
    """

    def may(device: Device) -> bool:
        return bool(reach(device, job)[unit] > 0)

    for kind, device in enumerate(devices.table):
        who = devices.of_kind(kind)
        if not len(who):
            continue
        if not devices.columns:
            if may(device):
                return True
            continue
        # Nobody does what a device with the best of everybody's numbers cannot.
        if may(replace(device, **_best(devices, who))) and any(may(devices[client]) for client in who):
            return True
    return False


def _best(devices: Classes, who: NDArray[np.int64]) -> dict[str, Any]:
    """The best of the numbers in which some devices differ."""
    best = {"flops": np.max, "down": np.max, "up": np.max, "latency": np.min, "overhead": np.min}
    return {name: float(best[name](column[who])) for name, column in devices.columns.items() if name in best}
