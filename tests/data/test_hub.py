import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from data.fake_hub import serve
from data.parquet_files import HUGGING_FACE, pictures, write
from lanterne.data import load, partition
from lanterne.errors import DataError

# Each call of load in a process of its own: the libraries read their settings when they are imported.
ASK = """
import json, sys, time
from lanterne.data import load
from lanterne.errors import DataError
said = []
for spec in sys.argv[1:]:
    begun = time.monotonic()
    try:
        data = load(spec)
        answer = [data.x.double().sum().item(), data.y.tolist(), data.test_y.tolist(), data.classes, data.name]
    except DataError as error:
        answer = str(error)
    said.append([time.monotonic() - begun, answer])
print(json.dumps(said))
"""


def ask(cache: Path, endpoint: str, *specs: str) -> list:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *specs], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_ids(tmp_path):
    """From the network, then without it from the cache; what is in neither is refused, and soon."""
    (tmp_path / "here").mkdir()
    files = {}
    for split, seed in ("train", 0), ("test", 1):
        path = write(
            tmp_path / "here" / f"{split}.parquet", HUGGING_FACE, image=pictures(8, 4, 4, seed=seed), label=[0, 1] * 4
        )
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    expected = load(str(tmp_path / "here"))
    value = [expected.x.double().sum().item(), expected.y.tolist(), expected.test_y.tolist(), 4, "shapes"]
    with serve("me/shapes", files) as endpoint:
        (_, found), (_, missing) = ask(tmp_path / "hf", endpoint, "me/shapes", "me/nothing")
    assert found == value
    assert "none of that name that the Hugging Face hub would give you" in missing
    # The server is gone, as it is without network.
    (seconds, other), (_, found), (_, fine) = ask(tmp_path / "hf", endpoint, "me/other", "me/shapes", "me/shapes:fine")
    assert seconds < 5
    assert found == value
    assert "none in the cache, and the Hugging Face hub cannot be reached" in other
    assert "the cache does not say which configuration of 'me/shapes:fine' to take" in fine
    assert "default" in fine


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: release.wait(60))
    begun = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached"):
        load("me/shapes")
    assert time.monotonic() - begun < 5
    release.set()


def test_offline_says_so_and_offers_what_is_here(tmp_path, monkeypatch):
    (tmp_path / "mine" / "digit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE is set.*Did you mean 'mine/digit'\? Correct the path"):
        load("mine/digti")


@pytest.mark.parametrize("spec", ["a/b/c", "./b", "../b", "a b/c", "/b", "a/", "nothing"])
def test_what_is_no_hub_id(spec, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, name, **__: asked.append(name))
    with pytest.raises(DataError, match="neither bundled nor a path that exists"):
        load(spec)
    assert not asked


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of images per class, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for split, seed in ("train", 0), ("test", 1):
        for label, kind in enumerate(("cat", "dog")):
            (tmp_path / "images" / split / kind).mkdir(parents=True)
            for row, picture in enumerate(pictures(3, 5, 4, 3, seed=2 * seed + label)):
                Image.fromarray(picture).save(tmp_path / "images" / split / kind / f"{row}.png")
    return tmp_path / "images"


def test_folders_that_datasets_reads(images, tmp_path, capfd):
    data = load(str(images))
    assert (data.name, data.classes, data.sample_shape, data.y.tolist()) == ("images", 2, (3, 5, 4), [0, 0, 0, 1, 1, 1])
    raw = np.concatenate([pictures(3, 5, 4, 3, seed=seed) for seed in (0, 1)]).transpose(0, 3, 1, 2).astype(np.float64)
    mean, std = raw.mean((0, 2, 3), keepdims=True), raw.std((0, 2, 3), keepdims=True)
    assert np.allclose(data.x.numpy(), (raw - mean) / std, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    found = datasets.load_dataset(str(images))
    found.save_to_disk(tmp_path / "saved")
    found["train"].save_to_disk(tmp_path / "one")
    saved = load(str(tmp_path / "saved"))
    assert torch.equal(saved.x, data.x)
    assert torch.equal(saved.test_x, data.test_x)
    alone = load(str(tmp_path / "one"))  # nothing to judge by: a fifth of each class
    assert (len(alone.y), alone.test_y.tolist()) == (4, [0, 1])


def test_a_clone_of_a_hub_repository(folder):
    (folder / "data").mkdir()
    for split in "train", "test":
        (folder / f"{split}.parquet").rename(folder / "data" / f"{split}-00000-of-00001.parquet")
    assert len(load(str(folder))) == 12


def test_owners_come_from_a_column(tmp_path):
    writer = ["bo", "al", "bo", "cy", "al", "bo"]
    for split, names in ("train", writer), ("test", ["zoe", "al", "cy", "bo", "bo", "al"]):
        write(tmp_path / f"{split}.parquet", image=pictures(6, 3, 3), label=[0, 1] * 3, row=range(6), writer=names)
    data = load(str(tmp_path), label="label", owner="writer")
    assert (data.owner.tolist(), data.test_owner.tolist()) == ([1, 0, 1, 2, 0, 1], [-1, 0, 2, 1, 1, 0])
    assert [rows.tolist() for rows in partition("natural", data.y, 3, 0, owner=data.owner)] == [[1, 4], [0, 2, 5], [3]]
    # A named owner is not taken for the label.
    assert load(str(tmp_path), owner="row").y.tolist() == [0, 1] * 3
    single = load(str(tmp_path / "train.parquet"), label="label", owner="writer")
    assert len(single.owner) == 4
    assert len(single.test_owner) == 2


@pytest.mark.parametrize(
    ("column", "owner", "message"),
    [
        ([0, 1, 2, None, 0, 1], "who", "column 'who', row 3: it does not say who owns the row"),
        ([0.5] * 6, "who", "column 'who': it is double, but data.owner needs a column of numbers or words"),
        ([0] * 6, "whom", r"has no column 'whom'\. Did you mean 'who'\?"),
    ],
)
def test_bad_owners(tmp_path, column, owner, message):
    path = write(tmp_path / "all.parquet", image=pictures(6, 3, 3), label=[0, 1] * 3, who=column)
    with pytest.raises(DataError, match=message):
        load(str(path), label="label", owner=owner)


@pytest.mark.parametrize(
    ("write_it", "message"),
    [
        (lambda folder: (folder / "notes.xyz").write_text("x"), "'datasets' does not know: bring it as Parquet files"),
        (
            lambda folder: datasets.DatasetDict(
                {name: datasets.Dataset.from_dict({"a": [1]}) for name in ("first", "second")}
            ).save_to_disk(folder),
            "has the splits first, second, and none of them is called 'train'",
        ),
        (
            lambda folder: datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(folder),
            r"split 'train' has no column of encoded images .*text \(string\), label \(int64\)",
        ),
    ],
)
def test_bad_folders(tmp_path, monkeypatch, write_it, message):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "odd").mkdir()
    write_it(tmp_path / "odd")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "odd"))
