"""Random crops and flips of a batch: a pure function of which rows and which of their variants are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from lanterne.errors import DataError, nearest

_SCHEMES = ("crop", "flip", "crop-flip")
_PADDING = 4


@dataclass(frozen=True)
class Augmentation:
    """All rows in all their variants, as one long table of which nothing but a batch is ever made.

    Row `r` of `n` in variant `v` has the number `r + n v`. A variant is a place in a grid of shifts and flips,

        v = f + F (sx + S sy),    F = 2 with flips, else 1;    S = 2 * padding + 1,

    and stands for: shift the image up by `((sy + padding) mod S) - padding` rows and, alike, to the left by columns,
    fill what comes in with 0 (the mean of a normalised channel), and, where `f` is 1, mirror it. So variant 0 is the
    image itself, and a number below `n` is what it is without augmentation. Drawn uniformly, this is the usual crop of
    the padded image with a horizontal flip (He et al. 2016, arXiv 1512.03385, section 4.2).

    Which variant a client reads is drawn by `Streams` together with the order of the rows; hence the same steps give
    the same batch in every runtime, under every executor and with any number of threads.

    Args:
        rows: how many rows there are to train on.
        padding: the largest shift, in pixels; 0 is none.
        flip: whether images are mirrored.
    """

    rows: int
    padding: int = 0
    flip: bool = False

    @property
    def variants(self) -> int:
        """How many variants a row has."""
        return (2 * self.padding + 1) ** 2 * (1 + self.flip)

    def draw(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """One variant of each row.

        Args:
            rows: row numbers.
            generator: what the draw is taken from.

        Returns:
            Numbers in the long table, int64, of the same shape.

        Examples:
            >>> numbers = Augmentation(rows=5, flip=True).draw(np.arange(5), np.random.default_rng(0))
            >>> (numbers % 5).tolist(), bool((numbers < 10).all())
            ([0, 1, 2, 3, 4], True)
        """
        return rows + self.rows * generator.integers(self.variants, size=rows.shape)

    def read(self, x: Tensor, y: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of the long table.

        Args:
            x: the images, `[rows, channels, height, width]`.
            y: their labels, `[rows]`.
            numbers: what to read, int64, of any shape `[...]`.

        Returns:
            `[..., channels, height, width]` and `[...]`.

        Examples:
            >>> x = torch.tensor([[[[1.0, 2.0]]]])
            >>> Augmentation(rows=1, flip=True).read(x, torch.tensor([7]), torch.tensor([0, 1]))[0].tolist()
            [[[[1.0, 2.0]]], [[[2.0, 1.0]]]]
        """
        flat, p = numbers.flatten(), self.padding
        rows, variant = flat % self.rows, flat // self.rows
        places, shifts = 1 + self.flip, 2 * p + 1
        mirrored = variant % places == 1
        left, up = variant // places % shifts, variant // (places * shifts)
        channels, height, width = x.shape[1:]
        across, down = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
        column = torch.where(mirrored[:, None], across.flip(0), across) + ((left + p) % shifts)[:, None]
        row = down + ((up + p) % shifts)[:, None]
        place = row[:, :, None] * (width + 2 * p) + column[:, None, :]
        padded = pad(x[rows], (p, p, p, p)).flatten(2)
        batch = padded.gather(2, place.flatten(1)[:, None].expand(-1, channels, -1))
        return batch.view(*numbers.shape, channels, height, width), y[rows].view(numbers.shape)


def augmentation(spec: str, sample_shape: Sequence[int], rows: int) -> Augmentation:
    """The augmentation of a name.

    * `crop:PIXELS`: a random shift of up to so many pixels each way; 4 where no number is given.
    * `flip`: mirrored from left to right, or not.
    * `crop-flip:PIXELS`: both.

    Args:
        spec: one of the above.
        sample_shape: of one image, `(channels, height, width)`.
        rows: how many rows there are to train on.

    Raises:
        DataError: an augmentation that does not exist, a shift outside the image, samples that are no images.

    Examples:
        >>> augmentation("crop-flip", (3, 32, 32), 50_000).variants
        162
    """
    scheme, colon, argument = spec.partition(":")
    if scheme not in _SCHEMES:
        raise DataError(f"There is no augmentation {scheme!r} (in {spec!r}). {nearest(scheme, _SCHEMES)}")
    if len(sample_shape) != 3:
        raise DataError(
            f"The augmentation {spec!r} moves images, but a sample has shape {tuple(sample_shape)}, not (channels, "
            "height, width). Leave the augmentation out."
        )
    if scheme == "flip":
        if colon:
            raise DataError(f"The augmentation {spec!r} has an argument, but a flip takes none. Write 'flip'.")
        return Augmentation(rows, flip=True)
    most = min(sample_shape[1:]) - 1
    padding = _PADDING if not colon else int(argument) if argument.isdecimal() else 0
    if not 1 <= padding <= most:
        raise DataError(
            f"The augmentation {spec!r} needs a shift in whole pixels, from 1 to {most} for images of "
            f"{sample_shape[2]}x{sample_shape[1]}; without a number it is {_PADDING}. Write for instance '{scheme}:1'."
        )
    return Augmentation(rows, padding, flip=scheme == "crop-flip")
