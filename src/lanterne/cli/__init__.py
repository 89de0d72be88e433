"""The command line: one file per verb. What is slow to import is imported inside the verbs, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from lanterne.cli.app import app
from lanterne.cli.output import StoppedError, complain
from lanterne.errors import InputError, LanterneError

# Recent versions of typer bring their own copy of click: its base classes are found through what it exports.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script.

    Args:
        arguments: the command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0; 2 for the user's mistake; 1 where the machine or an algorithm failed; 130 after Ctrl-C.
    """
    try:
        status = app(None if arguments is None else list(arguments), prog_name="lanterne", standalone_mode=False)
        sys.stdout.flush()
    except StoppedError as stopped:
        return complain(str(stopped), stopped.status)
    except _UsageError as error:
        return complain(_usage(error), 2)
    except InputError as error:
        return complain(str(error), 2)
    except LanterneError as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        # Whoever read the output has left: nothing more is to be said, not even when Python closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        return complain(f"{error.strerror or error}{place}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return complain("Interrupted.", 130)
    return status if isinstance(status, int) else 0


def _usage(error: Exception) -> str:
    """What is wrong with the command line, and where to read how it is right."""
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "lanterne"
    # Two shapes of the same hint, from two generations of click.
    message = message.replace("?.", "?")
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} `{path} --help` lists what there is."


__all__ = ["app", "main"]
