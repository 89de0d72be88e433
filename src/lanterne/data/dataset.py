"""A data set is resident tensors: a batch is an index gather, never a loader in the inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lanterne.errors import DataError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples and labels to train on, and a held-out split to judge by; validated when it is made.

    Args:
        name: what tables and plots call it.
        x: training samples, floating point, finite, `[n, *sample_shape]`.
        y: their labels, int64, `[n]`, each in `[0, classes)`.
        test_x: held-out samples, `[m, *sample_shape]`, of the same type and on the same device as `x`.
        test_y: their labels, int64, `[m]`.
        classes: how many classes there are, also those that no row shows.
        owner: who each training row comes from, for the partition `natural`: int64 on the CPU, `[n]`, from 0.
        test_owner: the same for the held-out rows, `[m]`; -1 is somebody who has no training row.

    Raises:
        DataError: tensors that do not fit each other, labels outside the classes, no rows, values that are not finite.

    Examples:
        >>> data = Dataset.of(torch.zeros(6, 2), [0, 1, 2, 0, 1, 2], torch.ones(3, 2), [0, 1, 2])
        >>> len(data), data.sample_shape, data.classes
        (6, (2,), 3)
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    owner: Tensor | None = None
    test_owner: Tensor | None = None

    def __post_init__(self) -> None:
        """Check every promise that the class makes."""
        for field, labels in (("y", self.y), ("test_y", self.test_y)):
            _check_there(self.name, field, labels)
        if len({tensor.device for tensor in (self.x, self.y, self.test_x, self.test_y)}) > 1:
            raise DataError(
                f"Data set {self.name!r}: its tensors lie on different devices, so that no batch can be gathered. "
                f'Give all four on one device, for instance with .to("cpu").'
            )
        _check_split(self.name, "x", "y", self.x, self.y, self.classes)
        _check_split(self.name, "test_x", "test_y", self.test_x, self.test_y, self.classes)
        if self.x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(
                f"Data set {self.name!r}: a sample of x has shape {tuple(self.x.shape[1:])}, one of test_x "
                f"{tuple(self.test_x.shape[1:])}. One model reads both: bring them to one shape."
            )
        if self.x.dtype != self.test_x.dtype:
            raise DataError(
                f"Data set {self.name!r}: x is {_word(self.x.dtype)}, test_x is {_word(self.test_x.dtype)}. "
                f"One model reads both: write test_x.to({self.x.dtype})."
            )
        _check_owner(self.name, "owner", self.owner, len(self.y), 0)
        _check_owner(self.name, "test_owner", self.test_owner, len(self.test_y), -1)

    @classmethod
    def of(
        cls,
        x: Tensor | np.ndarray[Any, Any],
        y: Tensor | np.ndarray[Any, Any] | Sequence[int],
        test_x: Tensor | np.ndarray[Any, Any],
        test_y: Tensor | np.ndarray[Any, Any] | Sequence[int],
        *,
        name: str = "own",
        owner: Sequence[int | str] | np.ndarray[Any, Any] | None = None,
        test_owner: Sequence[int | str] | np.ndarray[Any, Any] | None = None,
    ) -> Dataset:
        """A data set of the user's own tensors; the number of classes is the largest label plus one.

        Args:
            x: training samples, floating point, `[n, *sample_shape]`.
            y: their labels, any integer type, `[n]`; in both splits together every class from 0 on occurs.
            test_x: held-out samples, `[m, *sample_shape]`.
            test_y: their labels, `[m]`.
            name: what tables and plots call it.
            owner: who each training row comes from, `[n]`, numbers or words.
            test_owner: the same for the held-out rows, `[m]`.

        Raises:
            DataError: as for the class itself, and for classes that no label shows.

        Examples:
            >>> Dataset.of(np.eye(4), np.arange(4), np.eye(4), np.arange(4), name="corners").classes
            4
            >>> Dataset.of(np.eye(2), [0, 1], np.eye(2), [0, 1], owner=["bo", "al"]).owner.tolist()
            [1, 0]
        """
        labels, test_labels = _labels(name, "y", y), _labels(name, "test_y", test_y)
        both = (each.numpy(force=True) for each in (labels, test_labels))
        classes = count_classes(f"Data set {name!r}", None, *both, otherwise="with classes= of Dataset itself")
        owners = number_owners(*(None if each is None else np.asarray(each) for each in (owner, test_owner)))
        return cls(name, torch.as_tensor(x), labels, torch.as_tensor(test_x), test_labels, classes, *owners)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch dimension."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """How many rows there are to train on."""
        return len(self.x)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Dataset:
        """The same data in another floating-point type or on another device; labels stay int64.

        Args:
            dtype: a floating-point type of the samples.
            device: where the four tensors shall lie.

        Raises:
            DataError: a type that is not floating point, or one in which a value is no longer finite.

        Examples:
            >>> data = Dataset.of(torch.zeros(2, 1), [0, 1], torch.zeros(2, 1), [0, 1])
            >>> data.to(torch.float64).x.dtype
            torch.float64
        """
        return Dataset(
            self.name,
            self.x.to(device, dtype),
            self.y.to(device),
            self.test_x.to(device, dtype),
            self.test_y.to(device),
            self.classes,
            self.owner,
            self.test_owner,
        )


def count_classes(where: str, named: int | None, *labels: NDArray[np.int64], otherwise: str) -> int:
    """How many classes the labels of both splits are of: as many as are named, else all up to the largest label.

    Args:
        where: what the labels are of, for messages.
        named: how many classes have names; None where none has.
        labels: of the training and the test split, or of rows that are not divided yet, `[rows]`.
        otherwise: how else to say how many classes there are.

    Raises:
        DataError: classes without names of which some have no row, which is how labels look that are no class numbers.

    Examples:
        >>> count_classes("mine", None, np.array([0, 1, 1]), np.array([2]), otherwise="with names")
        3
    """
    if named is not None:
        return named
    seen = np.unique(np.concatenate([each.ravel() for each in labels]))
    classes = 1 + int(seen[-1]) if seen.size else 0
    if seen.size < classes and seen[0] >= 0:
        first = int((seen != np.arange(seen.size)).argmax())
        split, y = next((i, each) for i, each in enumerate(labels) if (each > first).any())
        row = int((y > first).argmax())
        kind = ("training row", "test row")[split] if len(labels) > 1 else "row"
        raise DataError(
            f"{where}, {kind} {row}: the label is {y[row]}, but no row has the label {first}: the labels show "
            f"{seen.size} classes, and run up to {seen[-1]}. Number the classes from 0 without gaps, or say how many "
            f"there are, {otherwise}."
        )
    return classes


def number_owners(owner: NDArray[Any] | None, test_owner: NDArray[Any] | None) -> tuple[Tensor | None, Tensor | None]:
    """Owners as numbers from 0, in the order of their names.

    Args:
        owner: of each training row, numbers or words, `[n]`.
        test_owner: of each held-out row; those without a training row become -1.

    Examples:
        >>> number_owners(np.array(["bo", "al", "bo"]), np.array(["cy", "bo"]))
        (tensor([1, 0, 1]), tensor([-1,  1]))
    """
    if owner is None:
        return None, None
    names, numbers = np.unique(owner, return_inverse=True)
    if test_owner is None:
        return torch.from_numpy(numbers), None
    place = np.searchsorted(names, test_owner).clip(max=len(names) - 1)
    found = np.where(names[place] == test_owner, place, -1)
    return torch.from_numpy(numbers), torch.from_numpy(found)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _labels(name: str, field: str, labels: Any) -> Tensor:  # noqa: ANN401 - whatever torch can read
    _check_there(name, field, labels)
    tensor = torch.as_tensor(labels)
    if tensor.numel() and tensor.dtype not in _INTEGERS:
        raise DataError(
            f"Data set {name!r}: {field} is {_word(tensor.dtype)}, but a label is the number of a class. "
            f"Write integers from 0 on, for instance {field}.long()."
        )
    return tensor.to(torch.int64)


def _check_there(name: str, field: str, labels: object) -> None:
    if labels is None:
        raise DataError(
            f"Data set {name!r}: {field} is None, but every method learns from labels. Give each row's class number."
        )


def _check_owner(name: str, field: str, owner: Tensor | None, rows: int, least: int) -> None:
    if owner is None:
        return
    if owner.dtype != torch.int64 or owner.device.type != "cpu" or owner.shape != (rows,):
        raise DataError(
            f"Data set {name!r}: {field} is {_word(owner.dtype)} of shape {tuple(owner.shape)} on {owner.device}, but "
            f"has to say who owns each of the {rows} rows. Give int64 of shape ({rows},) on the CPU."
        )
    if int(owner.min()) < least:
        raise DataError(
            f"Data set {name!r}: {field}[{int(owner.argmin())}] is {int(owner.min())}. Number the owners from 0."
        )


def _check_split(name: str, x_field: str, y_field: str, x: Tensor, y: Tensor, classes: int) -> None:
    where = f"Data set {name!r}"
    if not x.is_floating_point():
        raise DataError(
            f"{where}: {x_field} is {_word(x.dtype)}, but models compute in floating point. "
            f"Write {x_field}.float(), and bring the values to about unit size."
        )
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{where}: {x_field} has shape {tuple(x.shape)} and {y_field} {tuple(y.shape)}, which is not one label "
            f"for each sample. Give {x_field} as [rows, *shape of a sample] and {y_field} as [rows]."
        )
    if x.numel() == 0:
        raise DataError(f"{where}: {x_field} of shape {tuple(x.shape)} is empty. Give at least one row to each split.")
    if y.dtype != torch.int64:
        raise DataError(f"{where}: {y_field} is {_word(y.dtype)}, not int64. Write {y_field}.long().")
    low, high = (int(bound) for bound in torch.aminmax(y))
    if low < 0 or high >= classes:
        row = int(((y < 0) | (y >= classes)).nonzero()[0])
        raise DataError(
            f"{where}: {y_field}[{row}] is {int(y[row])}, but with {classes} classes a label lies in "
            f"0..{classes - 1}. Renumber the labels, or give the right number of classes."
        )
    # One pass and no mask: a NaN goes through both ends of aminmax, an infinity is one of them.
    if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(x)):
        row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(
            f"{where}: {x_field}[{row}] holds a value that is infinite or not a number, which would spoil every "
            f"model that reads it. Remove the row or replace the value."
        )
