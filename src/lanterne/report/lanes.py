"""What the timeline shows: for how long, whose lanes, and which requests fall into them. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lanterne.report.jsonl import Record
from lanterne.report.records import CellRecords, number

Address = int | str
SERVER = "server"
LOST = frozenset({"cancelled", "lost", "failed", "refused"})
_EARLY = 8
_MOST_ROUNDS = 12.0
_LEAST_ROUNDS = 3.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One settled request, in virtual seconds, cut at the end of the window."""

    lane: Address
    start: float
    downloaded: float
    computed: float
    arrived: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A client or a server replica, and the device class under which it stands."""

    address: Address
    group: str


def window(cells: Sequence[CellRecords]) -> float:
    """How many virtual seconds to show, the same for all algorithms.

    The first round of the slowest algorithm, so that one sees what it waits for while the others go on; but no more
    than twelve rounds of a typical one, and no less than three of the quickest.

    Args:
        cells: one per algorithm.

    Returns:
        Seconds; 0 where no round has ended.
    """
    ends = [found for cell in cells if (found := round_ends(cell))]
    if not ends:
        return 0.0
    paces = sorted(found[min(len(found), _EARLY) - 1][1] / found[min(len(found), _EARLY) - 1][0] for found in ends)
    longest = 1.08 * max(found[0][1] for found in ends)
    typical = paces[(len(paces) - 1) // 2]
    latest = max(found[-1][1] for found in ends)
    return min(latest, max(min(longest, _MOST_ROUNDS * typical), _LEAST_ROUNDS * paces[0] * 1.02))


def round_ends(cell: CellRecords) -> list[tuple[int, float]]:
    """The evaluated rounds after round 0 and the virtual seconds at which they ended."""
    known = ((number(row, "round"), number(row, "virtual_seconds")) for row in cell.rows)
    return [(int(at), seconds) for at, seconds in known if at > 0 and seconds > 0]


def last_second(cell: CellRecords) -> float:
    """The virtual second of the last row: what happened after it is not known."""
    return max((seconds for _, seconds in round_ends(cell)), default=0.0)


def read(cell: CellRecords, until: float) -> tuple[list[Bar], dict[Address, str]]:
    """The requests that began within the window, and the device class of every address they name.

    Args:
        cell: whose timeline to read; only what is returned is held in memory.
        until: the end of the window in virtual seconds.
    """
    bars: list[Bar] = []
    groups: dict[Address, str] = {}
    for record in cell.timeline():
        start, arrived = number(record, "start"), number(record, "arrived")
        if math.isnan(start) or math.isnan(arrived) or start >= until:
            continue
        address = record["client"]
        groups.setdefault(address, _group(address, record))
        downloaded = min(max(_or(number(record, "downloaded"), arrived), start), arrived)
        computed = min(max(_or(number(record, "computed"), arrived), downloaded), arrived)
        outcome = str(record.get("outcome", "complete"))
        bars.append(Bar(address, start, min(downloaded, until), min(computed, until), min(arrived, until), outcome))
    return bars, groups


def choose(groups: Mapping[Address, str], order: Sequence[str], most: int) -> list[Lane]:
    """The lanes to draw: all of them, or a sample in which every class keeps its share and at least one lane.

    Args:
        groups: the device class of each address.
        order: the classes from top to bottom; those not named follow by name.
        most: how many lanes there may be.

    Returns:
        Lanes by class, then by address; server replicas first.
    """
    members: dict[str, list[Address]] = {}
    for address, group in groups.items():
        members.setdefault(group, []).append(address)
    ranks = {name: rank for rank, name in enumerate([SERVER, *order])}
    sizes = sorted(members, key=lambda group: (ranks.get(group, len(ranks)), group))
    share = min(1.0, most / len(groups)) if groups else 1.0
    return [
        Lane(address, group)
        for group in sizes
        for address in _spread(sorted(members[group], key=_natural), max(1, math.floor(len(members[group]) * share)))
    ]


def merged(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Intervals joined where they touch.

    Examples:
        >>> list(merged([(2, 3), (0, 1), (1, 2)]))
        [(0, 3)]
    """
    held: tuple[float, float] | None = None
    for start, end in sorted(spans):
        if held and start <= held[1]:
            held = held[0], max(held[1], end)
            continue
        if held:
            yield held
        held = start, end
    if held:
        yield held


def _group(address: Address, record: Record) -> str:
    return SERVER if str(address).startswith("server") else str(record.get("class") or "client")


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _natural(address: Address) -> tuple[int, str]:
    """Numbers by value, names of servers by their number."""
    digits = str(address).rpartition(":")[2]
    return (int(digits), "") if digits.lstrip("-").isdigit() else (0, str(address))


def _spread(addresses: Sequence[Address], count: int) -> list[Address]:
    """Evenly spaced members, the first among them."""
    return [addresses[index * len(addresses) // count] for index in range(count)]
