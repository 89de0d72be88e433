"""Models by name. Each takes its input shape and its number of classes from the data."""

from __future__ import annotations

import math

import torch

from lanterne.errors import ModelError
from lanterne.models.stack import LayerStack
from lanterne.models.zoo.alexnet import alexnet
from lanterne.models.zoo.lenet import cnn, lenet
from lanterne.models.zoo.mlp import mlp
from lanterne.models.zoo.options import Make, options_of, read_word
from lanterne.models.zoo.parts import Norm
from lanterne.models.zoo.resnet import ResidualBlock, resnet8, resnet18, resnet34, resnet_small
from lanterne.models.zoo.salf import salf_cnn, salf_mlp
from lanterne.models.zoo.vgg import vgg11, vgg13, vgg16, vgg19
from lanterne.tree import Shape

MODELS: dict[str, Make] = {
    "resnet-small": resnet_small,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "alexnet": alexnet,
    "lenet": lenet,
    "cnn": cnn,
    "mlp": mlp,
    "salf-mlp": salf_mlp,
    "salf-cnn": salf_cnn,
}

#: Parameters; beyond them not even the number of their bytes is sure to be a number to PyTorch.
_LARGEST = 10**15

#: The model of a run that names none.
DEFAULT = "resnet-small"


def check_name(word: str) -> None:
    """Refuse a word that names no model, or sets what cannot be set.

    Args:
        word: one of `MODELS`, and behind a colon its options.

    Raises:
        ModelError: with the nearest right one.

    Examples:
        >>> check_name("resnet18:norm=batch")
    """
    read_word(word, MODELS)


def build(word: str, sample_shape: Shape, classes: int) -> LayerStack:
    """A model of the zoo, without weights: those are drawn from the run's seed.

    Args:
        word: one of `MODELS`, and behind a colon its options.
        sample_shape: of one sample of the data.
        classes: of the data.

    Raises:
        ModelError: for a name or an option that is not there, data that the model cannot take, or more parameters than
            any machine can hold.

    Examples:
        >>> build("salf-mlp", (1, 28, 28), 10).size
        25818
        >>> build("resnet18:norm=batch", (3, 32, 32), 10).size
        11173962
    """
    name, options = read_word(word, MODELS)
    try:
        with torch.device("meta"):
            net = MODELS[name](sample_shape, classes, **options)
    except (RuntimeError, TypeError, OverflowError):  # the number of a tensor's bytes is no number to PyTorch
        size = math.inf
    else:
        size = sum(parameter.numel() for parameter in net.parameters())
    if size > _LARGEST:
        raise ModelError(
            f"The model {word!r} has {'too many' if math.isinf(size) else size} parameters, which no machine can hold. "
            "Make it smaller."
        )
    return LayerStack(net, sample_shape)


__all__ = [
    "DEFAULT",
    "MODELS",
    "Norm",
    "ResidualBlock",
    "alexnet",
    "build",
    "check_name",
    "cnn",
    "lenet",
    "mlp",
    "options_of",
    "resnet8",
    "resnet18",
    "resnet34",
    "resnet_small",
    "salf_cnn",
    "salf_mlp",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
