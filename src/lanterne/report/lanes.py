"""What the timeline shows: for how long, whose lanes, and which requests fall into them. No drawing here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lanterne.report.jsonl import Record
from lanterne.report.records import CellRecords, number

Address = int | str
SERVER = "server"
LOST = frozenset({"cancelled", "lost", "failed", "refused"})
_EARLY = 8
_MOST_ROUNDS = 12.0
_LEAST_ROUNDS = 3.0
_SLACK = 1.2


@dataclass(frozen=True, slots=True)
class Bar:
    """One settled request, in virtual seconds, cut at the end of the window.

    `work` is `forward`, `backward`, `both` or `none`: the way it went through blocks.
    """

    lane: Address
    start: float
    downloaded: float
    computed: float
    arrived: float
    outcome: str
    work: str = "both"


@dataclass(frozen=True, slots=True)
class Lane:
    """A client or a server replica, and the device class under which it stands."""

    address: Address
    group: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What a cell's timeline holds of the window.

    Attributes:
        bars: the requests that began in it.
        groups: the device class of every address that they name.
        waits: the lanes, and from when to when, in which a client waited for what comes back across the cut.
        ends: the virtual second at which each round ended, as far as rows or the requests of the next round tell.
    """

    bars: list[Bar]
    groups: dict[Address, str]
    ends: dict[int, float]
    waits: list[tuple[Address, float, float]] = field(default_factory=list)


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
    longest = 1.08 * max(found[0][1] / found[0][0] for found in ends)
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


def read(cell: CellRecords, until: float) -> Excerpt:
    """The requests that began within the window.

    Args:
        cell: whose timeline to read; only what is returned is held in memory.
        until: the end of the window in virtual seconds.
    """
    bars: list[Bar] = []
    groups: dict[Address, str] = {}
    begun: dict[int, float] = {}
    waits: list[tuple[Address, float, float]] = []
    forward: dict[Address, float] = {}
    for record in cell.timeline():
        start, arrived = number(record, "start"), number(record, "arrived")
        if math.isnan(start) or math.isnan(arrived):
            continue
        address, work = _lane(record), str(record.get("work") or "both")
        since = forward.pop(address, until)
        if since < until and work in ("backward", "both"):
            waits.append((address, since, min(start, until)))
        if start >= until:
            continue
        # Under a U-shaped cut the tail's pass, in both directions, comes between the head's two.
        done = record.get("outcome") == "complete" and not str(address).startswith(SERVER)
        if done and (work == "forward" or (work == "both" and since < until)):
            forward[address] = arrived
        sent, at = number(record, "sent"), number(record, "round")
        if not math.isnan(sent) and at > 1:
            begun[int(at)] = min(sent, begun.get(int(at), math.inf))
        groups.setdefault(address, _group(address, record))
        # A device that went away, or refused, was done before the server heard of it.
        stopped = max(min(_or(number(record, "stopped"), arrived), arrived), start)
        downloaded = min(max(_or(number(record, "downloaded"), stopped), start), stopped)
        computed = min(max(_or(number(record, "computed"), stopped), downloaded), stopped)
        outcome = str(record.get("outcome", "complete"))
        bars.append(
            Bar(address, start, min(downloaded, until), min(computed, until), min(stopped, until), outcome, work)
        )
    ends = {at - 1: seconds for at, seconds in begun.items()} | dict(round_ends(cell))
    return Excerpt(bars, groups, dict(sorted(ends.items())), waits)


def shares(bars: Iterable[Bar], lanes: Sequence[Lane], end: float) -> tuple[float, float]:
    """How the lanes spent their time.

    Args:
        bars: requests, of these lanes and of others.
        lanes: those that count.
        end: the length of the time in virtual seconds.

    Returns:
        The share of the time in which a lane was busy, and the share of the work that was thrown away.
    """
    spans: dict[Address, list[tuple[float, float]]] = {lane.address: [] for lane in lanes}
    thrown = work = 0.0
    for bar in bars:
        if bar.lane in spans:
            spans[bar.lane].append((bar.start, bar.arrived))
            work += bar.arrived - bar.start
            thrown += (bar.arrived - bar.start) * (bar.outcome in LOST)
    spent = sum(stop - start for found in spans.values() for start, stop in merged(found))
    return min(1.0, spent / (end * len(lanes))) if end and lanes else 0.0, thrown / work if work else 0.0


def choose(groups: Mapping[Address, str], order: Sequence[str], most: int) -> list[Lane]:
    """The lanes to draw: all of them, or a sample in which every class keeps its share and at least one lane.

    Args:
        groups: the device class of each address.
        order: the classes from top to bottom; those not named follow by name.
        most: how many lanes there may be; a fifth more are still drawn, rather than a sample that hardly is one.

    Returns:
        Lanes by class, then by address; server replicas first.
    """
    members: dict[str, list[Address]] = {}
    for address, group in groups.items():
        members.setdefault(group, []).append(address)
    ranks = {name: rank for rank, name in enumerate([SERVER, *order])}
    sizes = sorted(members, key=lambda group: (ranks.get(group, len(ranks)), _natural(group)))
    share = most / len(groups) if len(groups) > _SLACK * most else 1.0
    return [
        Lane(address, group)
        for group in sizes
        for address in _spread(sorted(members[group], key=_natural), max(1, math.floor(len(members[group]) * share)))
    ]


def apart(wanted: Sequence[float], gap: float, last: float) -> list[float]:
    """Places as near to the wanted ones as a least distance between them allows.

    Args:
        wanted: places in ascending order.
        gap: the least distance.
        last: the largest place allowed.

    Examples:
        >>> apart([0.0, 1.0, 9.0], 3.0, 10.0)
        [0.0, 3.0, 9.0]
        >>> apart([0.0, 9.0, 10.0], 3.0, 10.0)
        [0.0, 7.0, 10.0]
    """
    placed: list[float] = []
    for place in wanted:
        placed.append(max(place, placed[-1] + gap) if placed else place)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], last)
        last = placed[index] - gap
    return placed


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


def _lane(record: Record) -> Address:
    """A client, a server replica, or the machine on which replicas take turns."""
    client: Address = record["client"]
    machine = record.get("machine")
    return client if machine is None else f"{SERVER} machine:{machine}"


def _group(address: Address, record: Record) -> str:
    return SERVER if str(address).startswith("server") else str(record.get("class") or "client")


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _natural(name: Address) -> list[tuple[int, str]]:
    """Numbers by value, also within a name: `server:2` before `server:10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(name)) if part]


def _spread(addresses: Sequence[Address], count: int) -> list[Address]:
    """Evenly spaced members, the first among them."""
    return [addresses[index * len(addresses) // count] for index in range(count)]
