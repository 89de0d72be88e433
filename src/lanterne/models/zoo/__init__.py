"""Models by name. Each takes its input shape and its number of classes from the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lanterne.errors import ModelError, nearest
from lanterne.models.stack import LayerStack
from lanterne.models.zoo.resnet import ResidualBlock, resnet_small
from lanterne.models.zoo.salf import salf_cnn, salf_mlp
from lanterne.tree import Shape

MODELS: dict[str, Callable[[Shape, int], nn.Sequential]] = {
    "resnet-small": resnet_small,
    "salf-mlp": salf_mlp,
    "salf-cnn": salf_cnn,
}

#: The model of a run that names none.
DEFAULT = "resnet-small"


def build(name: str, sample_shape: Shape, classes: int) -> LayerStack:
    """A model of the zoo, without weights: those are drawn from the run's seed.

    Args:
        name: one of `MODELS`.
        sample_shape: of one sample of the data.
        classes: of the data.

    Raises:
        ModelError: for a name that is not there, or data that the model cannot take.

    Examples:
        >>> build("salf-mlp", (1, 28, 28), 10).size
        25818
    """
    if name not in MODELS:
        raise ModelError(f"There is no model called {name!r}. {nearest(name, MODELS)}")
    with torch.device("meta"):
        net = MODELS[name](sample_shape, classes)
    return LayerStack(net, sample_shape)


__all__ = ["DEFAULT", "MODELS", "ResidualBlock", "build", "resnet_small", "salf_cnn", "salf_mlp"]
