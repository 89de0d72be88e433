"""The live view: on terminals of every width, and where there is none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lanterne.cli import progress
from lanterne.cli.progress import Progress


def row(at: int, late: int = 7) -> dict[str, Any]:
    return {"round": at, "accuracy": at / 10, "virtual_seconds": 90.0 * at, "late": list(range(10, 10 + late))}


def play(view: Progress, cells: int = 2, rounds: int = 5) -> None:
    for seed in range(cells):
        view.begin("salf:rule=code,p=zero", seed, 0, rounds)
        for at in range(rounds + 1):
            view.row(row(at))
        view.end({"accuracy": 0.5, "rounds": rounds, "diverged": None, "wall_seconds": 2.0, "virtual_seconds": 450.0})


def terminal(width: int, height: int = 20) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def lines(view: Progress, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(view.render())
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [10, 20, 40, 52, 66, 80, 120])
def test_the_table_fits_every_terminal(width: int) -> None:
    console = terminal(width)
    view = Progress(3, console=console)
    play(view)
    shown = lines(view, console)
    assert all(len(line) <= width for line in shown)
    assert len(shown) == 4 + (width < 20)
    if width >= 40:
        assert "5/5" in shown[1]
        assert "50.0" in shown[1]
        assert shown[1].rstrip().endswith("7") or "7: 10 11 12 13 …" in shown[1]
        assert shown[-1].strip() == "2 of 3 done"
    if width >= 66:
        assert "7: 10 11 12 13 …" in shown[1]
        assert "7.50 min" in shown[1]


def test_many_competitors_do_not_overflow_the_terminal() -> None:
    console = terminal(80, 10)
    view = Progress(40, console=console)
    play(view, cells=40, rounds=1)
    shown = lines(view, console)
    assert len(shown) < 10
    assert shown[-2].split()[1] == "39"


def test_before_the_first_row() -> None:
    console = terminal(80)
    view = Progress(1, console=console)
    assert "Preparing" in lines(view, console)[0]
    view.begin("salf", 1, 12, 60)
    assert "12/60" in lines(view, console)[1]


def test_what_diverged_is_told() -> None:
    console = terminal(80)
    view = Progress(1, console=console)
    view.begin("salf", 1, 0, 5)
    view.row({**row(2), "accuracy": None})
    assert " - " in lines(view, console)[1]
    view.end({"accuracy": None, "rounds": 2, "diverged": 2, "wall_seconds": 1.0})
    assert "diverged in 2" in lines(view, console)[1]


def test_a_terminal_gets_a_live_table() -> None:
    console = terminal(80)
    with Progress(2, console=console) as view:
        play(view)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 2 done" in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_elsewhere_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1, console=Console(file=io.StringIO())) as view:
        view.begin("salf", 1, 0, 60)
        for at in range(61):
            now[0] += 0.5
            view.row(row(at))
        view.end({"accuracy": 0.9, "rounds": 60, "diverged": None, "wall_seconds": 30.0, "virtual_seconds": 5400.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.splitlines()
    assert len(said) == 7  # one in five of 30.5 seconds, and the last
    assert said[0].startswith("salf seed 1: round 9/60, ")
    assert said[-1] == (
        "salf seed 1: round 60/60, accuracy 90.0 %, virtual time 90.0 min, late 7: 10 11 12 13 …, took 30.0 s"
    )


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal(80)
    with Progress(2, quiet=True, console=console) as view:
        play(view)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    assert capsys.readouterr() == ("", "")


def test_a_view_that_cannot_be_written_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    with Progress(2, console=Console(file=io.StringIO())) as view:
        play(view)
