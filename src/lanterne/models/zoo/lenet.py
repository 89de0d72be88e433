"""Two small convolutional networks: LeNet-5 in its usual modern form, and the CNN of the benchmarks.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 1998.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lanterne.models.zoo.parts import check_image
from lanterne.tree import Shape


def lenet(sample_shape: Shape, classes: int) -> nn.Sequential:
    """LeNet-5, `conv5x5(6)-pool-conv5x5(16)-pool-120-84-classes`; 61,706 parameters on MNIST, 62,006 on CIFAR-10.

    With ReLU and max-pooling. Images below 32x32 get a margin of 2 pixels, as is usual for MNIST.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 12x12.
        classes: how many.

    Raises:
        ModelError: for samples that are no such images.
    """
    check_image("lenet", sample_shape, 12)
    channels, height, width = sample_shape
    margin = 2 if min(height, width) < 32 else 0
    left = ((height + 2 * margin - 4) // 2 - 4) // 2 * (((width + 2 * margin - 4) // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict([
            ("conv1", nn.Conv2d(channels, 6, 5, padding=margin)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(6, 16, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("hidden1", nn.Linear(16 * left, 120)),
            ("relu3", nn.ReLU()),
            ("hidden2", nn.Linear(120, 84)),
            ("relu4", nn.ReLU()),
            ("output", nn.Linear(84, classes)),
        ])
    )  # fmt: skip


def cnn(sample_shape: Shape, classes: int) -> nn.Sequential:
    """The CNN `conv5x5(16)-pool-conv5x5(32)-pool-128-classes` of the benchmarks; 215,370 parameters on MNIST.

    The convolutions keep height and width. With the 62 classes of FEMNIST it has 222,078 parameters.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 4x4.
        classes: how many.

    Raises:
        ModelError: for samples that are no such images.
    """
    check_image("cnn", sample_shape, 4)
    channels, height, width = sample_shape
    return nn.Sequential(
        OrderedDict([
            ("conv1", nn.Conv2d(channels, 16, 5, padding=2)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(16, 32, 5, padding=2)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("hidden", nn.Linear(32 * (height // 4) * (width // 4), 128)),
            ("relu3", nn.ReLU()),
            ("output", nn.Linear(128, classes)),
        ])
    )  # fmt: skip
