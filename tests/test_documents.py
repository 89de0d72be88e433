"""Every command and every Python block of every page is executed, and so is every example.

The steps of a page share a directory and a namespace and are executed in their order. A new kind of command is not
passed over: it fails until somebody says here how it is checked.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

import processes
from documents import Step, UnclearPageError, spans, steps

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md", "studies/**/*.md")
    for page in sorted(ROOT.glob(pattern))
]
STEPS = [step for page in PAGES for step in steps(page.relative_to(ROOT), page.read_text())]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def execute(what: Callable[..., object], words: list[str], directory: Path, status: int) -> None:
    ended = processes.fork(what, *words, directory=directory)
    assert ended.status == status, f"exit status {ended.status}\n{ended.output}"


def lanterne(words: list[str], directory: Path, status: int) -> None:
    execute(processes.lanterne, words[1:], directory, status)


def python(words: list[str], directory: Path, status: int) -> None:
    assert words[1].endswith(".py"), "python runs a script of this repository or of this page"
    execute(processes.script, words[1:], directory, status)


def make(words: list[str], directory: Path, status: int) -> None:
    """Not run: the tests run within one of the targets, and the others take longer. The targets exist."""
    del directory, status
    assert set(words[1:]) <= TARGETS, f"the Makefile has {sorted(TARGETS)}"


def pip(words: list[str], directory: Path, status: int) -> None:
    """Not run: `make` has installed this tree in this way, and test_wheel.py installs a wheel elsewhere."""
    del directory, status
    assert words[1:4] == ["install", "-c", "constraints.txt"], "PyTorch is pinned by the constraints file"
    for word in words[4:]:
        what = re.fullmatch(r"-e|(?:\.|lanterne)(?:\[([\w,]+)\])?", word)
        assert what, f"{word}: only lanterne and its extras"
        assert set((what[1] or "").split(",")) <= EXTRAS | {""}, f"the extras are {sorted(EXTRAS)}"


def clone(words: list[str], directory: Path, status: int) -> None:
    """Not run: it needs a network, and its outcome is the checkout in which this test runs."""
    del directory, status
    assert words[1] == "clone"
    assert len(words) == 3


def enter(words: list[str], directory: Path, status: int) -> None:
    """Not run: the reader enters the checkout, where this test already is."""
    del directory, status
    assert words == ["cd", "lanterne"]


def activate(words: list[str], directory: Path, status: int) -> None:
    """Not run: it changes the reader's shell, not the machine."""
    del directory, status
    assert words == ["source", ".venv/bin/activate"]


KINDS: dict[str, Callable[[list[str], Path, int], None]] = {
    "cd": enter,
    "git": clone,
    "lanterne": lanterne,
    "make": make,
    "pip": pip,
    "python": python,
    "source": activate,
}


def command(text: str, directory: Path, status: int = 0) -> None:
    words = shlex.split(text)
    if words[0] not in KINDS:
        raise UnclearPageError(f"nobody has said how {words[0]!r} is checked; known: {', '.join(sorted(KINDS))}")
    KINDS[words[0]](words, directory, status)


@dataclass
class Reader:
    """Somebody who follows one page, step by step, in a directory of their own."""

    directory: Path
    steps: list[Step]
    module: ModuleType = field(default_factory=lambda: ModuleType("page"))
    failed: dict[Step, BaseException] = field(default_factory=dict)

    def follow(self, until: Step) -> None:
        """Does what comes up to and with a step; what was done is not done again, and what failed stays failed."""
        while self.steps and self.steps[0].line <= until.line:
            step = self.steps.pop(0)
            try:
                self.do(step)
            except BaseException as error:
                self.failed[step] = error
                raise
        if until in self.failed:
            raise self.failed[until]

    def do(self, step: Step) -> None:
        if step.kind == "write":
            path = self.directory / step.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
        elif step.kind == "shell":
            command(step.text, self.directory, step.status)
        else:
            code = "\n" * (step.line - 1) + step.text  # so that a traceback points into the page
            exec(compile(code, str(ROOT / step.page), "exec"), self.module.__dict__)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Reader]:
    found = {}
    for page in {step.page for step in STEPS}:
        directory = tmp_path_factory.mktemp(page.stem)
        for folder in ("benchmarks", "examples"):
            (directory / folder).symlink_to(ROOT / folder)
        found[page] = Reader(directory, [step for step in STEPS if step.page == page])
    return found


