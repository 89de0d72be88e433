"""Load a data set by name or by path. Nothing here touches the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lanterne import rng
from lanterne.data.dataset import Dataset
from lanterne.data.parquet import Split, read
from lanterne.errors import DataError, nearest

#: Data sets that come with lanterne, and have no files of their own.
BUNDLED = ("digits",)
_ACCEPTED = (
    "Accepted are 'digits' (bundled), a folder with train.parquet and test.parquet (or train*.parquet and "
    "test*.parquet), and a single .parquet file"
)
_CHUNK = 128  # rows worked on at a time: little memory beside the result, and most of it in the cache


def load(spec: str, *, image: str | None = None, label: str | None = None, seed: int = 0) -> Dataset:
    """A data set as resident float32 tensors, each channel shifted and scaled to mean 0 and standard deviation 1.

    With mean and standard deviation of a channel over all training samples and places,

        x = (value - mean) / std,

    and the same two numbers for the test split; a constant channel is only shifted. A scale of the values, such as
    1/255, cancels.

    * `"digits"`: scikit-learn's bundled handwritten digits, 1x8x8, 10 classes; 1,438 rows to train on and 359 to judge
      by, the same in every run.
    * a folder that holds `train.parquet` and `test.parquet`, or parts `train*.parquet` and `test*.parquet`.
    * a single `.parquet` file: a fifth of each class, drawn by `seed`, becomes the test split.

    The columns are found by their Hugging Face features (`Image`, `ClassLabel`), else by content: encoded images or
    lists of numbers, all of one size, and the only column of integers.

    Args:
        spec: a name or a path.
        image: the column of images, where it cannot be found.
        label: the column of labels, where it cannot be found.
        seed: how a single file is split; of no effect elsewhere.

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
    if spec in BUNDLED:
        if image is not None or label is not None:
            raise DataError(f"{spec!r} is bundled and has no columns to choose from. Leave out image= and label=.")
        return _digits()
    path = _path(spec)
    if path.is_dir():
        train = read(_parts(path, "train"), image, label)
        test = read(_parts(path, "test"), image, label)
    elif path.is_file() and path.suffix == ".parquet":
        train, test = _divide(read([path], image, label), seed, str(path))
    elif path.is_file():
        raise DataError(f"{spec!r} is a file, but not of a kind that can be read. {_ACCEPTED}.")
    else:
        raise DataError(_unknown(spec, path))
    return _normalised(path.stem if path.is_file() else path.resolve().name, train, test)


def data_files(spec: str) -> list[Path]:
    """The files from which `load` would read a data set; whether they are there is not looked at.

    Args:
        spec: a name or a path.

    Examples:
        >>> data_files("digits"), [path.name for path in data_files("own.parquet")]
        ([], ['own.parquet'])
    """
    if spec in BUNDLED:
        return []
    path = _path(spec)
    return [*_matching(path, "train"), *_matching(path, "test")] if path.is_dir() else [path]


def _path(spec: str) -> Path:
    return Path(spec).expanduser() if spec.startswith("~/") else Path(spec)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    rows = Split(values.reshape(-1, 1, 8, 8).astype(np.uint8), labels.astype(np.int64), 10)
    return _normalised("digits", *_divide(rows, 0, "digits"))


def _matching(folder: Path, split: str) -> list[Path]:
    whole = folder / f"{split}.parquet"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{split}*.parquet"))


def _parts(folder: Path, split: str) -> list[Path]:
    paths = _matching(folder, split)
    if not paths:
        here = ", ".join(sorted(each.name for each in folder.glob("*.parquet"))[:5]) or "no .parquet file"
        raise DataError(
            f"The folder {str(folder)!r} has neither {split}.parquet nor {split}*.parquet (it holds {here}), and a "
            "model is trained on one split and judged on the other. Add the file, or give a single .parquet file to "
            "have it split."
        )
    return paths


def _unknown(spec: str, path: Path) -> str:
    near = list(BUNDLED)
    with contextlib.suppress(OSError):  # no such folder, or not ours to read: nothing to offer
        near += [str(each) for each in path.parent.iterdir() if each.is_dir() or each.suffix == ".parquet"]
    hint = nearest(spec, near)
    return (
        f"There is no data set {spec!r}: it is neither bundled nor a path that exists. "
        + (hint + " " if hint.startswith("Did you mean") else "")
        + f"{_ACCEPTED}; hub ids need a later version: until then, download the files into a folder."
    )


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
    train, test = (Split(rows.x[part], rows.y[part], rows.classes) for part in (~is_test, is_test))
    return train, test


def _normalised(name: str, train: Split, test: Split) -> Dataset:
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"Data set {name!r}: a training image has shape {train.x.shape[1:]} (channels first), a test image "
            f"{test.x.shape[1:]}. One model reads both: bring the images of both files to one size and one kind."
        )
    mean, std = _moments(train.x)
    tensors = []
    for x in (train.x, test.x):
        out = np.empty(x.shape, dtype=np.float32)
        for part, into in zip(_chunks(x), _chunks(out), strict=True):
            np.subtract(part, mean.astype(np.float32), out=into, dtype=np.float32)
            np.divide(into, std.astype(np.float32), out=into)
        tensors.append(torch.from_numpy(out))
    classes = max(train.classes, test.classes)
    return Dataset(name, tensors[0], torch.from_numpy(train.y), tensors[1], torch.from_numpy(test.y), classes)


def _moments(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel; sums in a fixed order, whatever the number of threads."""
    channels = x.shape[1] if x.ndim > 2 else 1
    total, square, shift = np.zeros(channels), np.zeros(channels), None
    for part in _chunks(x):
        values = part.reshape(len(part), channels, -1).astype(np.float64)
        if shift is None:
            shift = values.mean(axis=(0, 2), keepdims=True)  # near the mean, so that the difference below loses nothing
        values -= shift
        total += values.sum(axis=(0, 2))
        square += np.einsum("ncp,ncp->c", values, values)
    assert shift is not None
    places = x.size // channels
    std = np.sqrt(np.maximum(square / places - (total / places) ** 2, 0))
    shape = (channels,) + (1,) * (x.ndim - 2)
    mean = shift.ravel() + total / places
    std[std <= 1e-7 * np.abs(mean)] = 1  # a constant channel, but for rounding
    return mean.reshape(shape), std.reshape(shape)


def _chunks(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK))
