"""What a page of Markdown tells its reader to run.

    page ── blocks (fenced, each with a language) ── steps: a file to write, Python to execute, a command to run

A page that could hide something to run from the tests (an unknown language, an indented command, a pipe) is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>```+|~~~+)\s*(?P<language>[\w-]*)\s*(?P<rest>.*)")
TITLE = re.compile(r'title="([^"]+)"')
STATUS = re.compile(r"#.*\bexit status (\d+)")
SHELL = frozenset({"bash", "console"})
SHOWN = frozenset({"csv", "json", "text", "toml"})  # languages that are read and not run
PROGRAMS = r"(?:\$|lanterne|pip3?|python3?|git|uv|pytest|curl|wget) "
HIDDEN = re.compile(rf"\s*\$ |(?:\s{{4,}}|\t){PROGRAMS}|.*<(?:pre|code)\b")
BEYOND = re.compile(r"[()<>|&;]+|.*[$`*].*|~.*")  # words that only a shell understands


class UnclearPageError(Exception):
    """A page from which one cannot tell what is to be run."""


@dataclass(frozen=True)
class Step:
    """One thing that a reader does: `kind` is write (a titled block), python or shell."""

    page: Path
    line: int
    kind: str
    text: str
    title: str = ""
    status: int = 0


@dataclass
class Block:
    language: str
    title: str
    line: int  # of the first line inside
    lines: list[str] = field(default_factory=list)


def blocks(page: Path, text: str) -> Iterator[Block]:
    """The fenced blocks; everything else is checked for commands that hide outside of them."""
    block, fence = None, ""
    for number, line in enumerate(text.splitlines(), 1):
        if block is not None:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield block
                block = None
            else:
                block.lines.append(line)
        elif opening := FENCE.fullmatch(line):
            title = TITLE.search(opening["rest"])
            block, fence = Block(opening["language"], title[1] if title else "", number + 1), opening["fence"]
        elif HIDDEN.match(line):
            raise UnclearPageError(f"{page}:{number}: what is to be run stands in a fenced block: {line.strip()}")
    if block is not None:
        raise UnclearPageError(f"{page}:{block.line - 1}: this block never ends")


def commands(page: Path, block: Block) -> Iterator[Step]:
    """One step for each command of a shell block; of a console block only lines with a prompt are commands."""
    pending, start = "", 0
    for number, line in enumerate(block.lines, block.line):
        command = line.strip()
        if block.language == "console" and not pending:
            if not command.startswith("$ "):
                continue
            command = command.removeprefix("$ ")
        start = start if pending else number
        pending += command
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        status = STATUS.search(pending)
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        if any(BEYOND.fullmatch(word) for word in words):
            raise UnclearPageError(f"{page}:{start}: one plain command a line, nothing for a shell: {pending}")
        if words:
            yield Step(page, start, "shell", shlex.join(words), status=int(status[1]) if status else 0)
        pending = ""
    if pending:
        raise UnclearPageError(f"{page}:{start}: this command never ends: {pending}")


def steps(page: Path, text: str) -> list[Step]:
    """Everything that a page tells its reader to do, in its order."""
    found = []
    for block in blocks(page, text):
        code = dedent("\n".join(block.lines)) + "\n"
        if block.title:
            found.append(Step(page, block.line, "write", code, title=block.title))
        if block.language == "python":
            found.append(Step(page, block.line, "python", code))
        elif block.language in SHELL:
            found.extend(commands(page, block))
        elif block.language not in SHOWN:
            known = ", ".join(sorted({"python"} | SHELL | SHOWN))
            raise UnclearPageError(f"{page}:{block.line - 1}: a block in {block.language!r}; known: {known}")
        elif re.search(rf"^\s*{PROGRAMS}", code, re.MULTILINE):
            raise UnclearPageError(f"{page}:{block.line - 1}: what is to be run stands in a bash or console block")
    return found


def spans(text: str) -> set[str]:
    """Code within sentences, fenced blocks left out."""
    outside, inside = [], False
    for line in text.splitlines():
        if FENCE.fullmatch(line):
            inside = not inside
        elif not inside:
            outside.append(line)
    return {" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", "\n".join(outside))}
