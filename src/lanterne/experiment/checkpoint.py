"""A checkpoint is one file, written whole or not at all: the structure as JSON in its header, the tensors behind it.

Nothing in it is executable. A tensor that stands in several places is stored once and comes back as one object.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lanterne.errors import RunError

_STRUCTURE = "lanterne"
#: Above so many entries a table of integers is stored as a tensor.
_MANY = 64


def encode(tree: object) -> tuple[Any, dict[str, Tensor]]:
    """A tree of plain data, frozen dataclasses and tensors as JSON and a table of tensors.

    Args:
        tree: None, booleans, numbers, strings, lists, tuples, ranges, dictionaries with any plain keys, dataclasses,
            tensors.

    Examples:
        >>> encode({"w": (1, 2.5)})
        ({'d': [['w', {'t': [1, 2.5]}]]}, {})
    """
    tensors: dict[str, Tensor] = {}
    known: dict[int, str] = {}
    made: list[Tensor] = []  # an identity says which tensor is meant only as long as it lives

    def walk(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, Tensor):
            if id(value) not in known:
                known[id(value)] = str(len(known))
                tensors[known[id(value)]] = value.detach().cpu().contiguous().clone()
            return {"x": known[id(value)]}
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(value)
        if isinstance(value, list):
            return [walk(v) for v in value]
        if isinstance(value, tuple):
            return {"t": [walk(v) for v in value]}
        if isinstance(value, range):
            return {"r": [value.start, value.stop, value.step]}
        if isinstance(value, Mapping) and len(value) > _MANY and _integers(value):
            # Counts per client: a hundred thousand of them must not be as many pieces of JSON.
            pairs = torch.tensor([[*value], [*value.values()]], dtype=torch.int64)
            made.append(pairs)
            return {"i": walk(pairs)}
        if isinstance(value, Mapping):
            return {"d": [[walk(k), walk(v)] for k, v in value.items()]}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: walk(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"s": [type(value).__qualname__, fields]}
        raise TypeError(
            f"A checkpoint cannot hold a {type(value).__name__}; states are plain data, tensors and frozen dataclasses."
        )

    return walk(tree), tensors


def _integers(value: Mapping[Any, Any]) -> bool:
    return all(type(k) is int for k in value) and all(type(v) is int for v in value.values())


def decode(structure: Any, tensors: Mapping[str, Tensor], classes: Mapping[str, type]) -> Any:  # noqa: ANN401
    """The tree of an encoding.

    Args:
        structure: what `encode` gave as JSON.
        tensors: its table.
        classes: the dataclasses that may occur, by their qualified names.
    """

    def walk(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):
            return [walk(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((tag, inner),) = value.items()
        if tag == "x":
            return tensors[inner]
        if tag == "t":
            return tuple(walk(v) for v in inner)
        if tag == "r":
            return range(*inner)
        if tag == "i":
            keys, values = walk(inner).tolist()
            return dict(zip(keys, values, strict=True))
        if tag == "d":
            return {walk(k): walk(v) for k, v in inner}
        name, fields = inner
        return classes[name](**{k: walk(v) for k, v in fields.items()})

    return walk(structure)


def state_classes(state: object) -> dict[str, type]:
    """The dataclasses of a state, its own and those within, by their qualified names."""
    found: dict[str, type] = {}
    todo = [state]
    while todo:
        value = todo.pop()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found[type(value).__qualname__] = type(value)
            todo += [getattr(value, f.name) for f in dataclasses.fields(value)]
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return found


def save(path: Path, tree: object) -> None:
    """Write a checkpoint so that after any interruption there is either the old file or the new one.

    Args:
        path: of the file.
        tree: what `encode` takes.
    """
    structure, tensors = encode(tree)
    partial = path.with_suffix(".partial")
    try:
        # safetensors refuses an empty table on some versions.
        save_file({**tensors, "_": torch.zeros(1)}, partial, metadata={_STRUCTURE: json.dumps(structure)})
    except SafetensorError as error:  # what its writer makes of a full disk
        raise OSError(str(error)) from error
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Args:
        path: of the file.
        text: all of it.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, classes: Mapping[str, type], device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
    """Read a checkpoint.

    Args:
        path: of the file.
        classes: the dataclasses that may occur.
        device: where the tensors go.

    Raises:
        RunError: for a file that is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            structure = json.loads(file.metadata()[_STRUCTURE])
            # Copied, for a tensor begins anywhere in a file: some processors' products depend on where one begins.
            tensors = {name: file.get_tensor(name).to(device, copy=True) for name in file.keys()}  # noqa: SIM118
        return decode(structure, tensors, classes)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}). Delete it to run this part of the experiment again from its start."
        ) from error
