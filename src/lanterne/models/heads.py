"""Auxiliary networks behind a client's half of a cut model: heads that classify, decoders that reconstruct.

Each is a `LayerStack` of its own that takes the smashed data of a cut. It has no weights before `initial_weights` has
drawn them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from lanterne.errors import ModelError
from lanterne.models.cut import Cut
from lanterne.models.stack import LayerStack
from lanterne.models.zoo.options import Make, read_word
from lanterne.tree import Shape

Layers = OrderedDict[str, nn.Module]


def pooled(stack: LayerStack, cut: Cut) -> nn.Sequential:
    """A linear layer behind the average over an image; what is no image is flattened.

    Han, Bhatti, Lee, Moon, "Accelerating Federated Learning with Split Learning on Locally Generated Losses", FL-ICML
    2021, train clients by a head as small as this.

    Args:
        stack: the model.
        cut: where it is cut.

    Raises:
        ModelError: if the model gives something else than one number per class.
    """
    return nn.Sequential(_pooled(cut.shape, _classes(stack, "pooled")))


def conv(stack: LayerStack, cut: Cut, *, width: int = 32) -> nn.Sequential:
    """A 3x3 convolution with GroupNorm and ReLU, the average over the image, and a linear layer.

    Args:
        stack: the model.
        cut: where it is cut.
        width: channels of the convolution.

    Raises:
        ModelError: if the smashed data are no images, or the model gives something else than one number per class.
    """
    classes = _classes(stack, "conv")
    if len(cut.shape) != 3:
        raise ModelError(
            f"A 'conv' head takes images, but behind block {cut.name!r} there are {_words(cut.shape)} for a sample. "
            "Use 'pooled', or cut the model further in front."
        )
    layers = _convolution(cut.shape[0], width)
    layers.update(_pooled((width, *cut.shape[1:]), classes))
    return nn.Sequential(layers)


def decoder(
    stack: LayerStack, cut: Cut, *, widen: int = 1, output: Literal["linear", "sigmoid"] = "linear"
) -> nn.Sequential:
    """InfoPro's decoder, which reconstructs the sample: bilinear to the image's size, and two 3x3 convolutions.

    Wang, Ni, Song, Yang, Huang, "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR
    2021, with GroupNorm between them. Where the smashed data or the samples are no images, it is a linear layer.

    Args:
        stack: the model.
        cut: where it is cut.
        widen: 12 channels between the convolutions, so many times.
        output: `linear` reaches any number, as samples have them after normalisation; `sigmoid` stays between 0 and 1,
            for targets in this range.

    Raises:
        ModelError: for a width where there is no convolution.
    """
    sample = stack.sample_shape
    if len(cut.shape) == len(sample) == 3:
        layers: Layers = OrderedDict(resize=nn.Upsample(size=sample[1:], mode="bilinear", align_corners=True))
        layers.update(_convolution(cut.shape[0], 12 * widen))
        layers["output"] = nn.Conv2d(12 * widen, sample[0], 3, padding=1)
    else:
        if widen != 1:
            raise ModelError(
                f"A decoder of {_words(cut.shape)} to {_words(sample)} is one linear layer, which cannot be widened. "
                "Leave 'widen' out."
            )
        layers = OrderedDict(flatten=nn.Flatten(), output=nn.Linear(cut.floats, math.prod(sample)))
        layers["image"] = nn.Unflatten(1, sample)
    if output == "sigmoid":
        layers["sigmoid"] = nn.Sigmoid()
    return nn.Sequential(layers)


def copied(stack: LayerStack, cut: Cut, *, blocks: int = 1) -> nn.Sequential:
    """The first blocks behind the cut once more, and a pooled linear layer; all of them are the server's half itself.

    Blocks keep their names, so that `initial_weights` with the key of the model draws for them what it draws for the
    model. Those of a model that brought its own numbers keep them.

    Args:
        stack: the model.
        cut: where it is cut.
        blocks: how many.

    Raises:
        ModelError: if there are not so many, or the model gives something else than one number per class.
    """
    last = cut.at + blocks
    if last > len(stack):
        raise ModelError(
            f"A head cannot copy {blocks} blocks: behind block {cut.name!r} there are {len(stack) - cut.at}. "
            f"Write at most copied:blocks={len(stack) - cut.at}."
        )
    children = list(zip(stack.net._modules, stack.net, strict=True))
    layers: Layers = OrderedDict(children[i] for group in stack.groups[cut.at : last] for i in group)
    if last < len(stack):
        before = "head"
        while any(name.startswith(before) for name in layers):
            before = f"_{before}"
        for name, module in _pooled(stack.output_shapes[last - 1], _classes(stack, "copied")).items():
            layers[f"{before}_{name}"] = module
    return nn.Sequential(layers)


#: What an auxiliary network can be, by name.
HEADS: dict[str, Make] = {"pooled": pooled, "conv": conv, "decoder": decoder, "copied": copied}


def build_head(word: str, stack: LayerStack, cut: Cut) -> LayerStack:
    """An auxiliary network for a cut, without weights: those are drawn by `initial_weights`.

    Args:
        word: one of `HEADS`, and behind a colon its options, as in `conv:width=16`, `decoder:widen=2,output=sigmoid` or
            `copied:blocks=2`.
        stack: the model.
        cut: where it is cut.

    Raises:
        ModelError: for a name or an option that is not there, or what does not fit the cut.

    Examples:
        >>> from lanterne.models import find_cut
        >>> from lanterne.models.zoo import build
        >>> stack = build("resnet8", (3, 32, 32), 10)
        >>> cut = find_cut(stack, "block1")
        >>> for word in ("pooled", "conv:width=16", "decoder", "copied:blocks=1"):
        ...     head = build_head(word, stack, cut)
        ...     print(word, head.size, head.output_shape)
        pooled 170 (10,)
        conv:width=16 2522 (10,)
        decoder 2091 (3, 32, 32)
        copied:blocks=1 14794 (10,)
    """
    name, options = read_word(word, HEADS, "head", "conv:width=32")
    with torch.device("meta"):
        net = HEADS[name](stack, cut, **options)
    return LayerStack(net, cut.shape)


def _convolution(inputs: int, outputs: int) -> Layers:
    """A 3x3 convolution, GroupNorm with at most 4 groups of at least two channels, and ReLU."""
    groups = max(math.gcd(8, outputs) // 2, 1)
    norm = nn.GroupNorm(groups, outputs)
    return OrderedDict(conv=nn.Conv2d(inputs, outputs, 3, padding=1), norm=norm, relu=nn.ReLU())


def _pooled(shape: Shape, classes: int) -> Layers:
    layers: Layers = OrderedDict()
    if len(shape) == 3:
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        shape = shape[:1]
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(math.prod(shape), classes)
    return layers


def _classes(stack: LayerStack, name: str) -> int:
    if len(stack.output_shape) != 1:
        raise ModelError(
            f"A {name!r} head gives one number per class, but this model gives {_words(stack.output_shape)} for a "
            "sample. Use 'decoder', or 'copied' with all blocks behind the cut."
        )
    return stack.output_shape[0]


def _words(shape: Shape) -> str:
    return f"{'x'.join(map(str, shape))} numbers"
