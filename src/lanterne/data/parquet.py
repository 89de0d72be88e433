"""Parquet files of images and labels, read into arrays; every complaint names the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lanterne.data.columns import Columns, Split, choose, join, split
from lanterne.errors import DataError


def read(paths: Sequence[Path], wanted: Columns) -> Split:
    """All rows of the files of one split, in their order.

    Args:
        paths: the files, at least one.
        wanted: the columns that the user names.

    Raises:
        DataError: a file, a column or a row that cannot be used.
    """
    return join([_read_file(path, wanted) for path in paths], [str(path) for path in paths])


def _read_file(path: Path, wanted: Columns) -> Split:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            image, label = choose(str(path), file.schema_arrow, wanted)
            names = [image, label] if wanted.owner is None else [image, label, wanted.owner]
            table = file.read(columns=list(dict.fromkeys(names)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a Parquet file ({error}). It is damaged or of another kind: write or download "
            "it again."
        ) from error
    return split(str(path), table, image, label, wanted.owner)
