"""The first rounds of the fleet: who downloads, computes, uploads, waits, and whose work is thrown away.

Of a split method both sides are shown: a client goes forward, waits for the gradient and goes backward; in between a
lane of the server, its own or one that it shares, is at work for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lanterne.report import style
from lanterne.report.lanes import (
    LOST,
    SERVER,
    Address,
    Bar,
    Excerpt,
    Lane,
    apart,
    choose,
    last_second,
    read,
    shares,
    window,
)
from lanterne.report.records import CellRecords
from lanterne.report.summary import by_label, classes_of
from lanterne.report.units import quantity, unit, unit_name

_LANE, _TEXT, _LEAST, _HEAD, _BETWEEN, _RIGHT, _EDGE = 0.062, 0.15, 0.5, 0.34, 0.2, 0.2, 0.15
_MOST_LANES, _MOST_ALL = 30, 130
_IDLE = "#f3f3f3"
_DOWNLOAD, _COMPUTE, _PARTIAL, _UPLOAD, _LOST = "#56B4E9", "#009E73", "#8ED6BE", "#E69F00", "#D55E00"
_FORWARD, _WAITING, _BACKWARD, _SERVING = "#CC79A7", "#f3e4a6", "#7A3E9D", "#333333"
_LOST_FACE = "#f9dccd"
_HATCH = "/////"
_KEYS = {
    "download": _DOWNLOAD,
    "forward": _FORWARD,
    "awaits server": _WAITING,
    "backward": _BACKWARD,
    "compute": _COMPUTE,
    "compute, cut off, finished layers kept": _PARTIAL,
    "upload": _UPLOAD,
    "server at work": _SERVING,
    "thrown away": _LOST,
    "idle": _IDLE,
}


def figure(cells: Sequence[CellRecords]) -> Figure | None:
    """A panel per algorithm, a lane per client, one time axis for all; strokes end the rounds.

    Above the clients are the lanes of the server that the algorithm asks: one per replica, or per machine where
    replicas share them.

    Args:
        cells: cells with rows; of each algorithm the first seed is drawn.

    Returns:
        The picture, or None where no timeline has a request.
    """
    firsts = {label: group[0] for label, group in by_label(cells).items()}
    until = window(list(firsts.values()))
    shown = {label: read(cell, until) for label, cell in firsts.items()} if until else {}
    shown = {label: found for label, found in shown.items() if found.bars}
    if not shown:
        return None
    groups: dict[Address, str] = {}
    for found in shown.values():
        groups = found.groups | groups
    most, order = max(8, min(_MOST_LANES, _MOST_ALL // len(shown))), classes_of(cells)
    clients = choose({address: group for address, group in groups.items() if group != SERVER}, order, most)
    lanes = {label: [*servers(found, most // 2), *clients] for label, found in shown.items()}
    population = sum(group != SERVER for group in groups.values())
    sample = f"{len(clients)} of {population} clients, every class in proportion"
    if len(clients) == population:
        sample = f"all {population} clients" if population > 1 else "one client"
    return _picture(firsts, shown, lanes, sample, until)


def servers(found: Excerpt, most: int) -> list[Lane]:
    """The server's lanes, evenly spaced where there are too many.

    Args:
        found: what an algorithm's timeline holds.
        most: how many there may be.
    """
    return choose({address: group for address, group in found.groups.items() if group == SERVER}, (), most)


def _picture(
    cells: Mapping[str, CellRecords],
    shown: Mapping[str, Excerpt],
    lanes: Mapping[str, Sequence[Lane]],
    sample: str,
    until: float,
) -> Figure:
    made = style.canvas(1.0)
    size, symbol = unit("seconds", until)
    seeds = ", ".join(map(str, sorted({cells[label].seed for label in shown})))
    title = f"The fleet in its first {quantity('seconds', until)} of virtual time"
    legend = style.legend(made, *_legend(shown.values()), _EDGE, 0.46)
    top = 0.46 + legend + 0.08
    names = {label: headings(lanes[label]) for label in shown}
    heights = {label: max(_LEAST, _LANE * len(lanes[label]), _TEXT * len(names[label])) for label in shown}
    panels = sum(_HEAD + height + _BETWEEN for height in heights.values())
    made.set_size_inches(style.WIDTH, top + panels - _BETWEEN + 0.55)
    style.place(made, made.legends[0], _EDGE, 0.46)
    level = 1 - 0.14 / made.get_figheight()
    made.text(_EDGE / style.WIDTH, level, title, va="top", fontsize=11, fontweight="bold")
    made.text(1 - _RIGHT / style.WIDTH, level, f"{sample}; seed {seeds}", va="top", ha="right", color=style.QUIET)

    texts = [style.short(text, 24) for found in names.values() for text in found]
    left = _EDGE + 0.2 + style.text_width(made, texts, 8.5)
    looks = style.colours(list(cells))
    axes, above = None, top
    for index, (label, found) in enumerate(shown.items()):
        height, mine = heights[label], lanes[label]
        axes = style.panel(made, left, above + _HEAD, style.WIDTH - left - _RIGHT, height)
        above += _HEAD + height + _BETWEEN
        axes.set_xlim(0, until / size)
        end = min(until, last_second(cells[label]))
        _lanes(axes, mine, found, end, size)
        _groups(axes, mine, _TEXT * len(mine) / height, end / until)
        _rounds(axes, found.ends, until, size)
        if end < 0.85 * until:
            words = "the run has ended" if cells[label].finished else "no row yet"
            axes.annotate(words, ((end + until) / 2 / size, 0.5), xycoords=("data", "axes fraction"), ha="center",
                          va="center", fontsize=8.5, color=style.QUIET)  # fmt: skip
        axes.annotate(style.short(label), (0, 1), (0, 13), xycoords="axes fraction", textcoords="offset points",
                      fontweight="bold", fontsize=10, color=style.ink(looks[label][0]))  # fmt: skip
        axes.annotate(_told(found, mine, end), (1, 1), (0, 13), xycoords="axes fraction",
                      textcoords="offset points", ha="right", fontsize=8.5, color=style.QUIET)  # fmt: skip
        axes.tick_params(labelbottom=index == len(shown) - 1)
    assert axes is not None
    axes.set_xlabel(f"virtual time ({unit_name('seconds', symbol)})")
    return made


def _legend(shown: Iterable[Excerpt]) -> tuple[list[Patch], list[str]]:
    """The keys that the picture needs."""
    used = {_IDLE, _DOWNLOAD, _UPLOAD}
    for found in shown:
        used |= {colour for bar in found.bars for colour, start, stop in _spans(bar) if _seen(colour, start, stop)}
        used |= {_WAITING} if found.waits else set()
    keys = {name: colour for name, colour in _KEYS.items() if colour in used}
    handles = {colour: Patch(facecolor=colour, edgecolor="none") for colour in keys.values()}
    handles[_IDLE].set(edgecolor=style.PALE, linewidth=0.7)
    if _LOST in handles:
        handles[_LOST].set(facecolor=_LOST_FACE, edgecolor=_LOST, hatch=_HATCH, linewidth=0)
    return list(handles.values()), list(keys)


def headings(lanes: Sequence[Lane]) -> list[str]:
    """One text per class: its name and how many lanes it has here.

    Args:
        lanes: of a panel, those of a class in a row.
    """
    found = []
    for group, members in groupby(lanes, lambda lane: lane.group):
        addresses = [str(lane.address) for lane in members]
        name = f"{SERVER} machine" if group == SERVER and addresses[0].startswith(f"{SERVER} machine") else group
        if group == SERVER and len(addresses) == 1:
            found.append(name)
        else:
            found.append(f"{name if name == group else f'{name}s'} ({len(addresses)})")
    return found


def _spans(bar: Bar) -> list[tuple[str, float, float]]:
    """A request by what its lane was at: colour, begin and end."""
    if bar.outcome in LOST:
        return [(_LOST, bar.start, bar.arrived)]
    if str(bar.lane).startswith(SERVER):
        return [(_SERVING, bar.start, bar.arrived)] if bar.work != "none" else []
    compute = {"forward": _FORWARD, "backward": _BACKWARD}.get(bar.work, _COMPUTE)
    return [
        (_DOWNLOAD, bar.start, bar.downloaded),
        (_PARTIAL if bar.outcome == "partial" else compute, bar.downloaded, bar.computed),
        (_UPLOAD, bar.computed, bar.arrived),
    ]


def _seen(colour: str, start: float, stop: float) -> bool:
    """Whether a span is drawn; a server that needs no time at all is still seen at work."""
    return stop > start or (colour == _SERVING and stop == start)


def _lanes(axes: Axes, lanes: Sequence[Lane], found: Excerpt, end: float, size: float) -> None:
    rows = {lane.address: row for row, lane in enumerate(lanes)}
    boxes: dict[str, list[list[tuple[float, float]]]] = {colour: [] for colour in _KEYS.values()}
    for bar in found.bars:
        for colour, start, stop in _spans(bar) if bar.lane in rows else ():
            if _seen(colour, start, stop):
                boxes[colour].append(_box(start / size, stop / size, rows[bar.lane]))
    boxes[_WAITING] = [_box(start / size, stop / size, rows[lane]) for lane, start, stop in found.waits if lane in rows]
    boxes[_IDLE] = [_box(0.0, end / size, row) for row in range(len(lanes))]
    for order, colour in enumerate([_IDLE, *(colour for colour in _KEYS.values() if colour not in (_IDLE, _LOST))]):
        edge = {"edgecolors": colour, "linewidths": 0.5} if colour == _SERVING else {"edgecolors": "none"}
        axes.add_collection(
            PolyCollection(boxes[colour], facecolors=colour, zorder=2 + order / 20, **edge), autolim=False
        )
    wasted = PolyCollection(boxes[_LOST], facecolors=_LOST_FACE, edgecolors=_LOST, linewidths=0, hatch=_HATCH, zorder=3)
    axes.add_collection(wasted, autolim=False)

    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))


def _groups(axes: Axes, lanes: Sequence[Lane], gap: float, end: float) -> None:
    """The device classes beside their lanes, and strokes between them.

    Args:
        axes: where the lanes are.
        lanes: all of them, in order.
        gap: how many lanes high a text is; where classes are smaller, their texts move apart and point to them.
        end: how far the strokes go, as a share of the width.
    """
    middles, row = [], 0
    for _, members in groupby(lanes, lambda lane: lane.group):
        count = sum(1 for _ in members)
        middles.append(row + (count - 1) / 2)
        row += count
        if row < len(lanes):
            axes.axhline(row - 0.5, xmax=end, color=style.QUIET, linewidth=0.6, zorder=4)
    places = apart(middles, gap, len(lanes) - 1)
    for middle, place in zip(middles, places, strict=True):
        axes.plot([-0.009, -0.001], [place, middle], transform=axes.get_yaxis_transform(), color=style.QUIET,
                  linewidth=0.6, clip_on=False)  # fmt: skip
    axes.set_yticks(places, [style.short(text, 24) for text in headings(lanes)])
    axes.tick_params(left=False)


def _box(start: float, end: float, row: int) -> list[tuple[float, float]]:
    top, bottom = row - 0.41, row + 0.41
    return [(start, top), (end, top), (end, bottom), (start, bottom)]


def _rounds(axes: Axes, ends: Mapping[int, float], until: float, size: float) -> None:
    """A stroke where a round ends, with its number, each where there is room for it."""
    stroke = text = -until
    crowded = sum(seconds <= until for seconds in ends.values()) > 40
    for at, seconds in ends.items():
        if seconds > until:
            continue
        if seconds - stroke >= until / 250:
            axes.axvline(seconds / size, color=style.INK, linewidth=0.4 if crowded else 0.8, zorder=5)
            stroke = seconds
        if seconds - text >= until / 45:
            axes.annotate(str(at), (seconds / size, 1), (0, 2), xycoords=("data", "axes fraction"),
                          textcoords="offset points", ha="center", fontsize=7.5, color=style.QUIET)  # fmt: skip
            text = seconds


def _told(found: Excerpt, lanes: Sequence[Lane], end: float) -> str:
    """The panel in a sentence: rounds, and how the lanes that are drawn spent their time."""
    clients = [lane for lane in lanes if lane.group != SERVER]
    servers = [lane for lane in lanes if lane.group == SERVER]
    busy, thrown = shares(found.bars, clients, end)
    finished = [at for at, seconds in found.ends.items() if seconds <= end]
    if finished:
        rounds = f"{finished[-1]} round{'s' * (finished[-1] != 1)}"
    else:
        rounds = next(
            (f"round {at} ends after {quantity('seconds', end)}" for at, end in found.ends.items()), "no round"
        )
    wasted = f", {100 * thrown:.0f} % of it thrown away" if thrown else ""
    serving, _ = shares(found.bars, servers, end)
    server = f" · server busy {100 * serving:.0f} %" if servers else ""
    who = "clients busy" if servers else "busy"
    return f"{rounds} · {who} {100 * busy:.0f} % of the time{wasted}{server}"
