"""BatchNorm in federated training: by the batch while it trains, by statistics of training samples when it is judged.

A BatchNorm layer here has no buffers (`track_running_stats=False`). Its scale and shift are parameters like all others.
In training it normalises by the mean and the variance of the batch, so that handlers stay pure and nothing besides
parameters is sent or averaged. The statistics by which it is judged are a function of the weights and of training
samples: chunks of them are run in the training form, and what the layers saw is merged.

That is the static batch normalisation of Diao, Ding, Tarokh, "HeteroFL", ICLR 2021, with the total variance for a merge
instead of the mean of variances, which leaves out how much the means of the chunks differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lanterne.models.stack import LayerStack
from lanterne.models.view import full


class Statistics(NamedTuple):
    """What enters each BatchNorm layer: the number of samples, and by the layer's name mean and variance per channel.

    Both are `[channels]`; a variance is that of the population (divided by n).
    """

    samples: int
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]


def batch_norms(stack: LayerStack) -> tuple[str, ...]:
    """The names of a model's BatchNorm layers.

    Args:
        stack: the model.

    Examples:
        >>> from lanterne.models.zoo import build
        >>> batch_norms(build("resnet-small:norm=batch", (1, 8, 8), 10))[:2]
        ('norm', 'block1.norm1')
    """
    return tuple(
        name for name, module in stack.net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )


def batch_statistics(stack: LayerStack, w: Tensor, x: Tensor) -> Statistics:
    """What enters each BatchNorm layer while one chunk of samples is run in the training form.

    Args:
        stack: the model.
        w: `[size]`, all parameters.
        x: `[samples, ...]`, at least two.
    """
    names = batch_norms(stack)
    calls: dict[str, list[Statistics]] = {name: [] for name in names}

    def watch(net: nn.Module) -> None:
        for name in names:
            net.get_submodule(name).register_forward_pre_hook(partial(see, name))

    def see(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        h = inputs[0]
        variance, mean = torch.var_mean(h, [d for d in range(h.ndim) if d != 1], correction=0)
        calls[name].append(Statistics(len(h), {name: mean}, {name: variance}))

    with torch.no_grad():
        stack.changed(watch).forward(full(stack).leaves(w), x)
    layers = [total_variance(found) for found in calls.values() if found]
    mean = {name: value for layer in layers for name, value in layer.mean.items()}
    variance = {name: value for layer in layers for name, value in layer.variance.items()}
    return Statistics(len(x), mean, variance)


def total_variance(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all samples of several chunks together.

    With `n_i` samples, means `m_i` and variances `v_i`,

        n = sum n_i,   m = sum n_i m_i / n,   v = sum n_i (v_i + (m_i - m)^2) / n.

    For a layer before which nothing depends on the batch this is exact; later ones saw each chunk normalised by itself.

    Args:
        parts: of chunks, or of clients; at least one.
    """
    samples = sum(part.samples for part in parts)

    def over(values: Sequence[Tensor]) -> Tensor:
        terms = [value * (part.samples / samples) for part, value in zip(parts, values, strict=True)]
        return torch.stack(terms).sum(0)

    mean = {name: over([part.mean[name] for part in parts]) for name in parts[0].mean}
    variance = {
        name: over([part.variance[name] + (part.mean[name] - mean[name]) ** 2 for part in parts]) for name in mean
    }
    return Statistics(samples, mean, variance)


def with_statistics(stack: LayerStack, statistics: Statistics) -> LayerStack:
    """The model as it is judged: its BatchNorm layers normalise by the given statistics, whatever the batch.

    Args:
        stack: the model.
        statistics: of all its BatchNorm layers.

    Returns:
        A stack of the same blocks and parameters, to be run forwards; `load` gives it with the statistics as buffers.
    """

    def settle(net: nn.Module) -> None:
        for name in batch_norms(stack):
            norm: Any = net.get_submodule(name)
            norm.running_mean, norm.running_var = statistics.mean[name], statistics.variance[name]
            norm.eval()

    return stack.changed(settle)
