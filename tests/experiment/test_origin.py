"""A run goes on from any directory, and notices when what it is computed from has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lanterne
from lanterne.cli import main
from lanterne.errors import ConfigError
from lanterne.experiment import Silence, origin, parse_config, prepare, resume_experiment, run_experiment
from lanterne.experiment.origin import fingerprints, versions
from lanterne.fleet import Device, Fleet
from lanterne.rng import generator
from run_directories import contents

CONFIG: dict[str, Any] = {
    "rounds": 3,
    "data": {"source": "images", "partition": "iid", "batch": 8},
    "fleet": {"kind": "phones.csv", "server_flops": 1e12},
    "model": {"name": "salf-mlp"},
    "runtime": {"threads": 1},
    "algorithms": ["salf", "fedavg"],
}


class PatienceError(Exception):
    pass


class Impatient(Silence):
    """Interrupts a run at the end of a round of its second competitor."""

    def row(self, row: dict[str, Any]) -> None:
        if row["algorithm"] == "fedavg" and row["round"] == 2:
            raise PatienceError


def write_files(folder: Path) -> None:
    """A fleet file and a data set in two parts and a test split."""
    (folder / "images").mkdir(parents=True)
    (folder / "phones.csv").write_text("flops,latency\n" + "1e8,0.01\n" * 3 + "5e7,0.05\n")
    g = generator(1, "images")
    for name in ("train-1", "train-2", "test"):
        x, y = g.normal(size=(40, 6)).astype(np.float32), g.integers(3, size=40)
        pq.write_table(pa.table({"x": x.tolist(), "y": y}), folder / "images" / f"{name}.parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory with files and a run that was interrupted in it; and what it would have left."""
    root = tmp_path_factory.mktemp("project")
    start = root / "start"
    write_files(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        run_experiment(prepare(parse_config(CONFIG)), root / "whole")
        with pytest.raises(PatienceError):
            run_experiment(prepare(parse_config(CONFIG)), Path("runs/mine"), Impatient())
    return start, root / "whole"


@pytest.fixture
def begun(project: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that directory, as if all had happened there, while the user is elsewhere."""
    start = tmp_path / "start"
    shutil.copytree(project[0], start)
    path = start / "runs" / "mine" / "origin.json"
    path.write_text(path.read_text().replace(str(project[0]), str(start)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return start


def whole(project: tuple[Path, Path]) -> dict[str, Any]:
    return contents(project[1])


# ---------------------------------------------------------------------------------------------------------- where
def stay(start: Path) -> Path:
    return start / "runs" / "mine"


def move_the_run(start: Path) -> Path:
    (start.parent / "archive").mkdir()
    return Path(shutil.move(start / "runs" / "mine", start.parent / "archive" / "other-name"))


def move_everything(start: Path) -> Path:
    return Path(shutil.move(start, start.parent / "moved")) / "runs" / "mine"


def bring_the_files_here(start: Path) -> Path:
    """The start is gone, and the user stands beside copies of the files."""
    for name in ("images", "phones.csv"):
        shutil.move(start / name, Path.cwd() / name)
    return start / "runs" / "mine"


@pytest.mark.parametrize("where", [stay, move_the_run, move_everything, bring_the_files_here])
def test_a_run_goes_on_from_any_directory(
    where: Callable[[Path], Path], project: tuple[Path, Path], begun: Path
) -> None:
    out = where(begun)
    resume_experiment(out)
    assert contents(out) == whole(project)


def test_a_run_goes_on_where_it_began(project: tuple[Path, Path], begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun)
    resume_experiment(Path("runs/mine"))
    assert contents(Path("runs/mine")) == whole(project)


def test_the_wrong_variant_looks_from_here_only(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What prepares a run takes paths as they stand: elsewhere there is no such file."""
    monkeypatch.setattr(origin, "_locate", lambda key, path, *_: path)
    with pytest.raises(lanterne.errors.FleetError, match=r"There is no fleet file phones\.csv"):
        resume_experiment(begun / "runs" / "mine")


def test_absolute_paths_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "files")
    files = {"data": {**CONFIG["data"], "source": str(tmp_path / "files" / "images")}}
    files["fleet"] = {"kind": str(tmp_path / "files" / "phones.csv")}
    prepared = prepare(parse_config({**CONFIG, **files}))
    run_experiment(prepared, tmp_path / "whole")
    with pytest.raises(PatienceError):
        run_experiment(prepared, tmp_path / "run", Impatient())
    monkeypatch.chdir(tmp_path / "files")
    resume_experiment(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_unchanged_one_of_several_is_taken(project: tuple[Path, Path], begun: Path) -> None:
    """There is another file of that name where the run began, and the right one is here."""
    shutil.move(begun / "phones.csv", "phones.csv")
    (begun / "phones.csv").write_text("flops\n1e9\n")
    resume_experiment(begun / "runs" / "mine")
    assert contents(begun / "runs" / "mine") == whole(project)


# ---------------------------------------------------------------------------------------------------------- changes
def swap(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """Change content, and not the size."""

    def change(start: Path) -> None:
        text = (start / name).read_bytes()
        assert text.count(old) >= 1
        assert len(old) == len(new)
        (start / name).write_bytes(text.replace(old, new, 1))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda start: (start / name).unlink()


def flip(name: str) -> Callable[[Path], None]:
    """One bit in the middle of a file."""

    def change(start: Path) -> None:
        content = bytearray((start / name).read_bytes())
        content[len(content) // 2] ^= 1
        (start / name).write_bytes(content)

    return change


def add(name: str, copied: str) -> Callable[[Path], None]:
    return lambda start: shutil.copy(start / copied, start / name) and None


def longer(name: str) -> Callable[[Path], None]:
    return lambda start: (start / name).write_text((start / name).read_text() + "1e9,0.0\n") and None


CHANGES = [
    (swap("phones.csv", b"5e7", b"6e7"), r"phones\.csv \(fleet\.kind\) has changed since .*: phones\.csv has other"),
    (longer("phones.csv"), r"phones\.csv \(fleet\.kind\) .*: phones\.csv had 50 bytes and has 58\."),
    (remove("phones.csv"), r"phones\.csv \(fleet\.kind\), with which .* was begun, is not there any more: looked for"),
    (flip("images/train-2.parquet"), r"images \(data\.source\) has changed since .*: train-2\.parquet has other cont"),
    (flip("images/test.parquet"), r"images \(data\.source\) has changed since .*: test\.parquet has other content"),
    (remove("images/train-2.parquet"), r"images \(data\.source\) .*: train-2\.parquet is gone"),
    (remove("images/test.parquet"), r"images \(data\.source\) .*: test\.parquet is gone"),
    (add("images/train-3.parquet", "images/train-1.parquet"), r"\(data\.source\) .*: train-3\.parquet is new"),
    (add("images/train.parquet", "images/train-1.parquet"), r"\(data\.source\) .*: train-1\.parquet is gone"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_file_that_has_changed_is_one_error_and_loses_nothing(
    change: Callable[[Path], None],
    message: str,
    project: tuple[Path, Path],
    begun: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = begun / "runs" / "mine"
    before = contents(out), (out / "origin.json").read_bytes()
    change(begun)
    with pytest.raises(ConfigError, match=message):
        resume_experiment(out)
    assert main(["resume", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert (contents(out), (out / "origin.json").read_bytes()) == before
    shutil.rmtree(begun / "images")
    shutil.copytree(project[0] / "images", begun / "images")
    shutil.copy(project[0] / "phones.csv", begun / "phones.csv")
    assert main(["resume", str(out), "--no-plots", "--quiet"]) == 0
    assert contents(out) == whole(project)


def test_the_wrong_variant_looks_at_sizes_only(
    project: tuple[Path, Path], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on, half with one fleet and half with another, and nobody hears of it."""
    monkeypatch.setattr(origin, "_digest", lambda path: "")
    path = begun / "runs" / "mine" / "origin.json"
    found = json.loads(path.read_text())
    for files in found["files"].values():
        for each in files.values():
            each["sha256"] = ""
    path.write_text(json.dumps(found))
    swap("phones.csv", b"5e7", b"6e7")(begun)
    resume_experiment(begun / "runs" / "mine")
    assert contents(begun / "runs" / "mine") != whole(project)


def test_a_finished_run_needs_its_files_no_more(begun: Path) -> None:
    out = begun / "runs" / "mine"
    found = resume_experiment(out)
    shutil.rmtree(begun / "images")
    (begun / "phones.csv").unlink()
    assert resume_experiment(out) == found


def test_what_is_not_read_does_not_matter(project: tuple[Path, Path], begun: Path) -> None:
    (begun / "images" / "notes.txt").write_text("mine")
    (begun / "images" / "validation.parquet").write_bytes(b"other")
    resume_experiment(begun / "runs" / "mine")
    assert contents(begun / "runs" / "mine") == whole(project)


def test_objects_and_bundled_data_have_no_files(tmp_path: Path) -> None:
    fleet = Fleet([Device(flops=1e9)] * 3)
    lanterne.run(["fedavg"], fleet=fleet, model="salf-mlp", rounds=1, out=tmp_path / "run")
    found = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert found["files"] == {}
    assert found["objects"] == ["fleet"]


def test_a_run_without_its_origin_is_refused(begun: Path) -> None:
    out = begun / "runs" / "mine"
    for damaged in ('{"directory": ', "{}", "[]", "7"):
        (out / "origin.json").write_text(damaged)
        with pytest.raises(
            ConfigError, match=r"origin\.json is damaged.*begin anew: lanterne run .*config\.toml --out"
        ):
            resume_experiment(out)
    (out / "origin.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no run: there is no origin\.json in it"):
        resume_experiment(out)


# ---------------------------------------------------------------------------------------------------------- digests
def test_small_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_bytes(bytes(range(200)))
    assert fingerprints(path) == {"small.csv": {"bytes": 200, "sha256": hashlib.sha256(bytes(range(200))).hexdigest()}}


def test_of_a_large_file_64_mib_are_read(tmp_path: Path) -> None:
    """A file of 8 GiB of zeros, none of which is on the disk."""
    path = tmp_path / "large.parquet"
    with path.open("wb") as file:
        file.truncate(2**33)
    digest = hashlib.sha256(bytes(64 * 2**20)).hexdigest()
    assert fingerprints(path) == {"large.parquet": {"bytes": 2**33, "sha256": digest}}


@pytest.mark.parametrize("size", [16, 17, 18, 100, 1001])
def test_pieces_of_a_large_file_reach_from_its_first_byte_to_its_last(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four pieces of four bytes: what is noticed is exactly what lies in them."""
    monkeypatch.setattr(origin, "_PIECE", 4)
    monkeypatch.setattr(origin, "_PIECES", 4)
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    before, noticed = fingerprints(path), set()
    for place in range(size):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        if fingerprints(path) != before:
            noticed.add(place)
    starts = [0, (size - 4) // 3, 2 * (size - 4) // 3, size - 4]
    assert noticed == {start + byte for start in starts for byte in range(4)}
    assert len(noticed) == 16 or size < 20


# ---------------------------------------------------------------------------------------------------------- versions
def begun_with(out: Path, **names: str) -> None:
    found = json.loads((out / "origin.json").read_text())
    found["versions"] |= names
    (out / "origin.json").write_text(json.dumps(found))


def test_another_lanterne_is_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = begun / "runs" / "mine"
    begun_with(out, lanterne="0.0.7")
    before = contents(out), (out / "origin.json").read_bytes()
    with pytest.raises(ConfigError, match=r"begun with lanterne 0\.0\.7, and this is .*Install lanterne==0\.0\.7 to"):
        resume_experiment(out)
    assert main(["resume", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (contents(out), (out / "origin.json").read_bytes()) == before


@pytest.mark.parametrize("name", [name for name in versions() if name != "lanterne"])
def test_any_other_version_is_a_warning_that_stays_in_the_run(
    name: str, project: tuple[Path, Path], begun: Path
) -> None:
    out, said = begun / "runs" / "mine", []
    begun_with(out, **{name: "0.0.7"})
    resume_experiment(out, warn=said.append)
    assert len(said) == 1
    assert f"begun with {name} 0.0.7 (now {versions()[name]}): from here on its numbers may differ" in said[0]
    (entry,) = json.loads((out / "origin.json").read_text())["resumed_with"]
    assert entry["versions"] == versions()
    assert contents(out) == whole(project)


def test_the_same_versions_are_no_matter(begun: Path) -> None:
    said: list[str] = []
    resume_experiment(begun / "runs" / "mine", warn=said.append)
    assert said == []
    assert json.loads((begun / "runs" / "mine" / "origin.json").read_text())["resumed_with"] == []


def test_a_warning_is_heard_from_python_and_on_the_command_line(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = begun / "runs" / "copy"
    shutil.copytree(begun / "runs" / "mine", copy)
    for out in (begun / "runs" / "mine", copy):
        begun_with(out, torch="0.0.7", numpy="0.0.8")
    with pytest.warns(UserWarning, match=r"torch 0\.0\.7 \(now .*\), numpy 0\.0\.8 \(now"):
        lanterne.resume(copy)
    assert main(["resume", str(begun / "runs" / "mine"), "--no-plots", "--quiet", "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["runs"]
    assert printed.err.startswith("warning: ")
    assert printed.err.count("\n") == 1
