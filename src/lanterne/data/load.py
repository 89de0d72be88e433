"""Load a data set by name, by path, or by its id on the Hugging Face hub: only that last form touches the network."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import torch

from lanterne import rng
from lanterne.data.columns import Columns, Split
from lanterne.data.dataset import Dataset, count_classes, number_owners
from lanterne.data.hub import read_folder, read_hub
from lanterne.data.normalise import normalise
from lanterne.data.parquet import read
from lanterne.data.synthetic import synthetic
from lanterne.errors import DataError, nearest

_BUNDLED = ("digits", "synthetic")
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.,+-]+)?")
_ACCEPTED = (
    "Accepted are 'digits' (bundled), 'synthetic:ALPHA,BETA' (drawn), a folder with train.parquet and test.parquet (or "
    "train*.parquet and test*.parquet) or of another layout that 'datasets' reads, a single .parquet file, and the "
    "'owner/name' of a data set on the Hugging Face hub"
)


def load(
    spec: str,
    *,
    image: str | None = None,
    label: str | None = None,
    owner: str | None = None,
    clients: int = 30,
    seed: int = 0,
) -> Dataset:
    """A data set as resident float32 tensors; images with each channel at mean 0 and standard deviation 1.

    With mean and standard deviation of a channel over all training samples and places,

        x = (value - mean) / std,

    and the same two numbers for the test split; a constant channel is only shifted. A scale of the values, such as
    1/255, cancels.

    * `"digits"`: scikit-learn's bundled handwritten digits, 1x8x8, 10 classes; 1,438 rows to train on and 359 to judge
      by, the same in every run.
    * `"synthetic:ALPHA,BETA"`: the data of FedProx (Li et al. 2020, arXiv 1812.06127, section 5.1), 60 inputs, 10
      classes, as drawn. ALPHA says how much the clients' models differ, BETA how much their inputs do; every client
      holds its own rows (partition `natural`). `"synthetic:iid"` is the paper's IID form.
    * a folder with `train.parquet` and `test.parquet`, or parts `train*.parquet` and `test*.parquet`, in itself or in
      its folder `data`; else one that the `datasets` library reads: a folder of images per class in `train` and `test`,
      or what `save_to_disk` wrote.
    * a single `.parquet` file: a fifth of each class, drawn by `seed`, becomes the test split. So it is done wherever
      there is no split to judge by.
    * `"owner/name"` or `"owner/name:configuration"`: a data set of the Hugging Face hub. Without network it is taken
      from the cache of earlier runs; where it is not there either, it is refused within five seconds.

    The columns are found by their Hugging Face features (`Image`, `ClassLabel`), else by content: encoded images or
    lists of numbers, all of one size, and the only column of integers.

    Args:
        spec: a name, a path, or a hub id.
        image: the column of images, where it cannot be found.
        label: the column of labels, where it cannot be found.
        owner: the column that says who a row comes from, for the partition `natural`.
        clients: for how many clients synthetic data is drawn; of no effect elsewhere.
        seed: how a single file is split, what synthetic data depends on; of no effect elsewhere.

    Returns:
        The data set; grey images have one channel, colour images three, `[n, channels, height, width]`.

    Raises:
        DataError: no such data set, a damaged or missing file, a column that is not there, an image or label that
            cannot be used; the message names the file and the row.

    Examples:
        >>> data = load("digits")
        >>> data.sample_shape, data.classes, len(data)
        ((1, 8, 8), 10, 1438)
    """
    wanted = Columns(image, label, owner)
    name, _, argument = spec.partition(":")
    if name in _BUNDLED and (argument or name == spec):
        if any(wanted):
            raise DataError(f"{spec!r} has no columns to choose from. Leave out data.image, data.label and data.owner.")
        return _digits(spec) if name == "digits" else _synthetic(argument, clients, seed)
    path = _path(spec)
    test: Split | None = None
    if path.is_dir():
        train, test = _folder(path, wanted)
        name = path.resolve().name
    elif path.is_file() and path.suffix == ".parquet":
        train, name = read([path], wanted), path.stem
    elif path.is_file():
        raise DataError(f"{spec!r} is a file, but not of a kind that can be read. {_ACCEPTED}.")
    elif _on_hub(spec, path):
        train, test = read_hub(spec, wanted, _near(spec, path))
        name = spec.partition("/")[2]
    else:
        raise DataError(_unknown(spec, path))
    if test is None:
        _classes(name, train)  # before the rows lose their places
        train, test = _divide(train, seed, spec)
    return _normalised(name, train, test)


def data_files(spec: str) -> list[Path]:
    """The files from which `load` would read a data set; none where it is drawn, bundled, or on the hub.

    Args:
        spec: a name, a path, or a hub id.

    Examples:
        >>> data_files("digits"), [path.name for path in data_files("own.parquet")]
        ([], ['own.parquet'])
    """
    path = _path(spec)
    if path.is_dir():
        tables = _tables(path)
        within = [*_matching(tables, "train"), *_matching(tables, "test")] if tables else path.rglob("*")
        return sorted(each for each in within if each.is_file())
    return [] if spec.partition(":")[0] in _BUNDLED or _on_hub(spec, path) else [path]


def _path(spec: str) -> Path:
    return Path(spec).expanduser() if spec.startswith("~/") else Path(spec)


def _on_hub(spec: str, path: Path) -> bool:
    return bool(_HUB.fullmatch(spec)) and not path.exists() and path.suffix != ".parquet"


def _tables(folder: Path) -> Path | None:
    """Where the Parquet files are that are read here and not by `datasets`."""
    return next((each for each in (folder, folder / "data") if any(each.glob("*.parquet"))), None)


def _digits(spec: str) -> Dataset:
    from sklearn.datasets import load_digits

    if spec != "digits":
        raise DataError(f"There is no data set {spec!r}: digits has no argument. Write 'digits'.")
    values, labels = load_digits(return_X_y=True)
    rows = Split(values.reshape(-1, 1, 8, 8).astype(np.uint8), labels.astype(np.int64), 10)
    return _normalised("digits", *_divide(rows, 0, "digits"))


def _synthetic(argument: str, clients: int, seed: int) -> Dataset:
    train, test = synthetic(argument, clients, seed)
    return _dataset(f"synthetic:{argument}", train, test, train.x, test.x)


def _folder(path: Path, wanted: Columns) -> tuple[Split, Split | None]:
    tables = _tables(path)
    if tables:
        return read(_parts(tables, "train"), wanted), read(_parts(tables, "test"), wanted)
    if not any(path.iterdir()):
        raise DataError(f"The folder {str(path)!r} is empty, so that it holds no .parquet file. {_ACCEPTED}.")
    return read_folder(path, wanted)


def _matching(folder: Path, split: str) -> list[Path]:
    whole = folder / f"{split}.parquet"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{split}*.parquet"))


def _parts(folder: Path, split: str) -> list[Path]:
    paths = _matching(folder, split)
    if not paths:
        here = ", ".join(sorted(each.name for each in folder.glob("*.parquet"))[:5])
        raise DataError(
            f"The folder {str(folder)!r} has neither {split}.parquet nor {split}*.parquet (it holds {here}), and a "
            "model is trained on one split and judged on the other. Add the file, or give a single .parquet file to "
            "have it split."
        )
    return paths


def _unknown(spec: str, path: Path) -> str:
    return (
        f"There is no data set {spec!r}: it is neither bundled nor a path that exists. {_near(spec, path)}{_ACCEPTED}."
    )


def _near(spec: str, path: Path) -> str:
    """An offer of what is here and spelt like it, where there is something."""
    near = list(_BUNDLED)
    with contextlib.suppress(OSError):  # no such folder, or not ours to read: nothing to offer
        near += [str(each) for each in path.parent.iterdir() if each.is_dir() or each.suffix == ".parquet"]
    hint = nearest(spec, near)
    return hint + " " if hint.startswith("Did you mean") else ""


def _divide(rows: Split, seed: int, source: str) -> tuple[Split, Split]:
    """Stratified: of every class a fifth (rounded), drawn at random, for the test split."""
    order = rng.generator(seed, "test split").permutation(len(rows.y))
    is_test = np.zeros(len(rows.y), dtype=bool)
    for number in np.unique(rows.y):
        members = order[rows.y[order] == number]
        is_test[members[: round(len(members) / 5)]] = True
    if not is_test.any():
        raise DataError(
            f"{source!r} has {len(rows.y)} rows, fewer than three of any class, so that no test split can be taken "
            "from it. Give more rows, or a folder with train.parquet and test.parquet."
        )
    return rows.rows(~is_test), rows.rows(is_test)


def _normalised(name: str, train: Split, test: Split) -> Dataset:
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"Data set {name!r}: a training image has shape {train.x.shape[1:]} (channels first), a test image "
            f"{test.x.shape[1:]}. One model reads both: bring the images of both files to one size and one kind."
        )
    return _dataset(name, train, test, *normalise(train.x, test.x))


def _dataset(name: str, train: Split, test: Split, x: np.ndarray, test_x: np.ndarray) -> Dataset:
    classes = _classes(name, train, test)
    owners = number_owners(train.owner, test.owner)
    to = torch.from_numpy
    return Dataset(name, to(x), to(train.y), to(test_x), to(test.y), classes, *owners)


def _classes(name: str, *splits: Split) -> int:
    named = max((each.named for each in splits if each.named is not None), default=None)
    names = "with the names of a ClassLabel (of Hugging Face's datasets) in the file"
    return count_classes(f"Data set {name!r}", named, *(each.y for each in splits), otherwise=names)
