"""Pictures: what is drawn, that all of it can be read, and that files appear whole."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lanterne.errors import ConfigError, RunError
from lanterne.report import classes, curves, equal_curves, load_run, plot_run, style, timeline
from lanterne.report.lanes import Bar, Lane, choose, last_second, merged, read, shares, window

# The runs whose pictures must be readable: the demo, and everything that can be odd about a run.
RUNS = {
    "demo": {},
    "seeds": {"seeds": (1, 2, 3), "rounds": 20},
    "single": {"algorithms": ["fedavg"], "rounds": 12},
    "unfinished": {"rounds": 7, "finished": False},
    "diverged": {"algorithms": ["salf", "fedavg"], "seeds": (1, 2), "rounds": 12, "diverges": 5},
    "before-training": {"rounds": 0},
    "one-round": {"rounds": 1},
    "sparse": {"rounds": 60, "every": 20},
    "many": {"algorithms": ["salf", "drop", "fedavg", *(f"salf:p={p},groups=backward-order" for p in range(7))],
             "rounds": 8},
    "long-names": {"algorithms": ["salf:" + "x" * 60, "drop:" + "y" * 50], "rounds": 4},
    "tiny": {"fleet": {"clients": 3, "stragglers": 0.4, "scale": 1e-7}, "rounds": 6, "model": 3},
    "huge": {"fleet": {"clients": 200, "slowdown": 1000.0, "scale": 3000.0}, "rounds": 8, "model": 3e14},
    "tiers": {"tiers": ["phone", "tablet", "laptop", "board", "rack of many"], "rounds": 4},
    "all-different": {"tiers": [f"device {n}" for n in range(30)], "rounds": 4},
    "quick": {"fleet": {"scale": 0.08, "slowdown": 6.0}, "rounds": 25},
    "alone": {"fleet": {"clients": 1, "stragglers": 0.0}, "algorithms": ["fedavg", "salf"], "rounds": 5},
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_run, Fleet) -> Path:
    options = dict(RUNS[request.param])
    if "fleet" in options:
        options["fleet"] = Fleet(**options["fleet"])
    if "tiers" in options:
        options["fleet"] = Fleet().tiers(options.pop("tiers"))
    return write_run(tmp_path_factory.mktemp("runs") / request.param, **options)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that were really drawn: a figure also holds tick labels outside its view."""
    texts: list[Text] = []
    draw = Text.draw

    def record(self: Text, renderer: object, *rest: object, **options: object) -> None:
        if self.get_visible() and self.get_text():
            texts.append(self)
        draw(self, renderer, *rest, **options)

    monkeypatch.setattr(Text, "draw", record)
    return texts


def figures(path: Path) -> Iterator[Figure]:
    cells = [cell for cell in load_run(path).cells if cell.rows]
    for module in (curves, classes, timeline, equal_curves):
        with style.sheet():
            figure = module.figure(cells)
        if figure is not None:
            yield figure


def test_no_text_is_clipped_or_lies_on_another(odd: Path, drawn: list[Text]) -> None:
    count = 0
    for figure in figures(odd):
        drawn.clear()
        with style.sheet():
            figure.canvas.draw()
        boxes = {text.get_text() + f" #{index}": text.get_window_extent() for index, text in enumerate(drawn)}
        assert len(boxes) > 3
        for name, box in boxes.items():
            assert figure.bbox.x0 <= box.x0, name
            assert box.x1 <= figure.bbox.x1, name
            assert figure.bbox.y0 <= box.y0, name
            assert box.y1 <= figure.bbox.y1, name
        for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            down = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across <= 1 or down <= 3, (one, other)  # an extent has a little air above and below its letters
        count += 1
    assert count >= 2


def test_a_run_is_drawn_into_its_own_directory(make_run) -> None:
    path = make_run(rounds=3)
    written = plot_run(path)
    assert written == [path / "plots" / f"{name}.png" for name in ("accuracy", "classes", "timeline")]
    for file in written:
        data = file.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG")
        assert width == 1350
        assert 300 < height < 3000
    assert sorted(path.joinpath("plots").iterdir()) == sorted(written)


