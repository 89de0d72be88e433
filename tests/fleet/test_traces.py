"""FedScale's files say what FedScale means by them; damaged, hostile and senseless ones are refused in one sentence."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.trace_files import BEHAVIOUR, CAPACITY, written
from lanterne.errors import FleetError
from lanterne.fleet import Device
from lanterne.fleet.traces import read_availability, read_capacity

BAD_CAPACITIES: dict[str, tuple[Any, str]] = {
    "empty": ({}, r"holds an empty dictionary\. Give FedScale's dictionary of clients, each with 'computation' \(ms"),
    "list": ([1], "holds a list. Give FedScale's dictionary"),
    "no dictionary": ({3: [1.0, 2.0]}, "client 3: computation is None. Each client has 'computation'"),
    "missing": ({3: {"computation": 1.0}}, r"client 3: communication is None.*both from 1e-05 to 1e\+09"),
    "zero": ({3: {"computation": 0, "communication": 1.0}}, "client 3: computation is 0"),
    "negative": ({3: {"computation": 1.0, "communication": -2.5}}, r"client 3: communication is -2\.5"),
    "nan": ({3: {"computation": math.nan, "communication": 1.0}}, "client 3: computation is nan"),
    "infinite": ({3: {"computation": math.inf, "communication": 1.0}}, "client 3: computation is inf"),
    "denormal": ({3: {"computation": 1.0, "communication": 5e-324}}, "client 3: communication is 5e-324"),
    "fast": ({3: {"computation": 9e-6, "communication": 1.0}}, "client 3: computation is 9e-06"),
    "slow": ({3: {"computation": 2e9, "communication": 1.0}}, r"client 3: computation is 2000000000\.0"),
    "huge": ({3: {"computation": 2**2000, "communication": 1.0}}, "client 3: computation is beyond all measure"),
    "true": ({3: {"computation": True, "communication": 1.0}}, "client 3: computation is True"),
    "text": ({3: {"computation": "1.0", "communication": 1.0}}, r"client 3: computation is '1\.0'"),
    "a long text": (
        {"x" * 999: {"computation": "y" * 999}},
        r"client 'x{40,60}\.\.\.x{40,60}': computation is 'y{40,60}\.\.\.y{40,60}'\. Each",
    ),
    "many": ({3: {"computation": list(range(99)), "communication": 1.0}}, "computation is a list of 99"),
    "availability": (BEHAVIOUR, "client 3834: computation is None"),
}


def client(**changes: Any) -> dict[int, Any]:
    return {5: {"active": [1, 5], "inactive": [2, 6], "finish_time": 9, **changes}}


BAD_TIMES: dict[str, tuple[Any, str]] = {
    "empty": ({}, "holds an empty dictionary"),
    "number": (7, "holds a int"),
    "capacity": (CAPACITY, r"client 432802 is {'communication': .*}\. Each client has 'active' and 'inactive'"),
    "no dictionary": ({5: "always"}, "client 5 is 'always'. Each client has"),
    "unequal": (client(active=[1]), r"client 5 is {'active': \[1\], .*'inactive': \[2, 6\].* equally long"),
    "no list": (client(active=3), "client 5 is {'active': 3"),
    "no period": (client(finish_time=None), "client 5: finish_time is None. Give seconds above 0"),
    "period 0": (client(finish_time=0), "client 5: finish_time is 0"),
    "period nan": (client(finish_time=math.nan), "client 5: finish_time is nan"),
    "backwards": (
        client(active=[1, 7]),
        r"client 5 is active from \[1, 7\] to \[2, 6\]\. .* nobody leave before coming",
    ),
    "negative": (client(active=[-1, 5]), r"from \[-1, 5\]"),
    "nan": (client(inactive=[2, math.nan]), r"to \[2, nan\]"),
    "text": (client(active=["1", 5]), r"from \['1', 5\]"),
    "true": (client(active=[True, 5]), r"from \[True, 5\]"),
    "huge": (client(inactive=[2, 2**2000]), "client 5 is active from"),
}


def nested(depth: int) -> bytes:
    """A list in a list, so deep: what stands between the first and the last byte of its pickle."""
    return b"]" * depth + b"a" * (depth - 1)


def laughing(levels: int) -> bytes:
    """A list that stands eight times in a list, which stands eight times in the next, and so on."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value] * 8
    return pickle.dumps(value, 2)[2:-1]


#: Values of which no whole `repr` can be had, the first of 400 kB and the second of fewer than 300 bytes.
BEYOND_REPR = {"nested": nested(200_000), "billion laughs": laughing(12)}


def said_of_client_3(name: str, value: bytes) -> bytes:
    """A trace file in which a value stands that has been pickled already."""
    plain = {"active": b"](K\x00e", "inactive": b"](K\x01e", "finish_time": b"K\x05"}
    entry = plain | {name: value}
    items = (b"X" + len(key).to_bytes(4, "little") + key.encode() + item for key, item in entry.items())
    return b"\x80\x02}K\x03}(" + b"".join(items) + b"us."


