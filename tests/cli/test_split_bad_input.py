"""Split methods and what a user may get wrong: one line that says what, why, and what to write instead; status 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lanterne
from algorithms.split_methods import SPLIT, make
from data.parquet_files import HUGGING_FACE, pictures, write
from lanterne.data import Dataset, Streams
from lanterne.errors import DataError, FleetError, ModelError
from lanterne.experiment import parse_config, prepare
from lanterne.learn import Task
from lanterne.models.zoo import build
from lanterne.runtime import InProcess, Loop, Simulator
from lanterne.testing import simulate, tiny_problem, uneven_fleet

METHODS = pytest.mark.parametrize("name", list(SPLIT))


@pytest.fixture
def refused(lanterne_command: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """What a command says that is refused, and after which nothing is there that was not before."""

    def command(*words: object) -> str:
        before = sorted(tmp_path.iterdir())
        found = lanterne_command("run", *words, "--rounds", "1", "--no-plots")
        assert (found.status, found.out) == (2, ""), found.err
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
        return str(found.err)

    return command


# -------------------------------------------------------------------------------------------------------- illegal cuts
@pytest.mark.parametrize(
    ("cut", "why"),
    [
        ("0", "Of 5 blocks a client cannot hold 0: both sides need at least one"),
        ("5", "Of 5 blocks a client cannot hold 5"),
        ("'output'", "'output' is the last block: behind it nothing is left for the server"),
        ("'block1.conv1'", "'block1.conv1' stands within block 'block1', which is one piece"),
        ("'blok1'", "There is no block 'blok1'"),
        ("'flops:2'", "'flops:2' is no share of a model: it has to be a number from 0 to 1"),
    ],
)
def test_an_illegal_cut(cut: str, why: str, refused: Callable[..., str]) -> None:
    said = refused("psl", "--model", "resnet-small", "--clients", "3", "--set", f"algorithms.psl.cut={cut}")
    assert why in said
    assert "Legal cuts: 1 'stem' (16x8x8" in said
    assert "4 'block3'" in said


@METHODS
def test_an_illegal_cut_in_a_file_and_from_python(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cut.toml").write_text(f'[model]\nname = "salf-mlp"\n[algorithms.{name}]\ncut = "hidden3"\n')
    assert "There is no block 'hidden3'. Legal cuts: 1 'hidden1'" in refused("cut.toml")
    with pytest.raises(ModelError, match=r"cannot hold 3: both sides need at least one\. Legal cuts: 1 '0'.*2 '2'"):
        make(name, tiny_problem().stack, cut=3)


# ------------------------------------------------------------------------------------------------ memory of the devices
@METHODS
def test_a_cut_whose_activations_fit_no_device(name: str, refused: Callable[..., str]) -> None:
    """With the cuts that would fit, where there are any; at one of them the run begins."""
    words = ("--fleet", "uniform", "--model", "resnet-small", "--clients", "3", "--set", "fleet.memory=1000000")
    said = refused(name, *words, "--set", f"algorithms.{name}.cut=block2")
    assert f"No device has the memory for '{name}': its first request needs" in said
    assert "and the largest has 1e+06. Cut the model where it fits (1 'stem'" in said
    assert "), give the devices more, or take a smaller model or batch." in said
    assert "'block2'" not in said
    none = refused(name, *words[:-1], "fleet.memory=100000", "--set", f"algorithms.{name}.cut=block2")
    assert "has 100000. Give the devices more, or take a smaller model or batch." in none


@METHODS
def test_from_python_too(name: str) -> None:
    with pytest.raises(FleetError, match=f"No device has the memory for '{name}'.*fits \\(1 'stem'"):
        lanterne.run({name: {"cut": 3}}, model="resnet-small", fleet={"kind": "uniform", "memory": 1e6}, clients=3)


def test_a_client_need_not_hold_the_whole_model() -> None:
    """The model's weights alone are too large for every device, a client's half is not."""
    config = {
        "model": {"name": "mlp:widths=8-300-300"},
        "data": {"clients": 3, "batch": 8},
        "fleet": {"kind": "uniform", "memory": 100_000},
    }
    assert prepare(parse_config({**config, "algorithms": list(SPLIT)}))
    with pytest.raises(FleetError, match="No device has the memory for 'fedavg'"):
        prepare(parse_config({**config, "algorithms": ["psl", "fedavg"]}))


@METHODS
def test_who_lacks_the_memory_refuses_and_the_others_go_on(name: str) -> None:
    """Where some devices have it: their models are those of a fleet in which the small one is always lost."""
    problem, fleet = tiny_problem(4), uneven_fleet(4)
    found = []
    for changes in ({"memory": 500.0}, {"dropout": 1.0}):
        devices = [replace(fleet.devices[0], **changes), *fleet.devices[1:]]
        w, simulator = simulate(lambda s: make(name, s), problem, replace(fleet, devices=devices), 2)
        found.append(w)
        outcomes = {r["outcome"] for r in simulator.timeline if r["client"] == 0}
        assert outcomes == ({"refused"} if "memory" in changes else {"lost"})
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], problem.w.expand_as(found[0]))


# ------------------------------------------------------------------------------------------------------------ BatchNorm
def test_batch_norm_and_batches_of_one(refused: Callable[..., str]) -> None:
    words = (*SPLIT, "--model", "resnet-small:norm=batch")
    said = refused(*words, "--clients", "3", "--batch", "1")
    assert "data.batch is 1, but the model normalises by the batch (BatchNorm), and one sample says nothing" in said
    said = refused(*words, "--clients", "1200", "--partition", "iid", "--cohort", "2")
    assert "holds one sample, so that its batches are copies of it, but layer 'norm' normalises by the batch" in said
    assert "Use GroupNorm, or a partition in which everybody holds 2 samples or more" in said


@METHODS
def test_batch_norm_in_every_runtime(name: str) -> None:
    """A simulator or a runtime that was made by hand refuses as well; without BatchNorm one sample is no matter."""
    norm, group = (build(f"resnet-small:norm={kind}", (1, 8, 8), 3) for kind in ("batch", "group"))
    rows, batch = [np.arange(5), np.arange(5, 6)], 4
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    for stack, streams, said in (
        (norm, Streams(rows, batch, 0), "Client 1 holds one sample"),
        (norm, Streams([np.arange(5)] * 2, 1, 0), "The batches hold one sample, but layer 'norm'"),
        (group, Streams(rows, 1, 0), None),
    ):
        executor, algorithm = Loop(Task(stack), x, y), make(name, stack)
        for runtime in (
            lambda a, e, s: Simulator(a, uneven_fleet(2), e, s),
            lambda a, e, s: InProcess(a, e, s),
        ):
            if said is None:
                assert runtime(algorithm, executor, streams)
            else:
                with pytest.raises(DataError, match=said):
                    runtime(algorithm, executor, streams)
        executor.close()


def test_a_client_with_fewer_rows_than_a_batch_has_no_ragged_one() -> None:
    """Batches are always full: the stream of a client goes on with its next epoch."""
    streams = Streams([np.arange(5)], 4, 0)
    assert streams.rows(0, range(5)).shape == (5, 4)
    assert sorted(streams.rows(0, range(5)).ravel()) == sorted([*range(5)] * 4)


# --------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("features", "label", "said"),
    [
        (None, None, "no column of integers; its columns are: image"),
        (None, [0, 1, None, 1, 0, 1], "column 'label', row 2: there is no label"),
        (HUGGING_FACE, [0, 1, 2, 9, 0, 1], "row 3: the label 9 is not one of the 4 classes"),
    ],
)
def test_labels_that_are_missing_or_outside_the_classes(
    features: Any, label: Any, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        columns = {} if label is None else {"label": label}
        write(tmp_path / f"{split}.parquet", features, image=pictures(6, 8, 8), **columns)
    assert said in refused(*SPLIT, "--data", tmp_path, "--clients", "2")


@METHODS
def test_labels_from_python(name: str) -> None:
    x = torch.randn(6, 1, 8, 8)
    with pytest.raises(DataError, match=r"y is None, but every method learns from labels\. Give each row's"):
        lanterne.run([name], data=Dataset.of(x, None, x, [0, 1] * 3), clients=2, rounds=1)
    with pytest.raises(DataError, match="test_y is None"):
        Dataset("own", x, torch.arange(6) % 2, x, None, 2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"y\[3\] is 3, but with 3 classes a label lies in 0\.\.2"):
        lanterne.run([name], data=Dataset("own", x, torch.arange(6), x, torch.arange(6) % 3, 3), clients=2, rounds=1)


# -------------------------------------------------------------------------------------------------- the server's memory
@METHODS
def test_a_server_that_is_too_small(name: str, refused: Callable[..., str]) -> None:
    words = ("--fleet", "uniform", "--model", "salf-mlp", "--clients", "3", "--set", "fleet.server_memory=1000")
    said = refused(name, *words)
    assert f"{name}: The server has 1000 bytes of memory, but '" in said
    assert "Give it more (server_memory), fewer machines at a time, or a smaller batch, cohort or model." in said
