"""Residual networks with GroupNorm, whose blocks can be cut, nested and trained without back-propagation.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, with the normalisation of Wu, He, "Group
Normalization", ECCV 2018.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lanterne.errors import ModelError
from lanterne.tree import Shape


class ResidualBlock(nn.Module):
    """`relu(x' + norm(conv(relu(norm(conv(x))))))`, where `x'` is `x`, or a 1x1 convolution of it if the shape changes.

    Args:
        inputs: channels of `x`.
        outputs: channels of the result.
        stride: of the first convolution.
        groups: of the normalisations.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.relu = nn.ReLU()
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Out of place, so that a cut may hold the input.

        Args:
            x: `[batch, inputs, height, width]`.

        Returns:
            `[batch, outputs, height / stride, width / stride]`.
        """
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut: Tensor = self.shortcut(x)
        return self.relu(shortcut + y)  # type: ignore[no-any-return]


def resnet_small(sample_shape: Shape, classes: int) -> nn.Sequential:
    """The default network: a stem and three residual blocks of 16, 16 and 32 channels; 29,114 parameters on the digits.

    Args:
        sample_shape: `(channels, height, width)`.
        classes: how many.

    Raises:
        ModelError: for samples that are no images.
    """
    if len(sample_shape) != 3:
        raise ModelError(f"'resnet-small' takes images, not samples of shape {sample_shape}. Use 'salf-mlp'.")
    return nn.Sequential(
        OrderedDict([
            ("stem", nn.Conv2d(sample_shape[0], 16, 3, 1, 1, bias=False)),
            ("norm", nn.GroupNorm(4, 16)),
            ("relu", nn.ReLU()),
            ("block1", ResidualBlock(16, 16, 1, 4)),
            ("block2", ResidualBlock(16, 16, 1, 4)),
            ("block3", ResidualBlock(16, 32, 2, 4)),
            ("pool", nn.AdaptiveAvgPool2d(4)),
            ("flatten", nn.Flatten()),
            ("output", nn.Linear(32 * 16, classes)),
        ])
    )  # fmt: skip
