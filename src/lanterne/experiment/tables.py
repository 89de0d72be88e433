"""An experiment as nested tables, before it is checked: read from a file, who races, and single settings changed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from lanterne.errors import ConfigError, nearest

#: The tables of an experiment.
SECTIONS = ("training", "data", "fleet", "model", "runtime", "algorithms")
#: Keys that mean a training parameter when they stand alone.
SHORTHANDS = ("lr", "local_steps", "momentum", "cohort", "deadline")

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=:,-]{0,79}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a file, not yet checked.

    Raises:
        ConfigError: for a file that is missing or is no TOML, with the line.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        there = [str(each) for each in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = nearest(str(path), there) if there else "Write it, or name the algorithms: lanterne run salf fedavg."
        raise ConfigError(f"There is no experiment file {path}. {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give a TOML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}), so it is no TOML. Save it as UTF-8."
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = f"at line {len(text.splitlines())}, the last)"
        said = str(error).replace("at end of document)", place)
        raise ConfigError(f"{path} is no TOML: {said}. Repair that line.") from None


def competitor(word: str) -> tuple[str, dict[str, Any]]:
    """A competitor as it is written in one word; the whole word is its label.

    Args:
        word: an algorithm, and hyperparameters behind a colon where they differ from the defaults.

    Returns:
        The label and the competitor's table.

    Raises:
        ConfigError: for a word that cannot be taken apart.

    Examples:
        >>> competitor("salf")
        ('salf', {})
        >>> competitor("salf:rule=code,lr=0.2")
        ('salf:rule=code,lr=0.2', {'algorithm': 'salf', 'rule': 'code', 'lr': 0.2})
    """
    name, colon, rest = word.partition(":")
    if not colon:
        return word, {}
    table: dict[str, Any] = {"algorithm": name}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{word!r} cannot be read at {part!r}. Write for instance 'salf:rule=code,p=zero'.")
        if key in table:
            raise ConfigError(f"{word!r} says twice what {key} is. Say it once.")
        table[key] = toml_value(value)
    return word, table


def competitors(given: object) -> dict[str, Any]:
    """The competitors by label, from a table of tables or from a list of words.

    Args:
        given: what stands under `algorithms`.

    Raises:
        ConfigError: for a label that is no name for a folder, or that occurs twice.

    Examples:
        >>> competitors(["salf", "drop"])
        {'salf': {}, 'drop': {}}
    """
    if isinstance(given, Mapping):
        pairs = [(str(label), table) for label, table in given.items()]
    elif isinstance(given, list | tuple) and all(isinstance(word, str) for word in given):
        pairs = [competitor(word) for word in given]
    else:
        raise ConfigError(
            f"algorithms is {shown(given)}, but has to be a list of names or a table of tables. "
            'Write algorithms = ["salf", "drop"], or [algorithms.salf] and its settings below it.'
        )
    seen: dict[str, str] = {}
    for label, _ in pairs:
        if not _LABEL.fullmatch(label):
            raise ConfigError(
                f"The label {shown(label)} of an algorithm cannot name a folder. "
                "Use at most 80 letters, digits and ._-=:, and begin with a letter or a digit."
            )
        # Some file systems do not tell capitals apart.
        if label.casefold() in seen:
            other = seen[label.casefold()]
            alike = f"{label!r} twice" if label == other else f"both {other!r} and {label!r}"
            raise ConfigError(
                f"algorithms has {alike}, and each needs a folder of its own. "
                f'Give one another label, as in [algorithms.{label}-2] with algorithm = "{label}".'
            )
        seen[label.casefold()] = label
    return dict(pairs)


def with_overrides(mapping: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """An experiment with single settings changed, in order.

    `lr`, `local_steps`, `momentum`, `cohort` and `deadline` alone mean those of `[training]`; a key that begins with
    the label of a competitor means its hyperparameter; all others are dotted paths from the top. Values are TOML;
    bare words are strings.

    Args:
        mapping: the experiment as it was read; it is not changed.
        settings: each `key=value`.

    Raises:
        ConfigError: for a setting without a value, or a path that leads nowhere.

    Examples:
        >>> with_overrides({"algorithms": ["salf"]}, ["lr=0.05", "salf.rule=cond", "fleet.slowdown=3"])
        {'algorithms': {'salf': {'rule': 'cond'}}, 'training': {'lr': 0.05}, 'fleet': {'slowdown': 3}}
    """
    changed: dict[str, Any] = deepcopy(dict(mapping))
    if "algorithms" in changed:
        changed["algorithms"] = competitors(changed["algorithms"])
    for setting in settings:
        path, text = _split(setting, changed.get("algorithms", {}))
        table: Any = changed
        for depth, part in enumerate(path[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{setting!r} cannot be set: {'.'.join(path[:depth])} is {shown(table)}, which has no parts. "
                    f"Write {'.'.join(path[:depth])}=value."
                )
        table[path[-1]] = toml_value(text)
    return changed


def toml_value(text: str) -> Any:  # noqa: ANN401
    """A value as TOML reads it; what TOML cannot read is a string.

    Examples:
        >>> toml_value("0.5"), toml_value("[1, 2]"), toml_value("inf"), toml_value("q0.5"), toml_value("'3'")
        (0.5, [1, 2], inf, 'q0.5', '3')
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def shown(value: object) -> str:
    """A value in a message: on one line, and not longer than can be read.

    Examples:
        >>> shown("a" * 100)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 55 else f"{text[:52]}..."


def bare(key: object) -> str:
    """A key as it stands in TOML: in quotation marks where it needs them.

    Examples:
        >>> bare("salf-2"), bare("salf:p=zero")
        ('salf-2', '"salf:p=zero"')
    """
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text)


def _split(setting: str, labels: Mapping[str, Any]) -> tuple[list[str], str]:
    """The path that a setting means, and its value as text."""
    for label in sorted(labels, key=len, reverse=True):  # labels may hold dots and equals signs themselves
        bare = setting.removeprefix("algorithms.")
        if bare.startswith(f"{label}."):
            key, value = _halves(setting, bare[len(label) + 1 :])
            return ["algorithms", label, *key.split(".")], value
    key, value = _halves(setting, setting)
    path = key.split(".")
    if not all(path):
        raise ConfigError(f"{setting!r} has an empty part in its key. Write key=value, as in training.lr=0.05.")
    if len(path) == 1 and key in SHORTHANDS:
        return ["training", key], value
    if path[0] == "algorithms" and len(path) > 2:
        raise ConfigError(f"{setting!r}: no competitor is called {path[1]!r}. {nearest(path[1], labels)}")
    if len(path) > 1 and path[0] not in SECTIONS:
        names = [*SECTIONS, *labels]
        raise ConfigError(f"{setting!r}: there is no table and no competitor {path[0]!r}. {nearest(path[0], names)}")
    return path, value


def _halves(setting: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key.strip() and equals and value.strip()):
        raise ConfigError(f"{setting!r} is no setting. Write key=value, as in lr=0.05 or fleet.slowdown=3.")
    return key.strip(), value.strip()
