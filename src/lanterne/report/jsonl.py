"""JSON files as an append-only writer leaves them, also when it was killed in the middle of a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lanterne.errors import ConfigError

Record = Mapping[str, Any]


def lines(path: Path, needed: Sequence[str]) -> Iterator[Record]:
    """The objects of a file of JSON lines, one at a time.

    Half a line at the end is what a kill leaves, and is ignored; one further up is not, and is an error.

    Args:
        path: the file; a missing one has no lines.
        needed: keys that every object has.

    Yields:
        One mapping per line.

    Raises:
        ConfigError: the file cannot be read, or is damaged before its last line.
    """
    torn = 0
    try:
        with path.open("rb") as file:
            for count, line in enumerate(file, start=1):
                if torn:
                    raise _damaged(path, torn, "is not JSON")
                try:
                    record = json.loads(line)
                except ValueError:
                    torn = count
                    continue
                if not isinstance(record, dict) or not all(key in record for key in needed):
                    raise _damaged(path, count, f"is not an object with the keys {', '.join(needed)}")
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def whole(path: Path) -> Record | None:
    """The object of a JSON file.

    Args:
        path: the file.

    Returns:
        None where the file is absent, or was being written when its writer was killed.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object. Delete it, and resume the run.")
    return found


def _damaged(path: Path, line: int, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: line {line} {why}, and lanterne only ever appends whole lines. "
        f"Restore the file, or delete the folder {path.parent.name} and resume the run, which computes it anew."
    )
