"""Both sides of the cut in the timeline."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import lanterne
from lanterne.fleet import Device, Fleet, Server
from lanterne.report import load_run, style, timeline
from lanterne.report.lanes import Excerpt, read
from lanterne.report.records import CellRecords

METHODS = [
    "fedavg", "sl", "psl", "splitfed_v1:tail=2", "splitfed_v1", "splitfed_v2", "locsplitfed", "cse_fsl",
]  # fmt: skip


CellRecordsOf = tuple[Mapping[str, CellRecords], int | None]


@pytest.fixture(scope="module", params=[None, 2])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CellRecordsOf:
    """Two rounds of every method; the server has a machine for each replica, or two for all."""
    fast = Device(flops=2e7, down=2e6, up=1e6, latency=0.002, tier="fast")
    slow = Device(flops=5e6, down=2e6, up=1e6, latency=0.002, tier="straggler")
    fleet = Fleet([fast, fast, slow], server=Server(flops=1e8, machines=request.param))
    out = tmp_path_factory.mktemp("runs") / "split"
    lanterne.run(METHODS, fleet=fleet, rounds=2, model="salf-mlp", out=out)
    return {cell.label: cell for cell in load_run(out).cells}, request.param


def test_clients_wait_between_forward_and_backward_and_nowhere_else(split: CellRecordsOf) -> None:
    cells, _ = split
    for label, cell in cells.items():
        found = read(cell, 1e9)
        assert all(isinstance(lane, int) for lane, _, _ in found.waits)
        bars = {client: [bar for bar in found.bars if bar.lane == client] for client in range(3)}
        steps = sum(bar.work == "backward" for mine in bars.values() for bar in mine)
        if label in ("fedavg", "locsplitfed", "cse_fsl"):
            assert found.waits == [], label
            assert steps == 0
            assert {bar.work for mine in bars.values() for bar in mine} == {"both"}
            continue
        # Under a U-shaped cut a client waits for the features, and again for the gradient.
        assert len(found.waits) == steps * (2 if "tail" in label else 1) > 0, label
        for client, start, stop in found.waits:
            before = [bar for bar in bars[int(client)] if bar.arrived == start]
            after = [bar for bar in bars[int(client)] if bar.start == stop]
            assert [bar.work for bar in before] in (["forward"], ["both"]), label
            assert [bar.work for bar in after] in (["backward"], ["both"]), label


def test_the_server_has_the_lanes_that_it_works_on(split: CellRecordsOf) -> None:
    cells, machines = split
    names = {label: _headings(read(cell, 1e9)) for label, cell in cells.items()}
    replicas = "server (3)" if machines is None else "server machines (2)"
    assert names == {
        "fedavg": None,
        **dict.fromkeys(("sl", "psl", "splitfed_v2", "cse_fsl"), "server" if machines is None else "server machine"),
        **dict.fromkeys(("splitfed_v1:tail=2", "splitfed_v1", "locsplitfed"), replicas),
    }


def _headings(found: Excerpt) -> str | None:
    return next(iter(timeline.headings(timeline.servers(found, 30))), None)


def test_all_of_it_can_be_read(split: CellRecordsOf) -> None:
    """The legend names what is drawn and nothing else, and no text lies on another."""
    cells, _ = split
    every = ["download", "forward", "awaits server", "backward", "compute", "upload", "server at work", "idle"]
    kinds = {
        "fedavg": ["download", "compute", "upload", "idle"],
        "psl": ["download", "forward", "awaits server", "backward", "upload", "server at work", "idle"],
        "cse_fsl": ["download", "compute", "upload", "server at work", "idle"],
    }
    for shown, expected in [(list(cells), every), *([[name], keys] for name, keys in kinds.items())]:
        with style.sheet():
            figure = timeline.figure([cells[label] for label in shown])
            assert figure is not None
            figure.canvas.draw()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == expected
        texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels()) if text.get_text()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
        for (one, first), (other, second) in itertools.combinations(boxes, 2):
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            down = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across <= 1 or down <= 3, (one, other)


def test_a_wait_ends_with_the_window_and_only_for_an_answer(tmp_path: Path) -> None:
    def request(start: float, end: float, work: str, outcome: str = "complete") -> dict[str, Any]:
        return {"client": 0, "class": "fast", "start": start, "arrived": end, "work": work, "outcome": outcome}

    def waits(records: Sequence[Mapping[str, Any]], until: float) -> list[tuple[Any, float, float]]:
        (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return read(CellRecords("a", 1, tmp_path, (), None), until).waits

    pair = [request(0.0, 1.0, "forward"), request(4.0, 5.0, "backward")]
    assert waits(pair, 9.0) == [(0, 1.0, 4.0)]
    assert waits(pair, 3.0) == [(0, 1.0, 3.0)]
    assert waits(pair, 0.5) == []
    # Whom the server gave up on waits for nothing that comes.
    assert waits([request(0.0, 1.0, "forward"), request(4.0, 5.0, "forward")], 9.0) == []
    assert waits([request(0.0, 1.0, "forward", "cancelled"), request(4.0, 5.0, "backward")], 9.0) == []
