"""What an experiment says of its data: whose rows they are, how images are changed, and who is judged by what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lanterne
from lanterne.errors import ConfigError, DataError
from lanterne.experiment import Silence, parse_config, prepare, resume_experiment, run_experiment
from lanterne.experiment.config import read_config, to_toml

AUGMENTED: dict[str, Any] = {
    "rounds": 3,
    "training": {"lr": 0.1, "local_steps": 2},
    "data": {"clients": 6, "batch": 8, "augment": "crop:1"},
    "fleet": {"kind": "stragglers", "share": 0.5},
    "model": {"name": "salf-mlp"},
    "runtime": {"dtype": "float64", "threads": 1, "executor": "loop"},
    "algorithms": {"fedavg": {}},
}


def with_changes(**tables: dict[str, Any]) -> dict[str, Any]:
    return {**AUGMENTED, **{name: {**AUGMENTED[name], **table} for name, table in tables.items()}}


class Stop(Silence):
    """Interrupts a run after its second round."""

    def row(self, row: dict[str, Any]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "cells" / "fedavg-seed1" / "rows.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "wall_seconds"} for line in lines]


@pytest.mark.parametrize(
    ("data", "partition"),
    [
        ({}, "dirichlet:0.3"),
        ({"source": "synthetic:1,1"}, "natural"),
        ({"source": "mine.parquet", "owner": "writer"}, "natural"),
        ({"source": "synthetic:1,1", "partition": "iid"}, "iid"),
        ({"owner": "writer", "partition": "square"}, "square"),
    ],
)
def test_rows_that_have_owners_stay_with_them(data: dict[str, Any], partition: str) -> None:
    config = parse_config({"algorithms": ["fedavg"], "data": data})
    assert config.data.partition == partition
    assert f'partition = "{partition}"' in to_toml(config)


def test_augmentation_does_not_depend_on_threads_executor_or_interruption(tmp_path: Path) -> None:
    run_experiment(prepare(parse_config(AUGMENTED)), tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    run_experiment(prepare(parse_config(with_changes(runtime={"threads": 3}))), tmp_path / "threads")
    assert rows(tmp_path / "threads") == whole
    run_experiment(prepare(parse_config(with_changes(runtime={"executor": "batched"}))), tmp_path / "batched")
    for ours, theirs in zip(whole, rows(tmp_path / "batched"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-10)
    run_experiment(prepare(parse_config(with_changes(data={"augment": "crop:2"}))), tmp_path / "other")
    assert abs(rows(tmp_path / "other")[-1]["loss"] - whole[-1]["loss"]) > 1e-4
    with pytest.raises(KeyboardInterrupt):
        run_experiment(prepare(parse_config(AUGMENTED)), tmp_path / "stopped", Stop())
    resume_experiment(tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == whole
    assert read_config(tmp_path / "stopped" / "config.toml").data.augment == "crop:1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": "crop:9"}, "from 1 to 7 for images of 8x8"),
        ({"augment": "cropflip"}, r"no augmentation 'cropflip'.*Did you mean 'crop-flip'"),
        ({"source": "synthetic:1,1", "augment": "flip"}, r"moves images, but a sample has shape \(60,\)"),
        ({"partition": "natural"}, "does not say. Name the column"),
        (
            {"partition": "exponential", "clients": 20},
            r"leaves \d+ of 20 clients without a row. Write at most \d clients",
        ),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(parse_config({**AUGMENTED, "data": data}))


def test_clients_with_held_out_rows_are_judged_on_their_own() -> None:
    data = {"source": "synthetic:1,1", "clients": 12, "batch": 8}
    prepared = prepare(parse_config({**AUGMENTED, "data": data}))
    world, executor = prepared.world(1), prepared.executor()
    judged = prepared.judge(world, executor)(world.w)
    executor.close()
    test, w = prepared.data, world.w
    with torch.no_grad():
        output = prepared.stack.load(w)(test.test_x)
        loss = nn.functional.cross_entropy(output, test.test_y, reduction="none")
    right = (output.argmax(1) == test.test_y).double()
    own = [test.test_owner == client for client in range(12)]
    accuracy = np.array([float(right[each].mean()) for each in own])
    assert judged["accuracy"] == pytest.approx(float(right.mean()), abs=1e-12)
    assert judged["accuracy_worst_tenth"] == pytest.approx(accuracy.min(), abs=1e-12)
    assert judged["accuracy_spread"] == pytest.approx(accuracy.std(), abs=1e-12)
    for tier, found in judged["loss_by_class"].items():
        members = [c for c in range(12) if world.fleet.devices[c].tier == tier]
        weight = [len(world.rows[c]) for c in members]
        assert found == pytest.approx(
            np.average([float(loss[own[c]].mean()) for c in members], weights=weight), rel=1e-9
        )


def test_data_without_files_of_its_own_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**AUGMENTED, "data": {"source": "synthetic:1,1", "clients": 6, "batch": 8}}
    run_experiment(prepare(parse_config(config)), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(prepare(parse_config(config)), tmp_path / "stopped", Stop())
    monkeypatch.chdir(tmp_path)
    resume_experiment(tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_images_by_class_are_resumed_and_a_changed_one_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "mine" / place).mkdir(parents=True)
        for row in range(8):
            shown = Image.fromarray(np.full((4, 4), 20 * row + len(place), dtype=np.uint8))
            shown.save(tmp_path / "mine" / place / f"{row}.png")
    monkeypatch.chdir(tmp_path)
    config = {**AUGMENTED, "data": {"source": "./mine", "clients": 2, "batch": 4, "partition": "iid"}}
    with pytest.raises(KeyboardInterrupt):
        run_experiment(prepare(parse_config(config)), tmp_path / "stopped", Stop())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    resume_experiment(tmp_path / "stopped")
    assert len(rows(tmp_path / "stopped")) == 4
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(tmp_path / "mine" / "test" / "dog" / "3.png")
    with pytest.raises(ConfigError, match=r"has changed.*test/dog/3\.png"):
        resume_experiment(tmp_path / "again")


def test_from_python(tmp_path: Path) -> None:
    out = lanterne.run(
        ["fedavg"], data="synthetic:0,0", clients=4, rounds=1, model="salf-mlp", out=tmp_path / "synthetic"
    ).out
    assert read_config(out / "config.toml").data.partition == "natural"
    out = lanterne.run(["fedavg"], clients=4, rounds=1, augment="crop:1", out=tmp_path / "augmented").out
    assert read_config(out / "config.toml").data.augment == "crop:1"