def test_pictures_are_the_same_whenever_they_are_drawn(make_run, tmp_path: Path) -> None:
    path = make_run(rounds=3)
    formats = ("png", "svg", "pdf")
    first, second = (plot_run(path, tmp_path / name, formats) for name in ("a", "b"))
    assert [file.suffix for file in first] == [".png", ".svg", ".pdf"] * 3
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_users_own_style_is_neither_used_nor_changed(make_run, tmp_path: Path) -> None:
    path = make_run(rounds=3)
    plain = plot_run(path, tmp_path / "plain")
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30.0, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        dark = plot_run(path, tmp_path / "dark")
        assert dict(matplotlib.rcParams) == before
    assert [file.read_bytes() for file in dark] == [file.read_bytes() for file in plain]


def test_drawing_leaves_pyplot_and_importing_leaves_matplotlib_alone(make_run) -> None:
    path = make_run(rounds=2)
    program = (
        "import sys, lanterne.report as report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert report.plot_run(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    run([sys.executable, "-W", "error", "-c", program, str(path)], check=True)


def test_a_picture_without_data_is_left_out(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=3)
    folder = path / "cells" / "salf-seed1"
    (folder / "timeline.jsonl").unlink()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "accuracy_by_class": {}}) + "\n" for row in rows))
    (folder / "result.json").unlink()
    assert [file.name for file in plot_run(path)] == ["accuracy.png"]


def test_a_run_without_rows_cannot_be_drawn(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=0)
    (path / "cells" / "salf-seed1" / "rows.jsonl").write_text("")
    with pytest.raises(ConfigError, match="nothing to draw"):
        plot_run(path)
    assert not (path / "plots").exists()


