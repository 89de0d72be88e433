"""Residual networks, whose blocks can be cut, nested and trained without back-propagation.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. By default with the normalisation of Wu,
He, "Group Normalization", ECCV 2018.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lanterne.models.zoo.parts import Norm, check_image, normalisation
from lanterne.tree import Shape


class ResidualBlock(nn.Module):
    """`relu(x' + norm(conv(relu(norm(conv(x))))))`, where `x'` is `x`, or a 1x1 convolution of it if the shape changes.

    Args:
        inputs: channels of `x`.
        outputs: channels of the result.
        stride: of the first convolution.
        norm: makes the normalisation of so many channels.
        norm_shortcut: whether a convolution in the shortcut is normalised too, as in the paper.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module], norm_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm(outputs)) if norm_shortcut else conv

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


def resnet_small(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """The default network: a stem and three residual blocks of 16, 16 and 32 channels; 29,114 parameters on the digits.

    Args:
        sample_shape: `(channels, height, width)`.
        classes: how many.
        norm: GroupNorm with 4 groups, or BatchNorm.

    Raises:
        ModelError: for samples that are no images.
    """
    check_image("resnet-small", sample_shape)
    blocks = [(16, 1), (16, 1), (32, 2)]
    return _network(sample_shape[0], classes, blocks, normalisation(norm, 4), pool=4)


def resnet8(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """ResNet-8: a stem and one residual block each of 16, 32 and 64 channels; 77,850 parameters on CIFAR-10.

    Convolutions in shortcuts are not normalised.

    Args:
        sample_shape: `(channels, height, width)`.
        classes: how many.
        norm: GroupNorm with 4 groups, or BatchNorm.

    Raises:
        ModelError: for samples that are no images.
    """
    check_image("resnet8", sample_shape)
    return _network(sample_shape[0], classes, [(16, 1), (32, 2), (64, 2)], normalisation(norm, 4))


def resnet18(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """ResNet-18 for small images (3x3 stem, no pooling behind it); 11,173,962 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as in the paper.

    Raises:
        ModelError: for samples that are no images.
    """
    return _deep("resnet18", sample_shape, classes, (2, 2, 2, 2), norm)


def resnet34(sample_shape: Shape, classes: int, *, norm: Norm = "group") -> nn.Sequential:
    """ResNet-34 for small images (3x3 stem, no pooling behind it); 21,282,122 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`.
        classes: how many.
        norm: GroupNorm with 32 groups, or BatchNorm as in the paper.

    Raises:
        ModelError: for samples that are no images.
    """
    return _deep("resnet34", sample_shape, classes, (3, 4, 6, 3), norm)


def _deep(name: str, sample_shape: Shape, classes: int, stages: Sequence[int], norm: Norm) -> nn.Sequential:
    """Stages of 64, 128, 256 and 512 channels; each but the first begins by halving height and width."""
    check_image(name, sample_shape)
    blocks = [(64 * 2**i, 2 if i and not b else 1) for i, count in enumerate(stages) for b in range(count)]
    return _network(sample_shape[0], classes, blocks, normalisation(norm, 32), norm_shortcut=True)


def _network(
    inputs: int,
    classes: int,
    blocks: Sequence[tuple[int, int]],
    norm: Callable[[int], nn.Module],
    *,
    pool: int = 1,
    norm_shortcut: bool = False,
) -> nn.Sequential:
    """A stem, residual blocks of `(channels, stride)`, averages over `pool` x `pool` fields, and a linear layer."""
    channels = blocks[0][0]
    layers: OrderedDict[str, nn.Module] = OrderedDict([
        ("stem", nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)),
        ("norm", norm(channels)),
        ("relu", nn.ReLU()),
    ])  # fmt: skip
    for number, (outputs, stride) in enumerate(blocks, 1):
        layers[f"block{number}"] = ResidualBlock(channels, outputs, stride, norm, norm_shortcut)
        channels = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(pool)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels * pool * pool, classes)
    return nn.Sequential(layers)
