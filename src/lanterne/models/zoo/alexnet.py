"""AlexNet for small images, as in MU-SplitFed's experiments (the code of its baseline GAS at eejiarong/GAS)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lanterne.models.zoo.parts import check_image
from lanterne.tree import Shape


def alexnet(sample_shape: Shape, classes: int) -> nn.Sequential:
    """AlexNet as MU-SplitFed has it: five 3x3 convolutions and three linear layers; 3,868,746 parameters on CIFAR-10.

    The convolutions 3, 4 and 5 follow each other, and so do the linear layers, without an activation between them, as
    in the authors' code. On images of 32x32 the client half of a cut behind block 2 has 19,392 parameters and gives
    64x8x8 numbers a sample.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 12x12.
        classes: how many.

    Raises:
        ModelError: for samples that are no such images.
    """
    check_image("alexnet", sample_shape, 12)
    channels, height, width = sample_shape
    left = ((height // 4 - 3) // 2 + 1) * ((width // 4 - 3) // 2 + 1)
    return nn.Sequential(
        OrderedDict([
            ("conv1", nn.Conv2d(channels, 32, 3, 1, 1)),
            ("pool1", nn.MaxPool2d(2)),
            ("relu1", nn.ReLU()),
            ("conv2", nn.Conv2d(32, 64, 3, 1, 1)),
            ("pool2", nn.MaxPool2d(2)),
            ("relu2", nn.ReLU()),
            ("conv3", nn.Conv2d(64, 128, 3, 1, 1)),
            ("conv4", nn.Conv2d(128, 256, 3, 1, 1)),
            ("conv5", nn.Conv2d(256, 256, 3, 1, 1)),
            ("pool5", nn.MaxPool2d(3, 2)),
            ("relu5", nn.ReLU()),
            ("flatten", nn.Flatten()),
            ("hidden1", nn.Linear(256 * left, 1024)),
            ("hidden2", nn.Linear(1024, 512)),
            ("output", nn.Linear(512, classes)),
        ])
    )  # fmt: skip
