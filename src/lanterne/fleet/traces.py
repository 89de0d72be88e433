"""FedScale's two trace files, as compact arrays: how fast each device is, and when it can be reached.

Both are pickled dictionaries (SymbioticLab/FedScale, `benchmark/dataset/data/device_info`): of each client

    {"computation": ms per sample of inference, "communication": kbit/s}
    {"active": [s, ...], "inactive": [s, ...], "finish_time": s, "duration": s, "model": text}

and the second says that the client is there from `active[i]` to `inactive[i]`, repeated after `finish_time`.
"""

from __future__ import annotations

import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from lanterne.errors import FleetError
from lanterne.fleet.classes import Windows
from lanterne.fleet.device import Floats
from lanterne.fleet.unpickle import read_pickle

#: Beyond 2^53 seconds a float64 does not count every second.
_LARGEST = 1 << 53
#: ms per sample and kbit/s: from ten nanoseconds to eleven days, from a bit in 100 seconds to a terabit in one.
_LEAST, _MOST = 1e-5, 1e9
#: `repr` itself runs out of stack in lists of lists of lists, and of time where each stands in the next eight times.
_IN_SHORT = reprlib.Repr()
_IN_SHORT.maxlevel, _IN_SHORT.maxlist, _IN_SHORT.maxdict, _IN_SHORT.maxstring = 2, 8, 8, 100


class Capacity(NamedTuple):
    """What the devices of a capacity file can do.

    Attributes:
        computation: milliseconds per sample of inference, `[devices]`.
        communication: kbit/s, `[devices]`.
    """

    computation: Floats
    communication: Floats


def read_capacity(path: str | Path) -> Capacity:
    """FedScale's `client_device_capacity`.

    Args:
        path: of the file.

    Raises:
        FleetError: for what cannot be read, or is no number above 0, with the client.
    """
    return _capacity(*_version(path))


def read_availability(path: str | Path) -> Windows:
    """FedScale's `client_behave_trace`: windows of no length are left out, those that overlap are one.

    Args:
        path: of the file.

    Raises:
        FleetError: for what cannot be read, or makes no times, with the client.
    """
    return _availability(*_version(path))


def _version(path: str | Path) -> tuple[Path, int, int]:
    """A file as it is now. It is read once, for a configuration is checked more often than it is run."""
    path = Path(path).expanduser()
    try:
        status = path.stat()
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error.strerror or error}. Give the path of the file.") from error
    return path, status.st_mtime_ns, status.st_size


def _clients(path: Path, wanted: str) -> dict[Any, Any]:
    """What a file says of each client."""
    found = read_pickle(path)
    if not isinstance(found, dict) or not found:
        what = "an empty dictionary" if found == {} else f"a {type(found).__name__}"
        raise FleetError(f"{path} holds {what}. Give FedScale's dictionary of clients, each with {wanted}.")
    return found


@lru_cache(maxsize=2)
def _capacity(path: Path, changed: int, size: int) -> Capacity:
    del changed, size
    wanted = "'computation' (ms per sample) and 'communication' (kbit/s)"
    clients = _clients(path, wanted)
    numbers = np.empty((2, len(clients)))
    for i, (client, entry) in enumerate(clients.items()):
        for row, name in enumerate(Capacity._fields):
            value = entry.get(name) if isinstance(entry, dict) else None
            if not _is_time(value) or not _LEAST <= value <= _MOST:
                raise FleetError(
                    f"{path}, client {_short(client)}: {name} is {_short(value)}. "
                    f"Each client has {wanted}, both from {_LEAST:g} to {_MOST:g}."
                )
            numbers[row, i] = value
    return Capacity(*numbers)


@lru_cache(maxsize=2)
def _availability(path: Path, changed: int, size: int) -> Windows:
    del changed, size
    wanted = "'active' and 'inactive' (lists of seconds, equally long) and 'finish_time' (seconds)"
    starts: list[float] = []
    ends: list[float] = []
    first, period = [0], []
    for client, entry in _clients(path, wanted).items():
        where = f"{path}, client {_short(client)}"
        known = entry if isinstance(entry, dict) else {}
        active, inactive, finish = (known.get(name) for name in ("active", "inactive", "finish_time"))
        if not isinstance(active, list) or not isinstance(inactive, list) or len(active) != len(inactive):
            raise FleetError(f"{where} is {_short(entry)}. Each client has {wanted}.")
        if not _is_time(finish) or finish == 0:
            raise FleetError(f"{where}: finish_time is {_short(finish)}. Give seconds above 0.")
        pairs = list(zip(active, inactive, strict=True))
        if not all(_is_time(a) and _is_time(b) and a <= b for a, b in pairs):
            raise FleetError(
                f"{where} is active from {_short(active)} to {_short(inactive)}. Give seconds from 0, and let nobody "
                "leave before coming."
            )
        for start, end in sorted((float(a), float(b)) for a, b in pairs):
            if len(starts) > first[-1] and start <= ends[-1]:
                ends[-1] = max(ends[-1], min(end, finish))
            elif start < min(end, finish):
                starts.append(start)
                ends.append(min(end, finish))
        first.append(len(starts))
        period.append(finish)
    return Windows(np.array(starts), np.array(ends), np.array(first), np.array(period, dtype=np.float64))


def _is_time(value: object) -> TypeGuard[float]:
    """Whether something is a number that a clock can show; True and False are none."""
    return type(value) in (int, float) and 0 <= value <= _LARGEST  # type: ignore[operator]


def _short(value: object) -> str:
    """Of a value that may be very large, very deep or in itself, what fits into a sentence."""
    if isinstance(value, dict | list) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "beyond all measure"
    text = _IN_SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
