"""The two small networks of SALF's experiments (the authors' code at langnatalie/SALF): an MLP and a CNN."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from lanterne.models.zoo.parts import check_image
from lanterne.tree import Shape


def salf_mlp(sample_shape: Shape, classes: int) -> nn.Sequential:
    """The MLP `in-32-16-classes` with ReLU; 25,818 parameters on MNIST.

    Args:
        sample_shape: any; samples are flattened.
        classes: how many.
    """
    size = math.prod(sample_shape)
    return nn.Sequential(
        OrderedDict([
            ("flatten", nn.Flatten()),
            ("hidden1", nn.Linear(size, 32)),
            ("relu1", nn.ReLU()),
            ("hidden2", nn.Linear(32, 16)),
            ("relu2", nn.ReLU()),
            ("output", nn.Linear(16, classes)),
        ])
    )  # fmt: skip


def salf_cnn(sample_shape: Shape, classes: int) -> nn.Sequential:
    """The CNN `conv5x5(6)-pool-conv5x5(6)-pool-50-classes` with ReLU; 6,422 parameters on MNIST, 9,422 on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 16x16.
        classes: how many.

    Raises:
        ModelError: for samples that are no such images.
    """
    check_image("salf-cnn", sample_shape, 16)
    channels, height, width = sample_shape
    left = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict([
            ("conv1", nn.Conv2d(channels, 6, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(6, 6, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("hidden", nn.Linear(6 * left, 50)),
            ("relu3", nn.ReLU()),
            ("output", nn.Linear(50, classes)),
        ])
    )  # fmt: skip
