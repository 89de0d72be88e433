"""From the cells of a column to one array: encoded images, or lists of numbers."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lanterne.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # the modes of more than 8 bits: I, I;16, F ...
_SMALL = 4096  # bytes; below, most of the work is Python's and not the codec's, and threads only hinder each other
_TASK = 256  # images


def decode(chunks: Sequence[pa.Array], where: str) -> NDArray[np.uint8]:
    """Decode encoded images of one size: grey ones to one channel, colour to three, a mixture to three.

    Args:
        chunks: binary cells, or structs with a binary field `bytes`.
        where: the file and the column, for messages.

    Returns:
        Values 0..255, `[n, channels, height, width]`.

    Raises:
        DataError: a row without bytes, one that cannot be decoded, one of another size.
    """
    import pyarrow.compute as pc
    import pyarrow.types as types

    cells: list[bytes | None] = []
    for chunk in chunks:
        cells += (pc.struct_field(chunk, "bytes") if types.is_struct(chunk.type) else chunk).to_pylist()
    pictures: list[NDArray[np.uint8]] = []
    small = sum(len(cell or b"") for cell in cells) < _SMALL * len(cells)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        run: Callable[..., Iterator[list[NDArray[np.uint8]]]] = map if small else pool.map
        for part in run(lambda row: _pictures(cells[row : row + _TASK], row, where), range(0, len(cells), _TASK)):
            pictures += part
    size = pictures[0].shape[:2]
    for row, picture in enumerate(pictures):
        if picture.shape[:2] != size:
            raise DataError(
                f"{where}, row {row}: the image is {_size(picture.shape)} pixels, that of row 0 {_size(size)}. "
                "One model reads all images: bring them to one size."
            )
    if len({picture.ndim for picture in pictures}) > 1:
        pictures = [picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1) for picture in pictures]
    stacked = np.stack(pictures)
    return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _pictures(cells: Sequence[bytes | None], start: int, where: str) -> list[NDArray[np.uint8]]:
    pictures = []
    for row, cell in enumerate(cells, start):
        if cell is None:
            raise DataError(
                f"{where}, row {row}: there is no image in the file, at most the path of one. "
                "Write the encoded bytes into the column."
            )
        try:
            pictures.append(_picture(cell))
        except Exception as error:  # what a codec may raise on damaged bytes is not written down anywhere
            why = str(error) if isinstance(error, ValueError) else "damaged, or not in an image format"
            raise DataError(
                f"{where}, row {row}: the image cannot be decoded ({why}). Replace it, or remove the row."
            ) from error
    return pictures


def _picture(cell: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(cell)) as picture:
        if picture.mode.startswith(_DEEP):
            raise ValueError(f"its mode {picture.mode} has more than 8 bits per channel")
        mode = "L" if picture.mode in _GREY else "RGB"
        return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def numbers(chunks: Sequence[pa.Array], where: str) -> NDArray[Any]:
    """Nested lists of numbers, all of one shape.

    Two levels become a grey image, `[1, height, width]`; three levels are channels first already, or are brought there
    if only the last has one or three entries. A flat list stays a vector.

    Args:
        chunks: nested lists.
        where: the file and the column, for messages.

    Returns:
        `[n, *shape]`, uint8 where the numbers are, else float32.

    Raises:
        DataError: a row of another shape, or with a missing or infinite number.
    """
    arrays, row = [], 0
    for chunk in chunks:
        arrays.append(_array(chunk, row, where))
        row += len(chunk)
    shapes = {each.shape[1:]: None for each in arrays if len(each)}
    if len(shapes) > 1:
        raise DataError(
            f"{where}: the lists have different shapes, {' and '.join(map(str, shapes))}. Give all rows one shape."
        )
    x = np.concatenate([each for each in arrays if len(each)])
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _array(chunk: pa.Array, first_row: int, where: str) -> NDArray[Any]:
    import pyarrow.compute as pc
    import pyarrow.types as types

    shape, values = [len(chunk)], chunk
    while not (types.is_integer(values.type) or types.is_floating(values.type)):
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0]) if lengths.size else lengths
        if odd.size or (lengths.size and not lengths[0] > 0):
            row = first_row + (int(odd[0]) if odd.size else 0) // int(np.prod(shape[1:]))
            raise DataError(
                f"{where}, row {row}: the list is missing, empty or of another length. Give all rows one shape."
            )
        shape.append(int(lengths[0]) if lengths.size else 0)
        values = values.flatten()
    x = values.to_numpy(zero_copy_only=False)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is found below
            x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        row = first_row + int(bad[0]) // int(np.prod(shape[1:]))
        raise DataError(f"{where}, row {row}: a number is missing or not finite. Replace it, or remove the row.")
    result: NDArray[Any] = x.reshape(shape)
    return result
