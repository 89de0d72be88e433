"""Each channel shifted and scaled to mean 0 and standard deviation 1, by the training samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 128  # rows worked on at a time: little memory beside the result, and most of it in the cache


def normalise(train: NDArray[Any], *others: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Shift and scale, with the moments of the first array, every array.

        out = (value - mean) / std

    with mean and standard deviation of a channel over all samples and places of `train`; a constant channel is only
    shifted.

    Args:
        train: `[n, channels, ...]`, or `[n, places]`, which is one channel.
        others: of the same sample shape.

    Examples:
        >>> normalise(np.array([[0.0], [2.0]]), np.array([[4.0]]))[1].tolist()
        [[3.0]]
    """
    mean, std = _moments(train)
    arrays = []
    for x in (train, *others):
        out = np.empty(x.shape, dtype=np.float32)
        for part, into in zip(_chunks(x), _chunks(out), strict=True):
            np.subtract(part, mean.astype(np.float32), out=into, dtype=np.float32)
            np.divide(into, std.astype(np.float32), out=into)
        arrays.append(out)
    return arrays


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
