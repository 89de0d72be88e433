"""From what pydantic found to one sentence that says where, what, why, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lanterne.errors import ConfigError, nearest
from lanterne.experiment.tables import bare, shown

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text in quotation marks",
    "bool": "true or false",
    "tuple": "a list, as in [1, 2]",
    "list": "a list, as in [1, 2]",
    "dict": "a table",
    "model": "a table",
    "model_attributes": "a table",
}
_LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda c: f"above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"below {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "finite_number": lambda _: "finite",
    "string_too_short": lambda _: "something",
}


def mistake(error: ValidationError, where: str = "", keys: Mapping[str, Sequence[str]] | None = None) -> ConfigError:
    """The first thing that pydantic found, as an error of ours.

    Args:
        error: what pydantic raised.
        where: the dotted key of what was validated; empty for a whole experiment.
        keys: the known keys by dotted table, the top being "".

    Returns:
        The error to raise.
    """
    # A misspelt key explains what is missing.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    kind, value, limits = first["type"], first["input"], first.get("ctx", {})
    place = _dotted(where, first["loc"])
    if kind == "extra_forbidden":
        return _unknown(_dotted(where, first["loc"][:-1]), str(first["loc"][-1]), keys or {})
    if kind == "missing":
        return ConfigError(f'{place} is missing. Name who races: [algorithms.salf], or algorithms = ["salf", "drop"].')
    if kind == "value_error":
        return ConfigError(f"{place}: {limits['error']}")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", limits["expected"])
        return ConfigError(f"{place} is {shown(value)}. {nearest(str(value), choices)}")
    if kind in _LIMITS:
        return ConfigError(f"{place} is {shown(value)}, but has to be {_LIMITS[kind](limits)}.")
    wanted = _WANTED.get(re.sub(r"_(type|parsing|from_float)$", "", kind))
    if wanted:
        table = f" Write [{place}] and its keys below it." if wanted == "a table" else ""
        return ConfigError(f"{place} is {shown(value)}, but has to be {wanted}.{table}")
    return ConfigError(f"{place} is {shown(value)}: {first['msg']}.")


def _unknown(table: str, key: str, keys: Mapping[str, Sequence[str]]) -> ConfigError:
    """A key that is not there, and where it is."""
    place, within = (f"{table}.{bare(key)}", f" in [{table}]") if table else (bare(key), " at the top")
    homes = {name: home for home, known in reversed(list(keys.items())) for name in known}
    hint = nearest(key, keys.get(table, ()))
    right = key if key in homes else None
    if right is None and hint.startswith("Choose"):  # nothing here is near: perhaps it belongs elsewhere
        right = next(iter(difflib.get_close_matches(key, homes, n=1)), None)
    if right is not None:
        home = homes[right]
        hint = f"Did you mean {f'{home}.{right}' if home else f'{right} at the top, above the first table'}?"
    return ConfigError(f"{place}: there is no such key{within}. {hint}")


def _dotted(where: str, loc: Sequence[int | str]) -> str:
    """The place of a value as a user writes it: `seeds[1]`, `training.lr`."""
    text = where
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{bare(part)}" if text else bare(part)
    return text
