"""Multilayer perceptrons of any widths."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from lanterne.tree import Shape


def mlp(sample_shape: Shape, classes: int, *, widths: tuple[int, ...] = (200, 200)) -> nn.Sequential:
    """An MLP with ReLU, by default `in-200-200-classes` (199,210 parameters on MNIST); others as in `mlp:widths=64-32`.

    The default is the "2NN" of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017.

    Args:
        sample_shape: any; samples are flattened.
        classes: how many.
        widths: of the hidden layers, from the input on.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict([("flatten", nn.Flatten())])
    inputs = math.prod(sample_shape)
    for number, width in enumerate(widths, 1):
        layers[f"hidden{number}"] = nn.Linear(inputs, width)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = width
    layers["output"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
