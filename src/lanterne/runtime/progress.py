"""How far a call has come by some moment: units finished, bytes through its link, seconds and FLOPs spent.

A transfer that is cut off has carried bytes in proportion to its time; a unit that is cut off counts as not done.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lanterne.fleet import Draw, Fleet
from lanterne.runtime.call import Call


class Spent(NamedTuple):
    """Seconds and FLOPs that an address has spent on a call."""

    seconds: float
    flops: float


def finished(call: Call, fleet: Fleet, end: float) -> int:
    """How many units of a call's work are done at `end`.

    Args:
        call: one that has begun.
        fleet: on which it runs.
        end: seconds of virtual time.
    """
    most = len(call.work) if call.units is None else call.units
    if end >= call.computed or not most:  # by the clock's own sums: a difference of sums may miss the last unit
        return most
    to = call.request.to
    if isinstance(to, int):
        times = fleet.devices[to].finished(call.work, Draw(fleet.seed, to, call.round, call.nth))
    else:
        times = call.work.cumulative / fleet.server.flops
    return min(most, int(np.searchsorted(times, end - call.downloaded, side="right")))


def spent(call: Call, fleet: Fleet, end: float) -> Spent:
    """What an address has spent on a call by `end`; a device that went away stopped then.

    Args:
        call: one that has begun.
        fleet: on which it runs.
        end: seconds of virtual time.
    """
    end = min(end, call.until)
    units = finished(call, fleet, end)
    return Spent(max(end - call.start, 0.0), float(call.work.cumulative[units - 1]) if units else 0.0)


def received(call: Call, latency: float, end: float) -> float:
    """The share of a call's download that is through at `end`."""
    return _share(call.start + latency, call.downloaded, min(end, call.until))


def sent(call: Call, latency: float, end: float) -> float:
    """The share of a call's upload that is through at `end`."""
    return _share(call.computed + latency, call.uploaded, min(end, call.until))


def _share(begin: float, complete: float, end: float) -> float:
    if end >= complete:
        return 1.0
    return max(end - begin, 0.0) / (complete - begin) if complete > begin else 0.0
