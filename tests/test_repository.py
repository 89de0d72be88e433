"""What must be true of the repository itself."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "lanterne"
LISTED = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
)
FILES = sorted(path for name in LISTED.stdout.decode().split("\0") if name and (path := ROOT / name).is_file())

MACHINE = re.compile(
    r"(?<![\w.~>)}*-])/(?:work|root|home|Users|opt|mnt|srv|tmp)(?![\w.-])"  # a path that only one machine has
    r"|\b[A-Z]:\\\w"
    r"|\bindex[-_]url\b|\bfind[-_]links\b"  # a place that packages come from
)


def machines_in(text: str) -> list[str]:
    return [f"{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if MACHINE.search(line)]


def test_no_file_names_a_path_of_a_machine() -> None:
    found = {}
    for path in FILES:
        try:
            lines = machines_in(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if lines:
            found[str(path.relative_to(ROOT))] = lines
    assert found == {}


@pytest.mark.parametrize("folder", ["work", "root", "home/me", "Users/me", "tmp/x"])
def test_a_path_of_a_machine_is_found(folder: str) -> None:
    for line in (f"cd /{folder}", f'path = "/{folder}/x"', f"see `/{folder}`.", f"file:///{folder}"):
        assert machines_in(line), line
    for line in (f"a/{folder}", f"../{folder}", f"https://example.org/{folder}"):
        assert not machines_in(line), line


def test_files_are_short() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES if path.suffix == ".py"
    }
    limit = {name: 249 if name.startswith("src/lanterne/algorithms/") else 399 for name in lines}
    assert {name: count for name, count in lines.items() if count > limit[name]} == {}


def test_the_site_documents_every_public_module() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    named = {found.split(".")[1] for found in re.findall(r"^::: (lanterne\.\w+)", pages, re.MULTILINE)}
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name for name in modules if not name.startswith("_")} - {"cli"} - named == set()


def test_the_checks_at_a_change_are_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_tests_stay_on_the_loopback_interface() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        for call, host in ((outside.connect, "192.0.2.1"), (outside.bind, "0.0.0.0"), (outside.bind, "")):
            with pytest.raises(PermissionError, match="loopback"):
                call((host, 0))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as inside:
        assert inside.getpeername() == server.getsockname()


def contracts(root: Path, module: str, line: str) -> dict[str, bool]:
    """Which contracts are kept where one module of a package with our layers, otherwise empty, has one line."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r"\w+", " ".join(tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"][0]["layers"]))
    for name in ("__init__.py", *(f"{layer}/__init__.py" for layer in layers), "algorithms/other.py", module):
        path = root / "lanterne" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (path.parent / "__init__.py").touch()
    (root / "lanterne" / module).write_text(f"{line}\n")
    (root / "pyproject.toml").write_text(pyproject)
    program = "from importlinter.cli import lint_imports; lint_imports(no_cache=True)"
    isolated = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {program}"]
    result = subprocess.run(isolated, cwd=root, capture_output=True, text=True)
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", result.stdout, re.MULTILINE))
    assert verdicts, result.stdout + result.stderr
    return {name: verdict == "KEPT" for name, verdict in verdicts.items()}


LAYERS = "A layer imports what lies below it, and no neighbour"
APART = "Algorithms do not import each other"
NUMBERS = "The fleet is numbers and time: no torch"
ENGINE = "An engine is imported in its own adapter and nowhere else"


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("algorithms/x.py", "import lanterne.protocol", set()),
        ("runtime/flower.py", "import flwr", set()),
        ("runtime/ray/wire.py", "import ray", set()),
        ("algorithms/x.py", "import flwr", {ENGINE}),
        ("runtime/flower.py", "import ray", {ENGINE}),
        ("experiment/x.py", "from ray import remote", {ENGINE}),
        ("algorithms/x.py", "import lanterne.algorithms.other", {APART}),
        ("fleet/x.py", "import torch", {NUMBERS}),
        ("algorithms/x.py", "import lanterne.fleet", {LAYERS}),
        ("models/x.py", "import lanterne.learn", {LAYERS}),
        ("rng/x.py", "import lanterne.errors", {LAYERS}),
        ("unknown.py", "import lanterne.rng", {LAYERS}),
    ],
)
def test_import_contracts(tmp_path: Path, module: str, line: str, broken: set[str]) -> None:
    kept = contracts(tmp_path, module, line)
    assert set(kept) == {LAYERS, APART, NUMBERS, ENGINE}
    assert {name for name in kept if not kept[name]} == broken
