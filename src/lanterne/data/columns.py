"""From an Arrow table to one split: which column is what, and what its cells say. Complaints name column and row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lanterne.data.images import decode, numbers
from lanterne.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa


#: What to do where a file has no column of a role.
_REPAIRS = {
    "image": "Add a column of images to the file",
    "label": "Number the classes from 0 (the type ClassLabel of Hugging Face's datasets does so and keeps their names)",
}


class Columns(NamedTuple):
    """The columns that a user names; what is None is found by its type.

    Args:
        image: of the images.
        label: of the labels.
        owner: of who each row comes from; None is nobody.
    """

    image: str | None = None
    label: str | None = None
    owner: str | None = None


class Split(NamedTuple):
    """One split as it lies in its files.

    Args:
        x: samples, uint8 or float32, `[n, channels, height, width]` for images, `[n, *shape]` for lists of numbers.
        y: labels, int64, `[n]`.
        named: how many classes the file names, None where it names none.
        owner: who each row comes from, `[n]`, numbers or words.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    named: int | None = None
    owner: NDArray[Any] | None = None

    def rows(self, which: NDArray[np.bool_]) -> Split:
        """Some rows of it."""
        return Split(self.x[which], self.y[which], self.named, None if self.owner is None else self.owner[which])


def choose(where: str, schema: pa.Schema, wanted: Columns) -> tuple[str, str]:
    """The columns of images and of labels, by name, else by Hugging Face feature, else by content.

    Args:
        where: the file, for messages.
        schema: its columns and, where `datasets` wrote it, their features.
        wanted: the columns that the user names.

    Raises:
        DataError: a column that is not there, not of its kind, or one of several.
    """
    if wanted.owner is not None and wanted.owner not in schema.names:
        raise DataError(f"{where} has no column {wanted.owner!r}. {nearest(wanted.owner, schema.names)}")
    features = _features(schema)
    image = _column(where, schema, features, "image", wanted.image, _is_images, wanted.owner)
    return image, _column(where, schema, features, "label", wanted.label, _is_labels, wanted.owner)


def split(where: str, table: pa.Table, image: str, label: str, owner: str | None) -> Split:
    """All rows of a table.

    Args:
        where: the file, for messages.
        table: what it holds.
        image: the column of images.
        label: the column of labels.
        owner: the column of who each row comes from.

    Raises:
        DataError: no rows, or one that cannot be used.
    """
    if not table.num_rows:
        raise DataError(f"{where} has no rows. Give a file with at least one.")
    names = _features(table.schema).get(label, {}).get("names")
    named = len(names) if isinstance(names, list) else None
    y = _labels(f"{where}, column {label!r}", table.column(label), named)
    values = [getattr(chunk, "storage", chunk) for chunk in table.column(image).chunks]
    kind = _plain(table.schema.field(image).type)
    x = (numbers if _is_list(kind) else decode)(values, f"{where}, column {image!r}")
    return Split(x, y, named, None if owner is None else _owners(f"{where}, column {owner!r}", table.column(owner)))


def join(parts: Sequence[Split], names: Sequence[str]) -> Split:
    """The parts of a split one after the other.

    Args:
        parts: at least one.
        names: of their files, for messages.

    Raises:
        DataError: their samples have different shapes.
    """
    for name, part in zip(names, parts, strict=True):
        if part.x.shape[1:] != parts[0].x.shape[1:]:
            raise DataError(
                f"{name}: its samples have shape {part.x.shape[1:]} (channels first), those of {names[0]} "
                f"{parts[0].x.shape[1:]}. One model reads all: bring them to one size and one kind."
            )
    if len(parts) == 1:
        return parts[0]
    owners = [part.owner for part in parts if part.owner is not None]
    return Split(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        max((part.named for part in parts if part.named is not None), default=None),
        np.concatenate(owners) if owners else None,
    )


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` wrote beside the columns, where it did: `{column: {"_type": "Image", ...}}`."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _column(
    where: str,
    schema: pa.Schema,
    features: dict[str, dict[str, Any]],
    role: str,
    wanted: str | None,
    fits: Callable[[pa.DataType], bool],
    owner: str | None,
) -> str:
    feature, need = {
        "image": ("Image", "encoded images (bytes of PNG, JPEG ...) or lists of numbers"),
        "label": ("ClassLabel", "integers"),
    }[role]
    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(f"{where} has no column {wanted!r}. {nearest(wanted, schema.names)}")
        kind = schema.field(wanted).type
        if not fits(kind):
            raise DataError(
                f"{where}: the column {wanted!r} is {kind}, but data.{role} needs {need}. {_REPAIRS[role]}, or name "
                "another column."
            )
        return wanted
    usable: list[str] = [field.name for field in schema if fits(field.type) and field.name != owner]
    found = [name for name in usable if features.get(name, {}).get("_type") == feature] or usable
    if len(found) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        many = f"several columns that could be the {role}s ({', '.join(found)})" if found else f"no column of {need}"
        repair = f"Name one, for instance data.{role}={found[0]!r}" if found else _REPAIRS[role]
        raise DataError(f"{where} has {many}; its columns are: {columns}. {repair}.")
    return found[0]


def _plain(kind: pa.DataType) -> pa.DataType:
    return getattr(kind, "storage_type", kind)  # of an extension type, such as an Array2D


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


def _is_labels(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_integer(kind))


def _is_images(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    kind = _plain(kind)
    if t.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    if not _is_list(kind):
        return _is_binary(kind)
    while _is_list(kind):
        kind = kind.value_type
    return bool(t.is_integer(kind) or t.is_floating(kind))


def _labels(where: str, column: pa.ChunkedArray, named: int | None) -> NDArray[np.int64]:
    _complete(where, column, "there is no label. Remove the row or label it.")
    found = column.to_numpy()
    if found.max() > np.iinfo(np.int64).max:
        row = int(found.argmax())
        raise DataError(
            f"{where}, row {row}: the label {found[row]} is too large for the number of a class, and usually means "
            "that the row is not labelled. Remove the row, or number the classes from 0."
        )
    y: NDArray[np.int64] = found.astype(np.int64)
    if y.min() < 0:
        row = int((y < 0).argmax())
        raise DataError(
            f"{where}, row {row}: the label {y[row]} is negative, which usually means that the row is not labelled. "
            "Remove the row, or number the classes from 0."
        )
    if named is not None and y.max() >= named:
        row = int((y >= named).argmax())
        raise DataError(
            f"{where}, row {row}: the label {y[row]} is not one of the {named} classes that the file names, "
            f"0..{named - 1}. Correct the label or the names."
        )
    return y


def _owners(where: str, column: pa.ChunkedArray) -> NDArray[Any]:
    import pyarrow.types as t

    if t.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (t.is_integer(column.type) or t.is_string(column.type) or t.is_large_string(column.type)):
        raise DataError(
            f"{where}: it is {column.type}, but data.owner needs a column of numbers or words that say who a "
            "row comes from. Name another column."
        )
    _complete(where, column, "it does not say who owns the row. Remove the row or fill the cell.")
    owners: NDArray[Any] = column.to_numpy()
    return owners if t.is_integer(column.type) else owners.astype(np.str_)


def _complete(where: str, column: pa.ChunkedArray, otherwise: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{where}, row {row}: {otherwise}")