def marked(step: Step) -> object:
    """The steps of a page stay on one worker; the name of the test is the place."""
    return pytest.param(step, id=f"{step.page}:{step.line}", marks=pytest.mark.xdist_group(str(step.page)))


@pytest.mark.parametrize("step", [marked(step) for step in STEPS if step.kind != "write"])
def test_page(step: Step, readers: dict[Path, Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = readers[step.page]
    monkeypatch.chdir(reader.directory)
    monkeypatch.setitem(sys.modules, "page", reader.module)
    reader.follow(step)


EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in {".py", ".toml"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_example(path: Path, tmp_path: Path) -> None:
    if path.suffix == ".py":
        execute(processes.script, [str(path)], tmp_path, status=0)
    else:
        execute(processes.lanterne, ["run", str(path)], tmp_path, status=0)


def test_commands_in_sentences_exist(tmp_path: Path) -> None:
    found = [
        shlex.split(span) for page in PAGES for span in spans(page.read_text()) if re.match("(make|lanterne) ", span)
    ]
    for program, word in sorted({(words[0], words[1]) for words in found}):
        KINDS[program]([program, word, "--help"] if program == "lanterne" else [program, word], tmp_path, 0)


PAGE = Path("page.md")


def test_steps_of_a_page() -> None:
    text = """
Say `make test`.

```toml title="race.toml"
seeds = [1]
```

=== "Tab"

    ```python
    x = 1
    if x:
        y = 2
    ```

```console
$ lanterne run a \\
    --rounds 3
| a table |
$ lanterne run slaf   # exit status 2
```
"""
    assert [(step.line, step.kind, step.text, step.status) for step in steps(PAGE, text)] == [
        (5, "write", "seeds = [1]\n", 0),
        (11, "python", "x = 1\nif x:\n    y = 2\n", 0),
        (17, "shell", "lanterne run a --rounds 3", 0),
        (20, "shell", "lanterne run slaf", 2),
    ]
    assert spans(text) == {"make test"}


@pytest.mark.parametrize(
    "text",
    [
        "```\nx\n```",
        "```sh\nmake test\n```",
        "```{.bash}\nmake test\n```",
        "```bash\nmake test",
        "```bash\nlanterne list | head\n```",
        "```bash\nlanterne list && make clean\n```",
        "```bash\nlanterne list > x\n```",
        "```bash\nlanterne run $(ls)\n```",
        "```bash\nlanterne plot runs/*\n```",
        "```bash\nlanterne run \\\n```",
        "```text\n$ lanterne list\n```",
        "```text\nlanterne list\n```",
        "Run:\n\n    lanterne list\n",
        "$ lanterne list",
        "<pre>lanterne list</pre>",
    ],
)
def test_a_page_that_hides_a_command_is_refused(text: str) -> None:
    with pytest.raises(UnclearPageError, match=r"page\.md:\d+: "):
        steps(PAGE, text)


@pytest.mark.parametrize(
    "text",
    [
        "curl x",
        "pytest",
        "X=1 make test",
        "make nothing",
        "pip install lanterne",
        "pip install -c constraints.txt torchvision",
        "pip install -c constraints.txt .[nothing]",
        "git push x",
        "cd elsewhere",
        "python -c pass",
    ],
)
def test_an_unknown_command_fails(text: str, tmp_path: Path) -> None:
    with pytest.raises((UnclearPageError, AssertionError)):
        command(text, tmp_path)


def test_a_failing_step_fails_and_what_follows_goes_on(tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n```python\nraise OSError\n```\n```python\ny = x\n```"
    [first, second, third] = found = steps(PAGE, text)
    reader = Reader(tmp_path, list(found))
    with pytest.raises(OSError, match=r"^$"):
        reader.follow(second)
    reader.follow(third)
    reader.follow(first)
    assert reader.module.y == 1
    with pytest.raises(OSError, match=r"^$"):
        reader.follow(second)
