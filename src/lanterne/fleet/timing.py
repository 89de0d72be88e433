"""When a reply arrives and how much of the work it holds: from bytes, FLOPs and the device alone.

`t = latency + down bytes / down + compute + latency + up bytes / up`. All times are counted from the dispatch, so that
who is in time does not depend on how large the clock has grown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lanterne.fleet.device import Device, Draw, Floats, TimeLeft, Work


class Job(NamedTuple):
    """A request as a device sees it.

    Attributes:
        down: bytes to the device.
        work: its units.
        up: bytes from the device if it stops after so many units; None asks for the whole reply.
        deadline: seconds after dispatch.
        stop: whether the reply's arrival has to meet the deadline, or only the end of the computation.
        indivisible: so many units in a row count only together.
        answers: whether the device sends anything when it is done, be it an empty reply.
    """

    down: int
    work: Work
    up: Callable[[int | None], int]
    deadline: float = math.inf
    stop: str = "arrive"
    indivisible: int = 1
    answers: bool = True


class Timing(NamedTuple):
    """Seconds after dispatch.

    Attributes:
        downloaded: when the download ends.
        useful: when the last unit ends that was finished.
        computed: when the device stops computing.
        arrived: when the reply is there, or the deadline at which the device gave up.
        units: how many units were finished; None is all.
        heard: whether anything comes back. A device that has not received the request by its deadline has nothing to
            send, and one that could not even send an empty reply in time sends none.
    """

    downloaded: float
    useful: float
    computed: float
    arrived: float
    units: int | None
    heard: bool = True


def timing(device: Device, job: Job, draw: Draw, waited: float = 0.0) -> Timing:
    """When a device would reply, and with what.

    A device that its deadline interrupts works until it has to send, sends the units that it has finished, and is heard
    exactly at the deadline.

    Args:
        device: its numbers.
        job: what is asked.
        draw: where its random durations belong.
        waited: seconds between the dispatch and the moment at which the device could begin. A request that brings no
            bytes has been on its way meanwhile.
    """
    downloaded = _downloaded(device, job, waited)
    computed = downloaded + device.whole(job.work, draw)
    whole = computed + _upload(device, job, None)
    if (whole if job.stop == "arrive" else computed) <= job.deadline:
        return Timing(downloaded, computed, computed, whole, None)
    end = max(job.deadline, waited)
    if downloaded + (_upload(device, job, 0) if job.stop == "arrive" else 0.0) > job.deadline:
        return Timing(downloaded, min(downloaded, end), end, end, 0, heard=False)
    finished = device.finished(job.work, draw)
    units = _units_in_time(device, job, downloaded, finished)
    upload = _upload(device, job, units)
    useful = downloaded + (float(finished[units - 1]) if units else 0.0)
    if job.stop == "arrive":
        return Timing(downloaded, useful, max(useful, end - upload), end, units)
    return Timing(downloaded, useful, end, end + upload, units)


def reach(device: Device, job: Job) -> Floats:
    """For each unit of a job, the probability that it is finished by the deadline, with all that it counts with.

    Args:
        device: its numbers.
        job: what is asked.

    Returns:
        `[units]`, never increasing.
    """
    downloaded = _downloaded(device, job, 0.0)
    n = len(job.work)
    if not n:
        return np.zeros(0)
    after = np.zeros(n)
    if job.stop == "arrive":
        after = np.array([_upload(device, job, k + 1 if k + 1 < n else None) for k in range(n)])
    chances = np.minimum.accumulate(device.reach(job.work, TimeLeft(downloaded, after, job.deadline)))
    together = job.indivisible
    last: Floats = chances[np.minimum((np.arange(n) // together + 1) * together, n) - 1]
    return last


def _downloaded(device: Device, job: Job, waited: float) -> float:
    return waited + device.latency + job.down / device.down if job.down else max(waited, device.latency)


def _upload(device: Device, job: Job, units: int | None) -> float:
    if not job.answers:
        return 0.0
    return device.latency + job.up(units) / device.up


def _units_in_time(device: Device, job: Job, downloaded: float, finished: Floats) -> int:
    """The most units that still arrive in time: the work and the upload grow with them, so a bisection finds them."""

    def fits(k: int) -> bool:
        end = downloaded + (float(finished[k - 1]) if k else 0.0)
        return (end + _upload(device, job, k) if job.stop == "arrive" else end) <= job.deadline

    together = job.indivisible
    low, high = 0, max(len(finished) - 1, 0) // together
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * together):
            low = middle
        else:
            high = middle - 1
    return low * together
