"""What all verbs share: where output goes, and how a failure is told."""

from __future__ import annotations

import json
import math
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanterne.errors import HandlerError, ProtocolError, RunError

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"


AsFormat = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an algorithm's own error.")]


class StoppedError(Exception):
    """A verb ends early, with a message and an exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def console() -> Console:
    """Standard output, for results."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: str) -> None:
    """A line of result on standard output."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """A line on standard error that begins with `warning: `."""
    sys.stderr.write(f"warning: {text}\n")


def complain(text: str, status: int) -> int:
    """Say on standard error what went wrong.

    Returns:
        The status, to be returned on.
    """
    sys.stderr.write(f"error: {text}\n")
    return status


def say_json(value: object) -> None:
    """One JSON document on standard output; numbers that JSON does not have become null.

    Args:
        value: nested mappings, sequences and plain values.
    """
    say(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def resume_command(out: Path) -> str:
    """What goes on with a run, ready to be pasted into a shell."""
    return f"lanterne resume {shlex.quote(str(out))}"


@contextmanager
def resumable(out: Path, debug: bool) -> Iterator[None]:
    """While a run is computed: whatever ends it early says what is safe and how to go on.

    Args:
        out: the run directory, which may not have been made yet.
        debug: whether an algorithm's own error shows its traceback.

    Raises:
        StoppedError: instead of what a run ends with early, the user's mistakes excepted.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"Interrupted. {_safe(out)}", 130) from None
    except RunError as error:
        hint = "" if "lanterne resume" in str(error) else f" {_safe(out)}"
        raise StoppedError(f"{error}{hint}", 1) from None
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise StoppedError(f"{error.strerror or error}{place}. {_safe(out)}", 1) from None
    except MemoryError:
        raise StoppedError(f"There is not enough memory. {_safe(out)}", 1) from None
    except (ProtocolError, HandlerError) as error:
        if debug:
            sys.stderr.write(traceback.format_exc())
        trace = "" if debug else " Add --debug for the traceback."
        raise StoppedError(f"{' '.join(str(error).split())}{trace} {_safe(out)}", 1) from None
    except Exception as error:
        # A mistake of lanterne's own keeps its traceback.
        error.add_note(_safe(out))
        raise


def _safe(out: Path) -> str:
    if (out / "config.toml").exists():
        return f"Every finished round is safe; go on with: {resume_command(out)}"
    return "Nothing had begun: start it again."


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
