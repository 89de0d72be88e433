"""The wheel: built, installed and run where the source tree cannot help."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHERE = "import lanterne; print(lanterne.__file__)"
RACE = ["run", "fedavg", "--data", "digits", "--clients", "4", "--rounds", "1", "--out", "X"]


def call(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees no source tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([*command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    out = tmp_path / "dist"
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=tmp_path)
    [built] = out.iterdir()
    return built


def races(environment: Path, cwd: Path) -> None:
    """The installed package is the wheel's, and its command runs."""
    assert Path(call(environment / "bin/python", "-c", WHERE, cwd=cwd)).is_relative_to(environment)
    call(environment / "bin/lanterne", *RACE, cwd=cwd)
    assert any((cwd / "X").iterdir())


def test_a_wheel_holds_the_package_and_its_licence_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/lanterne").rglob("*") if path.is_file()
    }
    package = {name for name in package if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_a_wheel_runs_beside_installed_dependencies(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment)
    site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A folder that a .pth file names gives its packages; its own .pth files, the editable install's too, are not read.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    install = ["install", "--no-deps", "--no-index", "--disable-pip-version-check"]
    call(sys.executable, "-m", "pip", "--python", environment / "bin/python", *install, wheel, cwd=tmp_path)
    races(environment, tmp_path)


@pytest.mark.verify
def test_a_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    pip = [environment / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
    call(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    races(environment, tmp_path)