def test_an_unknown_format_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pgn'.*Did you mean 'png'"):
        plot_run(demo, tmp_path / "out", formats=("pgn",))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_leaves_the_old_picture(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(rounds=2)
    old = {file: file.read_bytes() for file in plot_run(path)}
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write(self, bytes(data)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"accuracy\.png could not be written: No space left"):
        plot_run(path)
    assert {file: file.read_bytes() for file in (path / "plots").iterdir()} == old


def test_a_file_in_the_way_of_the_folder_is_reported(make_run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        plot_run(make_run(rounds=1), tmp_path / "out")


def test_the_mean_goes_as_far_as_all_seeds_do() -> None:
    first = np.array([0.0, 2.0, 4.0]), np.array([10.0, 20.0, 40.0])
    second = np.array([0.0, 3.0]), np.array([10.0, 40.0])
    x, y = curves._mean([first, second])
    assert x.tolist() == [0.0, 2.0, 3.0]
    assert y.tolist() == [10.0, 25.0, 35.0]
    assert curves._mean([first]) is first
    assert curves._mean([]) is None


def test_axes_turn_logarithmic_only_for_unequal_runs(demo: Path, make_run) -> None:
    def scales(path: Path) -> list[str]:
        figure = next(figures(path))
        return [axes.get_xscale() for axes in figure.axes]

    assert scales(demo) == ["log", "linear", "linear"]
    assert scales(make_run(algorithms=["salf", "drop"], rounds=5)) == ["linear"] * 3


def test_accuracy_before_training_stays_on_a_logarithmic_axis(demo: Path) -> None:
    time = next(figures(demo)).axes[0]
    left = time.get_xlim()[0]
    starts = [line.get_xydata()[0] for line in time.lines if len(line.get_xydata()) > 1]
    assert len(starts) == 4
    assert all(x == pytest.approx(left) and y == pytest.approx(10.0) for x, y in starts)


def test_colours_differ_until_the_dashes_do() -> None:
    looks = list(style.colours([str(index) for index in range(20)]).values())
    assert len(set(looks)) == 20
    assert len({colour for colour, _ in looks[:7]}) == 7


def test_the_window_holds_the_first_round_of_the_slowest(demo: Path) -> None:
    cells = load_run(demo).cells
    until = window(cells)
    waiting = next(cell for cell in cells if cell.label == "fedavg")
    assert waiting.rows[1]["virtual_seconds"] < until < 1.2 * waiting.rows[1]["virtual_seconds"]
    salf = [cell for cell in cells if cell.label == "salf"]
    rounds = sum(0 < row["virtual_seconds"] <= window(salf) for row in salf[0].rows)
    assert rounds == 3


def test_the_window_of_a_very_slow_algorithm_stays_with_the_others(write_run, Fleet, tmp_path: Path) -> None:
    path = write_run(tmp_path / "slow", algorithms=["salf", "drop", "fedavg"], fleet=Fleet(slowdown=1000.0), rounds=20)
    cells = load_run(path).cells
    assert window(cells) == pytest.approx(12 * 2.6, rel=0.05)
    with style.sheet():
        figure = timeline.figure(cells)
    told = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any(text.startswith("round 1 ends after") for text in told)


def test_there_is_no_window_before_a_round_has_ended(make_run) -> None:
    cells = load_run(make_run(rounds=0)).cells
    assert window(cells) == last_second(cells[0]) == 0.0
    assert timeline.figure(cells) is None


def test_requests_are_cut_at_the_window(demo: Path) -> None:
    drop = next(cell for cell in load_run(demo).cells if cell.label == "drop")
    found = read(drop, 4.0)
    bars = found.bars
    assert len(bars) == 60
    assert len(found.groups) == 30
    assert all(0 <= bar.start <= bar.downloaded <= bar.computed <= bar.arrived <= 4.0 for bar in bars)
    assert sum(bar.outcome == "cancelled" for bar in bars) == 54


def test_odd_requests_are_drawn_as_far_as_they_are_known(make_run) -> None:
    path = make_run(algorithms=["salf"], rounds=1)
    records = [
        {"client": 0, "start": 0.0, "arrived": 2.0, "class": "fast"},
        {"client": 1, "start": 0.0, "downloaded": 9.0, "computed": 1.0, "arrived": 2.0, "outcome": "lost"},
        {"client": 2, "start": None, "arrived": None, "outcome": "refused"},
        {"client": "server:1", "start": 1.0, "downloaded": 1.0, "computed": 1.5, "arrived": 1.5},
    ]
    file = path / "cells" / "salf-seed1" / "timeline.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read(load_run(path).cells[0], 2.0)
    assert [(bar.downloaded, bar.computed) for bar in found.bars] == [(2.0, 2.0), (2.0, 2.0), (1.0, 1.5)]
    assert found.groups == {0: "fast", 1: "client", "server:1": "server"}


def test_rounds_without_a_row_end_where_the_next_one_is_sent(make_run) -> None:
    dense, sparse = make_run("dense"), make_run("sparse", every=20)
    for label in ("salf", "fedavg", "fedbuff"):
        known, told = (
            read(next(cell for cell in load_run(path).cells if cell.label == label), 20.0).ends
            for path in (dense, sparse)
        )
        within = {at: seconds for at, seconds in known.items() if seconds < 20.0}
        assert within
        assert {at: told.get(at) for at in within} == pytest.approx(within)


def test_shares_are_those_of_the_lanes_that_are_drawn() -> None:
    bars = [
        Bar(0, 0.0, 1.0, 2.0, 3.0, "complete"),
        Bar(0, 2.0, 3.0, 4.0, 4.0, "cancelled"),
        Bar(9, 0.0, 1.0, 2.0, 9.0, "lost"),
    ]
    assert shares(bars, [Lane(0, "fast"), Lane(1, "fast")], 8.0) == (0.25, 0.4)
    assert shares([], [Lane(0, "fast")], 0.0) == (0.0, 0.0)


def test_lanes_stand_by_class_then_by_number() -> None:
    groups = {10: "slow", 2: "slow", 1: "fast", "server:10": "server", "server:2": "server", 3: "other"}
    lanes = choose(groups, ["fast", "slow"], 30)
    assert [lane.address for lane in lanes] == ["server:2", "server:10", 1, 2, 10, 3]


def test_a_sample_of_lanes_keeps_the_shares_and_every_class() -> None:
    groups = {client: "fast" if client < 10 else "slow" if client < 999 else "rare" for client in range(1000)}
    lanes = choose(groups, ["fast", "slow", "rare"], 30)
    counts = {name: sum(lane.group == name for lane in lanes) for name in ("fast", "slow", "rare")}
    assert counts == {"fast": 1, "slow": 29, "rare": 1}
    assert len({lane.address for lane in lanes}) == len(lanes)
    assert choose({}, [], 30) == []


def test_touching_intervals_are_one() -> None:
    assert list(merged([(3.0, 4.0), (0.0, 2.0), (1.0, 1.5), (2.0, 3.0), (6.0, 7.0)])) == [(0.0, 4.0), (6.0, 7.0)]
    assert list(merged([])) == []
