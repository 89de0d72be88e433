"""What is damaged, hostile, absurd or too large ends a run before it begins: one line, status 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.test_traces import nested, said_of_client_3
from fleet.trace_files import BEHAVIOUR, CAPACITY, written

SMALL = ("run", "salf", "--rounds", "1", "--clients", "3", "--model", "mlp:widths=4", "--no-plots")


@pytest.fixture
def refused(lanterne_command: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """What a command says that is refused."""

    def command(*words: object) -> str:
        before = sorted(tmp_path.iterdir())
        found = lanterne_command(*SMALL, *words)
        assert (found.status, found.out) == (2, ""), found.err
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        assert len(found.err) < 1200
        assert sorted(tmp_path.iterdir()) == before
        return str(found.err)

    return command


# ------------------------------------------------------------------------------------------------------------ traces
def test_a_trace_that_is_too_deep_to_be_shown(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "deep").write_bytes(said_of_client_3("computation", nested(200_000)))
    said = refused("--fleet", "fedscale", "--set", "fleet.capacity=deep")
    assert "client 3: computation is [[[...]]]. Each client has" in said


def test_a_parquet_file_as_a_trace_is_no_pickle(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "ok.parquet").write_bytes(b"PAR1\x15\x04\x15\x10")
    said = refused("--fleet", "fedscale", "--set", "fleet.capacity=ok.parquet")
    assert "ok.parquet is not a pickle of protocol 2 to 5: it begins with b'PAR1'" in said


def test_a_trace_in_which_nobody_is_ever_there(refused: Callable[..., str], tmp_path: Path) -> None:
    written(tmp_path / "capacity", CAPACITY)
    written(tmp_path / "times", {i: entry | {"active": [], "inactive": []} for i, entry in BEHAVIOUR.items()})
    said = refused("--fleet", "fedscale", "--set", "fleet.capacity=capacity", "--set", "fleet.availability=times")
    assert "times: nobody is ever there" in said
    assert "Leave availability out, or give a file" in said


# ------------------------------------------------------------------------------------------------------------ speeds
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--set fleet.flops=1e-300", "fleet.flops: flops of a device is 1e-300, so slow that one FLOP takes"),
        ("--fleet uniform --set fleet.up=1e-320", "fleet.up: up of a device is 1e-320, so slow that one byte takes"),
        ("--fleet uniform --set fleet.down=5e-324", "fleet.down: down of a device is 5e-324, so slow"),
        ("--fleet uniform --set fleet.server_flops=1e-9", "fleet.server_flops: The server's flops are 1e-09, so slow"),
        ("--fleet uniform --set fleet.latency=1e308", "fleet.latency: latency of a device is 1e+308 seconds. Give a"),
        ("--fleet uniform --set fleet.overhead=1e300", "fleet.overhead: overhead of a device is 1e+300 seconds. Give"),
        ("--fleet uniform --set fleet.rejoin=1e308", "fleet.rejoin: rejoin of the fleet is 1e+308 seconds. Give a"),
        ("--fleet pareto --set fleet.slowest=inf --set fleet.alpha=0.001", "flops of a device is"),
        # Numbers that a device may have, which together make a time that nothing counts.
        ("--set fleet.load=constant --set fleet.slowdown=1e308", "seconds for the first request of 'salf'"),
        ("--set fleet.slowdown=1e300 --set fleet.load=constant", "pace Slower(slowdown=1e"),
        ("--fleet exponential-layers --set fleet.mean=1e308", "would need inf seconds for the first request"),
        ("--fleet uniform-depth --set fleet.within=1e308", "and no clock counts beyond 2^53"),
    ],
)
def test_an_absurd_device(words: str, said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*words.split())


@pytest.mark.parametrize("column", ["flops", "down", "up"])
def test_an_absurd_device_in_a_file(column: str, refused: Callable[..., str], tmp_path: Path) -> None:
    numbers = {"flops": "1e9", "down": "1e7", "up": "1e6"} | {column: "1e-320"}
    (tmp_path / "slow.csv").write_text("flops,down,up\n1e9,1e7,1e6\n" + ",".join(numbers.values()) + "\n1e9,1e7,1e6\n")
    said = refused("--fleet", "slow.csv")
    assert f"slow.csv, row 2: {column} of a device is 1e-320, so slow that one" in said


@pytest.mark.parametrize("value", [5e-324, 1e-300, 1e15])
@pytest.mark.parametrize("name", ["computation", "communication"])
def test_an_absurd_device_in_a_trace(name: str, value: float, refused: Callable[..., str], tmp_path: Path) -> None:
    entry = {"computation": 100.0, "communication": 8000.0} | {name: value}
    written(tmp_path / "capacity", {432: entry})
    said = refused("--fleet", "fedscale", "--set", "fleet.capacity=capacity")
    assert f"client 432: {name} is {value!r}. Each client has 'computation' (ms per sample)" in said
    assert "both from 1e-05 to 1e+09" in said


# ------------------------------------------------------------------------------------------------------------ models
@pytest.mark.parametrize(
    ("words", "said"),
    [
        # One layer would take terabytes, so that whoever draws first fails at once.
        ("mlp:widths=99999999999", "has the memory for this model: its 7499999999935 parameters alone are"),
        ("mlp:widths=9999999-9999999", "No device has the memory for this model: its 100000"),
        ("mlp:widths=9999999-9999999 --set fleet.memory=inf", "This machine has"),
        ("mlp:widths=4000000000-4000000000", "too many parameters, which no machine can hold"),
        ("mlp:widths=99999999999999999999", "too many parameters, which no machine can hold"),
        # What float32 can count is too much for float64.
        ("mlp:widths=1300000000-1300000000 --dtype float64", "has 1690000"),
    ],
)
def test_a_model_that_is_too_large_is_refused_before_it_is_drawn(
    words: str, said: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were drawn")

    monkeypatch.setattr("torch.rand", drawn)
    assert said in refused("--model", *words.split())
