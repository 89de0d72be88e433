"""VGG for small images: one convolution, normalisation and activation a block, and a single linear layer at the end.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the form of
SALF's experiments (the authors' code at langnatalie/SALF).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lanterne.models.zoo.parts import Norm, check_image, normalisation
from lanterne.tree import Shape

_CHANNELS = (64, 128, 256, 512, 512)


def vgg11(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """VGG-11: eight convolutions, normalised, and a linear layer; 9,231,114 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 32x32.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as the authors of SALF have it.

    Raises:
        ModelError: for samples that are no such images.
    """
    return _vgg("vgg11", sample_shape, classes, (1, 1, 2, 2, 2), norm)


def vgg13(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """VGG-13: ten convolutions, normalised, and a linear layer; 9,416,010 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 32x32.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as the authors of SALF have it.

    Raises:
        ModelError: for samples that are no such images.
    """
    return _vgg("vgg13", sample_shape, classes, (2, 2, 2, 2, 2), norm)


def vgg16(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """VGG-16: thirteen convolutions, normalised, and a linear layer; 14,728,266 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 32x32.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as the authors of SALF have it.

    Raises:
        ModelError: for samples that are no such images.
    """
    return _vgg("vgg16", sample_shape, classes, (2, 2, 3, 3, 3), norm)


def vgg19(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """VGG-19: sixteen convolutions, normalised, and a linear layer; 20,040,522 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 32x32.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as the authors of SALF have it.

    Raises:
        ModelError: for samples that are no such images.
    """
    return _vgg("vgg19", sample_shape, classes, (2, 2, 4, 4, 4), norm)


def _vgg(name: str, sample_shape: Shape, classes: int, stages: Sequence[int], norm: Norm) -> nn.Sequential:
    """Five stages of so many 3x3 convolutions, each stage with a pooling that halves height and width at its end."""
    check_image(name, sample_shape, 32)
    make = normalisation(norm, 32)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, number = sample_shape[0], 0
    for stage, (outputs, count) in enumerate(zip(_CHANNELS, stages, strict=True), 1):
        for _ in range(count):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, 1, 1)
            layers[f"norm{number}"] = make(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            inputs = outputs
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["average"] = nn.AdaptiveAvgPool2d(1)  # of images up to 63x63 there is one place left
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
