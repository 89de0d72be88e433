"""Pickled dictionaries, lists, numbers and texts, and nothing else: a file that asks for more is refused.

This reads the few opcodes of the pickle format that data need, and knows none that names, calls or builds anything. The
standard library's `Unpickler` with a `find_class` that refuses would be shorter, but a file can still end the process
with it (a deep tuple as a key overflows the stack) or have it take all memory (with nine bytes).
"""

from __future__ import annotations

import pickletools
import struct
from pathlib import Path
from typing import Any

from lanterne.errors import FleetError

_OPCODES = {op.name: ord(op.code) for op in pickletools.opcodes}
#: What says so in a pickle that code is to be run, or an object made by it.
_CODE = frozenset({
    "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX",
    "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID",
})  # fmt: skip

BININT, BININT1, BININT2, BINFLOAT = (_OPCODES[name] for name in ("BININT", "BININT1", "BININT2", "BINFLOAT"))
BINGET, LONG_BINGET, BINPUT, LONG_BINPUT = (
    _OPCODES[name] for name in ("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT")
)
MEMOIZE, MARK, STOP, PROTO, FRAME = (_OPCODES[name] for name in ("MEMOIZE", "MARK", "STOP", "PROTO", "FRAME"))
EMPTY_DICT, SETITEM, SETITEMS = (_OPCODES[name] for name in ("EMPTY_DICT", "SETITEM", "SETITEMS"))
EMPTY_LIST, APPEND, APPENDS = (_OPCODES[name] for name in ("EMPTY_LIST", "APPEND", "APPENDS"))
LONG1 = _OPCODES["LONG1"]
_PROTOCOLS = range(2, 6)
#: How many bytes say how long a text is.
_TEXTS = {_OPCODES["SHORT_BINUNICODE"]: 1, _OPCODES["BINUNICODE"]: 4, _OPCODES["BINUNICODE8"]: 8}
_CONSTANTS = {_OPCODES["NONE"]: None, _OPCODES["NEWTRUE"]: True, _OPCODES["NEWFALSE"]: False}


def read_pickle(path: str | Path) -> object:
    """The dictionaries, lists, numbers and texts of a pickle of protocol 2 to 5, which Python 3 writes by default.

    Args:
        path: of the file.

    Returns:
        What was pickled: a `dict`, `list`, `int`, `float`, `str`, `bool` or None.

    Raises:
        FleetError: for a file that cannot be read, ends too soon, or holds anything else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FleetError(f"{path} cannot be read: {error.strerror or error}. Give the path of the file.") from error
    try:
        return _load(data)
    except FleetError as error:
        raise FleetError(f"{path} {error}") from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
        raise FleetError(
            f"{path} is no pickle, or a damaged one: its {len(data)} bytes end too soon or make no sense. Get the file "
            "anew; what git leaves of a large file may be a pointer to it."
        ) from None


def _load(data: bytes) -> object:
    """Run the stack machine; what is not data stops it."""
    if data[0] != PROTO or data[1] not in _PROTOCOLS:
        raise FleetError(
            f"is not a pickle of protocol 2 to 5: it begins with {data[:4]!r}. Give a file that Python 3's pickle.dump "
            "wrote; what git leaves of a large file may be a pointer to it."
        )
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []  # picklers number what they keep from 0
    at = 2

    while True:
        op = data[at]
        at += 1
        if op == BININT:
            stack.append(struct.unpack_from("<i", data, at)[0])
            at += 4
        elif op == BININT2:
            stack.append(data[at] | data[at + 1] << 8)
            at += 2
        elif op == BINFLOAT:
            stack.append(struct.unpack_from(">d", data, at)[0])
            at += 8
        elif op == BINGET:
            stack.append(memo[data[at]])
            at += 1
        elif op == MEMOIZE:
            memo.append(stack[-1])
        elif op == BINPUT:
            _keep(memo, data[at], stack[-1])
            at += 1
        elif op == LONG_BINPUT:
            _keep(memo, _unsigned(data, at, 4), stack[-1])
            at += 4
        elif op == MARK:
            marks.append(len(stack))
        elif op == EMPTY_DICT:
            stack.append({})
        elif op == SETITEMS:
            first = marks.pop()
            keys, values = stack[first::2], stack[first + 1 :: 2]
            del stack[first:]
            stack[-1].update(zip(keys, values, strict=True))
        elif op == EMPTY_LIST:
            stack.append([])
        elif op == APPENDS:
            first = marks.pop()
            items = stack[first:]
            del stack[first:]
            stack[-1].extend(items)
        elif op == BININT1:
            stack.append(data[at])
            at += 1
        elif op == LONG_BINGET:
            stack.append(memo[_unsigned(data, at, 4)])
            at += 4
        elif op in _TEXTS:
            length = _unsigned(data, at, _TEXTS[op])
            at += _TEXTS[op]
            if length > len(data) - at:
                raise IndexError
            stack.append(data[at : at + length].decode("utf-8", "surrogatepass"))
            at += length
        elif op == LONG1:
            length = data[at]
            at += 1
            stack.append(int.from_bytes(data[at : at + length], "little", signed=True))
            at += length
        elif op == APPEND:
            item = stack.pop()
            stack[-1].append(item)
        elif op == SETITEM:
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == FRAME:
            at += 8
        elif op == PROTO:
            at += 1
        elif op == STOP:
            (value,) = stack
            return value
        else:
            _refuse(op, at - 1)


def _keep(memo: list[Any], place: int, value: object) -> None:
    """Keep a value for later: at the next place, or at one that was taken before."""
    if place == len(memo):
        memo.append(value)
    else:
        memo[place] = value


def _unsigned(data: bytes, at: int, size: int) -> int:
    """A number that says how long something is, or where."""
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "little")


def _refuse(op: int, at: int) -> None:
    """Say of an opcode what it is.

    Raises:
        FleetError: always, unless there is no such opcode.
    """
    name = next((name for name, code in _OPCODES.items() if code == op), None)
    if name is None:
        raise ValueError(op)
    if name in _CODE:
        raise FleetError(
            f"is a pickle that wants to run code or to build objects ({name} at byte {at}), and was not let. Give a "
            "file of dictionaries, lists, numbers and texts; do not open this one with pickle.load, for it may do harm."
        )
    raise FleetError(
        f"is a pickle that holds more than dictionaries, lists, numbers and texts ({name} at byte {at}). Write those "
        "alone, with protocol 2 to 5."
    )
