"""Parquet files of images and labels, read into arrays; every complaint names the file, the column or the row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lanterne.data.images import decode, numbers
from lanterne.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa


class Split(NamedTuple):
    """One split as it lies in its files.

    Args:
        x: samples, uint8 or float32, `[n, channels, height, width]` for images, `[n, *shape]` for lists of numbers.
        y: labels, int64, `[n]`.
        classes: how many there are, by the names in the file, else by the largest label.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    classes: int


def read(paths: Sequence[Path], image: str | None, label: str | None) -> Split:
    """All rows of the files of one split, in their order.

    Args:
        paths: the files, at least one.
        image: the column of images; found where it is `None`.
        label: the column of labels; found where it is `None`.

    Raises:
        DataError: a file, a column or a row that cannot be used.
    """
    parts = [_read_file(path, image, label) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.x.shape[1:] != parts[0].x.shape[1:]:
            raise DataError(
                f"{path}: its samples have shape {part.x.shape[1:]} (channels first), those of {paths[0]} "
                f"{parts[0].x.shape[1:]}. One model reads all: bring them to one size and one kind."
            )
    if len(parts) == 1:
        return parts[0]
    xs, ys, classes = zip(*parts, strict=True)
    return Split(np.concatenate(xs), np.concatenate(ys), max(classes))


def _read_file(path: Path, image: str | None, label: str | None) -> Split:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            features = _features(schema)
            images = _column(path, schema, features, "image", image, _is_images)
            labels = _column(path, schema, features, "label", label, _is_labels)
            table = file.read(columns=[images, labels])
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a Parquet file ({error}). It is damaged or of another kind: write or download "
            "it again."
        ) from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows. Give a file with at least one.")
    names = features.get(labels, {}).get("names")
    y, classes = _labels(path, labels, table.column(labels), len(names) if isinstance(names, list) else None)
    values = [getattr(chunk, "storage", chunk) for chunk in table.column(images).chunks]
    x = (numbers if _is_list(_plain(schema.field(images).type)) else decode)(values, f"{path}, column {images!r}")
    return Split(x, y, classes)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` wrote beside the columns, where it did: `{column: {"_type": "Image", ...}}`."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _column(
    path: Path,
    schema: pa.Schema,
    features: dict[str, dict[str, Any]],
    role: str,
    wanted: str | None,
    fits: Callable[[pa.DataType], bool],
) -> str:
    feature, need = {
        "image": ("Image", "encoded images (bytes of PNG, JPEG ...) or lists of numbers"),
        "label": ("ClassLabel", "integers"),
    }[role]
    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(f"{path} has no column {wanted!r}. {nearest(wanted, schema.names)}")
        kind = schema.field(wanted).type
        if not fits(kind):
            raise DataError(f"{path}: the column {wanted!r} is {kind}, but {role}= needs {need}. Name another column.")
        return wanted
    usable: list[str] = [field.name for field in schema if fits(field.type)]
    found = [name for name in usable if features.get(name, {}).get("_type") == feature] or usable
    if len(found) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        many = f"several columns that could be the {role}s ({', '.join(found)})" if found else f"no column of {need}"
        repair = f"Name one, for instance {role}={found[0]!r}." if found else "Add one to the file."
        raise DataError(f"{path} has {many}; its columns are: {columns}. {repair}")
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


def _labels(path: Path, name: str, column: pa.ChunkedArray, named: int | None) -> tuple[NDArray[np.int64], int]:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{path}, column {name!r}, row {row}: there is no label. Remove the row or label it.")
    y = column.to_numpy().astype(np.int64)
    if y.min() < 0:
        row = int((y < 0).argmax())
        raise DataError(
            f"{path}, column {name!r}, row {row}: the label {y[row]} is negative, which usually means that the row is "
            "not labelled. Remove the row, or number the classes from 0."
        )
    classes = int(y.max()) + 1 if named is None else named
    if y.max() >= classes:
        row = int((y >= classes).argmax())
        raise DataError(
            f"{path}, column {name!r}, row {row}: the label {y[row]} is not one of the {classes} classes that the file "
            f"names, 0..{classes - 1}. Correct the label or the names."
        )
    return y, classes