# ------------------------------------------------------------------------------------------------------------- right
def test_capacities_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = read_capacity(written(tmp_path / "capacity", CAPACITY))
    assert found.computation.tolist() == [162.0, 81.0, 40.5]
    assert found.communication.tolist() == [5648.109619499134, 8000.0, 1.0]


def test_windows_are_those_of_the_file(tmp_path: Path) -> None:
    found = read_availability(written(tmp_path / "behaviour", BEHAVIOUR))
    first = BEHAVIOUR[3834]
    assert found.of(0)["available"] == tuple(zip(first["active"], first["inactive"], strict=True))  # type: ignore[call-overload]
    assert found.of(1) == {"available": ((93283.0, 93284.0),), "period": 518400.0}  # one window had no length
    assert found.of(2) == {"available": ((0.0, 1.0),), "period": 259200.0}
    assert len(found) == 3


def test_who_is_never_there_stays_away(tmp_path: Path) -> None:
    never = {0: {"active": [], "inactive": [], "finish_time": 5}, 1: {"active": [2], "inactive": [2], "finish_time": 5}}
    found = read_availability(written(tmp_path / "behaviour", never))
    assert [found.of(c)["available"] for c in range(2)] == [(), ()]
    assert found.online(2.0).tolist() == [False, False]
    assert found.returns(0.0).tolist() == [math.inf, math.inf]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)), max_size=8),
    st.integers(1, 50),
    st.floats(0, 150) | st.integers(0, 150),
)
@settings(max_examples=200)
def test_a_client_is_there_in_any_of_its_windows(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], finish: int, t: float
) -> None:
    """Unsorted, overlapping, beyond the period: brute force over all of them, and a device takes what comes out."""
    entry = {"active": [a for a, _ in pairs], "inactive": [a + n for a, n in pairs], "finish_time": finish}
    folder = tmp_path_factory.mktemp("traces")
    found = read_availability(written(folder / "behaviour", {1: entry}))
    there = any(a <= t % finish < a + n for a, n in pairs)
    assert found.online(t).tolist() == [there] == [Device(**found.of(0)).online(t)]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = written(tmp_path / "capacity", CAPACITY)
    once = read_capacity(path)
    assert read_capacity(str(path)) is once
    written(path, {1: {"computation": 1.0, "communication": 2.0}})
    assert read_capacity(path).computation.tolist() == [1.0]


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_any_protocol_that_python_3_writes_by_default(tmp_path: Path, protocol: int) -> None:
    found = read_capacity(written(tmp_path / "capacity", CAPACITY, protocol))
    assert np.array_equal(found.computation, [162.0, 81.0, 40.5])


# ------------------------------------------------------------------------------------------------------------- wrong
@pytest.mark.parametrize(("value", "message"), BAD_CAPACITIES.values(), ids=BAD_CAPACITIES)
def test_wrong_capacities_are_refused(tmp_path: Path, value: object, message: str) -> None:
    path = written(tmp_path / "file", value)
    with pytest.raises(FleetError, match=message) as error:
        read_capacity(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < len(str(path)) + 700


@pytest.mark.parametrize(("value", "message"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_wrong_times_are_refused(tmp_path: Path, value: object, message: str) -> None:
    path = written(tmp_path / "file", value)
    with pytest.raises(FleetError, match=message) as error:
        read_availability(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < len(str(path)) + 700


@pytest.mark.parametrize("key", ["computation", "active", "finish_time"])
@pytest.mark.parametrize("content", BEYOND_REPR.values(), ids=BEYOND_REPR)
def test_what_cannot_be_shown_whole_is_refused_in_short(tmp_path: Path, content: bytes, key: str) -> None:
    """In a process, for a message that takes for ever, or the whole stack, takes the process with it."""
    (tmp_path / "trace").write_bytes(said_of_client_3(key, content))
    program = (
        "import sys\n"
        "from lanterne.errors import FleetError\n"
        "from lanterne.fleet.traces import read_availability, read_capacity\n"
        "try: (read_capacity if sys.argv[2] == 'computation' else read_availability)(sys.argv[1])\n"
        "except FleetError as error: print(error)\n"
    )
    line = [sys.executable, "-c", program, str(tmp_path / "trace"), key]
    found = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr, found.stdout.count("\n")) == (0, "", 1)
    assert re.search(r"trace, client 3(: | is ).*\[\.\.\.\].* (Give|Each client has) ", found.stdout)
    assert len(found.stdout) < 700


@pytest.mark.parametrize("read", [read_capacity, read_availability])
def test_what_is_no_file_or_no_trace_is_refused(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FleetError, match="nowhere cannot be read: No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(FleetError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "half").write_bytes(written(tmp_path / "whole", CAPACITY).read_bytes()[:-20])
    with pytest.raises(FleetError, match="half is no pickle, or a damaged one"):
        read(tmp_path / "half")
    with pytest.raises(FleetError, match="code is a pickle that wants to run code"):
        read(written(tmp_path / "code", {1: Path("x")}))
