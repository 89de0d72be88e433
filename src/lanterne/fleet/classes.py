"""Many devices in little memory: a byte for the kind of each, a number for what all differ in, devices when asked for.

Nothing here is an object per client. A million devices that differ in speed and in both links take 25 MB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import FleetError
from lanterne.fleet.device import NUMBERS, Device, Floats

Mask = NDArray[np.bool_]


class Windows:
    """When each client can be reached: all traces in two flat arrays. Client `c` has the trace `c mod traces`.

    Args:
        starts: of the windows, seconds, trace by trace, `[windows]`.
        ends: of the windows, likewise.
        first: which window is the first of each trace, and how many there are in all, `[traces + 1]`.
        period: seconds after which each trace repeats, `[traces]`.
    """

    def __init__(self, starts: Floats, ends: Floats, first: NDArray[np.int64], period: Floats) -> None:
        self.starts, self.ends, self.first, self.period = starts, ends, first, period

    def __len__(self) -> int:
        """How many traces there are."""
        return len(self.period)

    def take(self, traces: NDArray[np.int64]) -> Windows:
        """Some of the traces, in the order given.

        Args:
            traces: their numbers.
        """
        lengths = np.diff(self.first)[traces]
        first = np.concatenate([[0], np.cumsum(lengths)])
        which = np.repeat(self.first[traces] - first[:-1], lengths) + np.arange(first[-1])
        return Windows(self.starts[which], self.ends[which], first, self.period[traces])

    def of(self, client: int) -> dict[str, Any]:
        """What a device says of its times.

        Args:
            client: its number.
        """
        trace = client % len(self)
        own = slice(self.first[trace], self.first[trace + 1])
        pairs = zip(self.starts[own].tolist(), self.ends[own].tolist(), strict=True)
        return {"available": tuple(pairs), "period": float(self.period[trace])}

    def online(self, t: float) -> Mask:
        """Whether each trace says that its device can be reached at `t` seconds, as `Device.online` does.

        Args:
            t: seconds.
        """
        phase = np.repeat(self._phase(t), np.diff(self.first))
        return self._count((self.starts <= phase) & (phase < self.ends)) > 0

    def returns(self, t: float) -> Floats:
        """When the next window of each trace begins, up to rounding; inf if none ever does.

        Args:
            t: seconds.
        """
        phase = self._phase(t)
        following = self.first[:-1] + self._count(self.starts < np.repeat(phase, np.diff(self.first)))
        ahead, some = following < self.first[1:], self.first[:-1] < self.first[1:]
        start = np.full(len(self), math.inf)
        start[some] = self.period[some] + self.starts[self.first[:-1][some]]
        start[ahead] = self.starts[following[ahead]]
        back: Floats = (t - phase) + start
        return back

    def _phase(self, t: float) -> Floats:
        """The time that each trace's windows speak of."""
        return np.where(np.isfinite(self.period), np.remainder(t, self.period), t)

    def _count(self, windows: Mask) -> NDArray[np.int32]:
        """How many of some windows belong to each trace."""
        so_far = np.zeros(len(windows) + 1, dtype=np.int32)
        np.cumsum(windows, out=so_far[1:])
        counts: NDArray[np.int32] = so_far[self.first[1:]] - so_far[self.first[:-1]]
        return counts


class Classes(Sequence[Device]):
    """Many devices of few kinds, which may differ in some numbers and in when they can be reached.

    Args:
        kinds: the row of `table` of each client, `[clients]`.
        table: a device of each kind.
        columns: numbers in which all devices differ, by the name of the field, each `[clients]`; they take the place of
            the kind's.
        windows: when each can be reached, in place of the kind's.

    Raises:
        FleetError: for a number that no device has, with the client.

    Examples:
        >>> devices = Classes(np.array([0, 1, 0], dtype=np.uint8), [Device(tier="a"), Device(tier="b")],
        ...                   {"flops": np.array([1e9, 2e9, 3e9])})
        >>> devices[2].tier, devices[2].flops
        ('a', 3000000000.0)
    """

    def __init__(
        self,
        kinds: NDArray[np.integer[Any]],
        table: Sequence[Device],
        columns: Mapping[str, Floats] | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.kinds, self.table, self.columns, self.windows = kinds, tuple(table), dict(columns or {}), windows
        for name, column in self.columns.items():
            if name not in NUMBERS or column.shape != kinds.shape:
                raise FleetError(
                    f"A column {name!r} of shape {column.shape} does not fit {len(kinds)} devices. "
                    f"Give one number per client for one of {', '.join(NUMBERS)}."
                )
            self._check(name, column)

    def _check(self, name: str, column: Floats) -> None:
        """Refuse numbers that no device has: a device made of the least, of the largest or of no number at all says."""
        for suspect in (int(column.argmin()), int(column.argmax())):
            try:
                self[suspect]
            except FleetError as error:
                raise FleetError(f"Client {suspect}: {error}") from error

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self.kinds)

    def __getitem__(self, client):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """The device of a client, made when it is asked for."""
        device = self.table[self.kinds[client]]
        if not self.columns and self.windows is None:
            return device
        numbers: dict[str, Any] = {name: float(column[client]) for name, column in self.columns.items()}
        times = {} if self.windows is None else self.windows.of(range(len(self))[client])
        return replace(device, **(numbers | times))

    def always_there(self) -> Classes:
        """The same devices, none of which ever goes away."""
        table = [d if d.available is None else replace(d, available=None) for d in self.table]
        return Classes(self.kinds, table, self.columns)

    def of_kind(self, kind: int) -> NDArray[np.int64]:
        """The clients of a kind, ascending.

        Args:
            kind: a row of the table.
        """
        return np.flatnonzero(self.kinds == kind)

    def online(self, t: float) -> Mask:
        """Whether each device can be reached at `t` seconds, `[clients]`.

        Args:
            t: seconds.
        """
        if self.windows is not None:
            return np.resize(self.windows.online(t), len(self))
        there: Mask = np.array([device.online(t) for device in self.table])[self.kinds]
        return there

    def returns(self, t: float) -> float:
        """When the next of those comes who cannot be reached at `t` seconds; inf if none ever does.

        Args:
            t: seconds.
        """
        if self.windows is None:
            kinds = [self.table[kind] for kind in np.unique(self.kinds)]
            return min((device.returns(t) for device in kinds if not device.online(t)), default=math.inf)
        traces = min(len(self.windows), len(self))
        times = np.where(self.windows.online(t)[:traces], math.inf, self.windows.returns(t)[:traces])
        for client in np.argsort(times, kind="stable"):
            back = self[client].returns(t) if math.isfinite(times[client]) else math.inf
            if math.isfinite(back) or math.isinf(times[client]):
                return float(back)
        return math.inf
