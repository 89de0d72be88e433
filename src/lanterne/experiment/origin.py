"""With what a run began: directory, files and versions, so that it can go on from anywhere and notices a change.

A run may be resumed from any directory, and its directory may have been moved; what it is computed from must not have
changed. A file is known by its size and the SHA-256 of its content: of all of it up to 64 MiB, beyond that of 64 pieces
of 1 MiB at equal distances, the first and the last MiB among them. (A Parquet file ends with the sizes and places of
all that is in it, so another file of the same size is seen there as well.)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lanterne.data import data_files
from lanterne.errors import ConfigError
from lanterne.experiment.checkpoint import write_text
from lanterne.experiment.config import Config
from lanterne.experiment.parameters import is_file
from lanterne.fleet import PRESETS

if TYPE_CHECKING:
    from lanterne.experiment.build import Objects

_NAME = "origin.json"
_PACKAGES = ("lanterne", "torch", "numpy", "scipy", "flwr-datasets", "scikit-learn", "pillow")
_KEYS = ("directory", "directory_from_run", "files", "objects", "versions", "resumed_with")
_PIECE = 2**20
_PIECES = 64

Files = dict[str, dict[str, Any]]


def describe(config: Config, objects: Objects, out: Path) -> dict[str, Any]:
    """What a run begins with.

    Args:
        config: for the files that it names.
        objects: what is brought from Python, which cannot be written down.
        out: the run directory.
    """
    start = Path.cwd()
    return {
        "directory": str(start),
        "directory_from_run": os.path.relpath(start, out.resolve()),
        "files": {key: files for key, path in _named(config, objects).items() if (files := fingerprints(Path(path)))},
        "objects": objects.given,
        "versions": versions(),
        "begun": _now(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "resumed_with": [],
    }


def write_origin(out: Path, origin: Mapping[str, Any]) -> None:
    """Write down what a run began with.

    Args:
        out: its directory.
        origin: from `describe`.
    """
    write_text(out / _NAME, json.dumps(origin, indent=2) + "\n")


def read_origin(out: Path) -> dict[str, Any]:
    """What a run began with.

    Args:
        out: its directory.

    Raises:
        ConfigError: for a directory that holds no run.
    """
    for name in ("config.toml", _NAME):
        if not (out / name).is_file():
            raise ConfigError(
                f"{out} holds no run: there is no {name} in it. Give the directory that 'lanterne run' wrote."
            )
    try:
        origin: Any = json.loads((out / _NAME).read_text("utf-8"))
    except ValueError:
        origin = {}
    if not isinstance(origin, dict) or any(key not in origin for key in _KEYS):
        raise ConfigError(f"{out / _NAME} is damaged, so it is not known with what the run began. {_anew(out)}")
    return dict(origin)


def located(config: Config, origin: Mapping[str, Any], out: Path, objects: Objects) -> Config:
    """The configuration with the files in their places, wherever it is resumed, and unchanged.

    A relative path is looked for from the directory in which the run began, then from where that is now if it was moved
    together with the run directory, then from here.

    Args:
        config: of the run, its paths as they were given.
        origin: from `read_origin`.
        out: the run directory.
        objects: what was brought again.

    Raises:
        ConfigError: for a file that is not there or has changed.
    """
    places = [Path(origin["directory"]), (out / origin["directory_from_run"]).resolve(), Path.cwd()]
    found = {
        key: _locate(key, path, origin["files"][key], list(dict.fromkeys(places)), out)
        for key, path in _named(config, objects).items()
        if key in origin["files"]
    }
    parameters = {name: found.get(f"fleet.{name}", value) for name, value in config.fleet.parameters.items()}
    kind = found.get("fleet.kind", config.fleet.kind)
    fleet = config.fleet.model_copy(update={"kind": kind, "parameters": parameters})
    data = config.data.model_copy(update={"source": found.get("data.source", config.data.source)})
    return config.model_copy(update={"fleet": fleet, "data": data})


def check_versions(origin: Mapping[str, Any], out: Path) -> str:
    """Whether what computes now is what has computed until now.

    Another lanterne may mean something else by a round, and by a checkpoint: it is refused. Of another PyTorch, Python
    or machine it is not known whether it computes the same bits: whoever reads the numbers is told.

    Args:
        origin: from `read_origin`.
        out: the run directory.

    Returns:
        A warning, empty where nothing is different.

    Raises:
        ConfigError: for another version of lanterne.
    """
    then, now = origin["versions"], versions()
    if then["lanterne"] != now["lanterne"]:
        raise ConfigError(
            f"{out} was begun with lanterne {then['lanterne']}, and this is {now['lanterne']}, whose rounds and "
            f"checkpoints may be others. Install lanterne=={then['lanterne']} to go on. {_anew(out)}"
        )
    other = [f"{name} {then.get(name)} (now {now[name]})" for name in now if now[name] != then.get(name)]
    if not other:
        return ""
    return (
        f"{out} was begun with {', '.join(other)}: from here on its numbers may differ from those of a run that was "
        "not interrupted. Go on with the versions of then to have the same bits."
    )


def note_versions(origin: dict[str, Any], out: Path) -> None:
    """Write down the versions with which a run goes on, where they are others than those until now.

    Args:
        origin: from `read_origin`.
        out: the run directory.
    """
    now = versions()
    until_now = [each["versions"] for each in origin["resumed_with"]] or [origin["versions"]]
    if now != until_now[-1]:
        origin["resumed_with"].append({"at": _now(), "versions": now})
        write_origin(out, origin)


def fingerprints(path: Path) -> Files:
    """Size and SHA-256 of a file, or of each file that a data set in a folder is read from, by its path in there.

    There are none of a data set that has no files of its own.

    Args:
        path: of a file or a folder.
    """
    path = path.expanduser()
    folder = path if path.is_dir() else path.parent
    return {
        each.relative_to(folder).as_posix(): {"bytes": each.stat().st_size, "sha256": _digest(each)}
        for each in data_files(str(path))
    }


def versions() -> dict[str, str]:
    """What the bits of a run depend on besides its configuration and its files."""
    found = {name: version(name) for name in _PACKAGES}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def _named(config: Config, objects: Objects) -> dict[str, str]:
    """What a configuration names that may be a file or a folder, by its keys."""
    named = {}
    if objects.fleet is None and is_file(config.fleet.kind):
        named["fleet.kind"] = config.fleet.kind
    elif objects.fleet is None:
        given = config.fleet.parameters
        named |= {f"fleet.{name}": given[name] for name in PRESETS[config.fleet.kind].files if given.get(name)}
    if objects.data is None:
        named["data.source"] = config.data.source
    return named


def _locate(key: str, path: str, known: Files, places: list[Path], out: Path) -> str:
    """Where a file or a folder is that has not changed."""
    relative = Path(path).expanduser() if path.startswith("~/") else Path(path)
    candidates = list(dict.fromkeys(place / relative for place in places))
    present = {candidate: fingerprints(candidate) for candidate in candidates if candidate.exists()}
    for candidate, now in present.items():
        if now == known:
            return str(candidate)
    if not present:
        raise ConfigError(
            f"{path} ({key}), with which {out} was begun, is not there any more: looked for "
            f"{', '.join(map(str, candidates))}. Put it back, or resume in the directory from which {path} leads to it."
        )
    first, now = next(iter(present.items()))
    raise ConfigError(
        f"{first} ({key}) has changed since {out} was begun: {_difference(known, now)}. What was computed until now "
        f"belongs to the old one. Put that back to go on. {_anew(out)}"
    )


def _difference(known: Files, now: Files) -> str:
    """What is different first."""
    for name in {**known, **now}:
        if name not in now:
            return f"{name} is gone"
        if name not in known:
            return f"{name} is new"
        then, size = known[name]["bytes"], now[name]["bytes"]
        if then != size:
            return f"{name} had {then} bytes and has {size}"
        if known[name] != now[name]:
            break
    return f"{name} has other content"


def _digest(path: Path) -> str:
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= _PIECES * _PIECE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for piece in range(_PIECES):
            file.seek(piece * (size - _PIECE) // (_PIECES - 1))
            found.update(file.read(_PIECE))
    return found.hexdigest()


def _anew(out: Path) -> str:
    return f"Or begin anew: lanterne run {shlex.quote(str(out / 'config.toml'))} --out ANOTHER"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
