"""What several networks of the zoo are made of: the check of their samples, and a normalisation by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from lanterne.errors import ModelError
from lanterne.tree import Shape

Norm = Literal["group", "batch"]


def check_image(name: str, sample_shape: Shape, smallest: int = 1) -> None:
    """Refuse samples that a convolutional network cannot take.

    Args:
        name: of the model.
        sample_shape: of one sample of the data.
        smallest: the least height and width, in pixels.

    Raises:
        ModelError: for samples that are no images `(channels, height, width)`, or too small.

    Examples:
        >>> check_image("vgg11", (3, 32, 32), 32)
    """
    if len(sample_shape) != 3:
        raise ModelError(
            f"{name!r} takes images, not samples of shape {sample_shape}. "
            "Bring them as (channels, height, width), or use 'mlp'."
        )
    if min(sample_shape[1:]) < smallest:
        raise ModelError(
            f"{name!r} takes images of at least {smallest}x{smallest}, not samples of shape {sample_shape}. "
            "Use 'resnet-small', which takes any image, or 'mlp'."
        )


def normalisation(norm: Norm, groups: int) -> Callable[[int], nn.Module]:
    """What makes the normalisation of so many channels.

    BatchNorm keeps no running statistics: it trains by those of the batch, and is judged by those of training samples
    (`lanterne.models.statistics`).

    Args:
        norm: `"group"` or `"batch"`.
        groups: of GroupNorm.
    """
    return partial(nn.BatchNorm2d, track_running_stats=False) if norm == "batch" else partial(nn.GroupNorm, groups)
