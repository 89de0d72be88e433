"""Data come out as they were pickled, and nothing else comes out at all: code, bombs and fragments are refused."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanterne.errors import FleetError
from lanterne.fleet.unpickle import read_pickle

PROTOCOLS = [2, 3, 4, 5]
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=300)
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(scalars, inner, max_size=5),
    max_leaves=30,
)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(content)
    return path


class Harm:
    """What an attacker pickles: a call, to be made by whoever reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Plain:
    """An object of a class of the user's own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles")


# -------------------------------------------------------------------------------------------------------------- data
@given(data, st.sampled_from(PROTOCOLS))
@settings(max_examples=150)
def test_data_come_out_as_they_were_pickled(folder: Path, value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    found = read_pickle(written(folder, content))
    assert repr(found) == repr(pickle.loads(content)) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_dictionaries_and_what_stands_in_them_twice(folder: Path, protocol: int) -> None:
    """Beyond 256 entries of the memo, beyond batches of 1000, and a list that is one object in two places."""
    same = [1, 2]
    value: dict[object, object] = {i: {"computation": i / 7, "word" + str(i): same} for i in range(2500)}
    found = read_pickle(written(folder, pickle.dumps(value, protocol)))
    assert found == value
    assert found[0]["word0"] is found[2499]["word2499"]  # type: ignore[index]


def test_one_item_at_a_time_and_frames(folder: Path) -> None:
    """Opcodes for a single item, and files of several frames."""
    value = {"long": "x" * 100_000, "list": [1], "more": ["y"] * 100_000}
    content = pickle.dumps(value, 4)
    names = [op.name for op, _, _ in pickletools.genops(content)]
    assert {"SETITEMS", "APPEND"} <= set(names)
    assert names.count("FRAME") > 2
    assert read_pickle(written(folder, content)) == value
    single = pickle.dumps({"a": 1}, 2)
    assert "SETITEM" in {op.name for op, _, _ in pickletools.genops(single)}
    assert read_pickle(written(folder, single)) == {"a": 1}


# ---------------------------------------------------------------------------------------------------------- hostile
@pytest.mark.parametrize("protocol", [0, 1, *PROTOCOLS])
def test_no_code_is_run(folder: Path, tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "sprung"
    content = pickle.dumps({0: {"computation": Harm(Path.touch, trap)}}, protocol)
    with pytest.raises(FleetError, match=r"wants to run code|is not a pickle of protocol 2 to 5"):
        read_pickle(written(folder, content))
    assert not trap.exists()
    pickle.loads(content)
    assert trap.exists()


OPCODES = {op.name: op.code.encode("latin-1") for op in pickletools.opcodes}
HOSTILE = {
    "GLOBAL": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "INST": b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"\x80\x02Pname\n.",
    "BINPERSID": b"\x80\x02K\x01Q.",
    "OBJ": b"\x80\x02(K\x01o.",
    "REDUCE": b"\x80\x02K\x01K\x02R.",
    "BUILD": b"\x80\x02}}b.",
    "NEWOBJ": b"\x80\x02K\x01K\x02\x81.",
    "NEWOBJ_EX": b"\x80\x02K\x01K\x02K\x03\x92.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_opcode_that_runs_or_builds_is_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(
        FleetError, match=rf"trace is a pickle that wants to run code .*\({name} at byte \d+\)"
    ) as error:
        read_pickle(written(folder, HOSTILE[name]))
    assert "do not open this one with pickle.load" in str(error.value)


@pytest.mark.parametrize("name", sorted(OPCODES))
def test_an_opcode_is_data_or_refused(folder: Path, name: str) -> None:
    """Of all there are: what is not refused has put nothing but data on the stack."""
    known = {
        "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "NONE", "NEWTRUE", "NEWFALSE",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_DICT", "SETITEM", "SETITEMS",
        "EMPTY_LIST", "APPEND", "APPENDS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
        "MEMOIZE", "MARK", "PROTO", "FRAME", "STOP",
    }  # fmt: skip
    with pytest.raises(FleetError, match="damaged" if name in known else r"wants to run code|holds more than"):
        read_pickle(written(folder, b"\x80\x04" + OPCODES[name]))


@pytest.mark.parametrize(
    ("value", "name"),
    [((1, 2), "TUPLE2"), ({1, 2}, "EMPTY_SET"), (b"bytes", "SHORT_BINBYTES"), (2**5000, "LONG4")],
)
def test_other_built_in_values_are_refused_as_what_they_are(folder: Path, value: object, name: str) -> None:
    with pytest.raises(FleetError, match=rf"holds more than dictionaries, lists, numbers and texts \({name} at byte"):
        read_pickle(written(folder, pickle.dumps(value, 4)))


def test_objects_and_arrays_are_refused(folder: Path) -> None:
    np = pytest.importorskip("numpy")
    for value in (Plain(), np.zeros(3), np.float64(1.0), Path("x")):
        with pytest.raises(FleetError, match="wants to run code or to build objects"):
            read_pickle(written(folder, pickle.dumps({0: value}, 4)))


BOMBS = {
    "a tuple two million deep as a key, which overflows the stack of the standard unpickler": (
        b"\x80\x04})" + b"\x85" * 2_000_000 + b"K\x01s."
    ),
    "a place in the memo for which the standard unpickler takes gigabytes": b"\x80\x04}r\xff\xff\xff\x07.",
    "a text that says it is as long as the memory": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a frame that says it is as long as the memory": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "a list in itself": b"\x80\x04]\x94h\x00a.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=range(len(BOMBS)))
def test_bombs_neither_end_the_process_nor_take_its_memory(tmp_path: Path, content: bytes) -> None:
    program = (
        "import resource, sys\n"
        "from lanterne.errors import FleetError\n"
        "from lanterne.fleet.traces import read_capacity\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_capacity(sys.argv[1])\n"
        "except FleetError: pass\n"
        "else: sys.exit(3)\n"
        "sys.exit(4 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 100_000 else 0)\n"
    )
    line = [sys.executable, "-c", program, str(written(tmp_path, content))]
    assert subprocess.run(line, check=False).returncode == 0


# ----------------------------------------------------------------------------------------------------------- damaged
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_ends_anywhere_is_refused(folder: Path, protocol: int) -> None:
    value = {0: {"computation": 162.0, "n": [1, 300, 70000, -1, 2**40]}, "k" * 300: None, 2: [True, [], {}]}
    content = pickle.dumps(value, protocol)
    for end in range(len(content)):
        with pytest.raises(
            FleetError, match=r"is no pickle, or a damaged one: its .* bytes end too soon or make no sense"
        ):
            read_pickle(written(folder, content[:end]))


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_file_is_data_or_refused(folder: Path, draw: st.DataObject) -> None:
    """Whatever a byte turns into: never a traceback of another kind."""
    content = bytearray(
        pickle.dumps({i: {"a": [i, 0.5], "b": "x"} for i in range(5)}, draw.draw(st.sampled_from(PROTOCOLS)))
    )
    for _ in range(draw.draw(st.integers(1, 3))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(FleetError):
        read_pickle(written(folder, bytes(content)))


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_are_data_or_refused(folder: Path, content: bytes) -> None:
    for start in (b"", b"\x80\x04"):
        with contextlib.suppress(FleetError):
            read_pickle(written(folder, start + content))


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PAR1\x15\x04",  # a Parquet file, whose first letter is an opcode that asks for an object
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",  # protocol 0
        b"}q\x00.",  # protocol 1
        b"\x80\x01}.",
        b"\x80\x06}.",
    ],
)
def test_files_of_other_kinds_are_refused_as_what_they_are_not(folder: Path, content: bytes) -> None:
    with pytest.raises(FleetError, match=r"trace is not a pickle of protocol 2 to 5: it begins with b'") as error:
        read_pickle(written(folder, content))
    assert repr(content[:4]) in str(error.value)
    assert "harm" not in str(error.value)


def test_an_empty_file_is_refused(folder: Path) -> None:
    with pytest.raises(FleetError, match="trace is no pickle, or a damaged one: its 0 bytes"):
        read_pickle(written(folder, b""))


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="nowhere cannot be read: No such file or directory"):
        read_pickle(tmp_path / "nowhere")
    with pytest.raises(FleetError, match="cannot be read: Is a directory"):
        read_pickle(tmp_path)


def test_places_in_the_memo_are_taken_in_order_or_again(folder: Path) -> None:
    """Kept at 0, kept at 1, kept at 0 again; what is asked for beyond them is not there."""
    assert read_pickle(written(folder, b"\x80\x02](]q\x00}q\x01X\x01\x00\x00\x00xq\x00h\x00h\x01e.")) == [
        [],
        {},
        "x",
        "x",
        {},
    ]
    for beyond in (b"\x80\x02](]q\x00h\x01e.", b"\x80\x02](]q\x02h\x00e.", b"\x80\x02](]r\xff\xff\xff\xffe."):
        with pytest.raises(FleetError, match="make no sense"):
            read_pickle(written(folder, beyond))
