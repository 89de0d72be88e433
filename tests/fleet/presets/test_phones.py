"""The phones are those that were measured: their times, their mix, their networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn

from lanterne.fleet import Classes, NormalTime, Work, preset
from lanterne.fleet.presets.phones import CLASSES, MIX, NETWORKS, WORKLOADS
from lanterne.models import LayerStack, block_costs
from lanterne.models.flops import FlopCounter

N = 20_000


def build(**parameters: str) -> Classes:
    devices = preset("phones", **parameters).build(N, 3, 4).devices
    assert isinstance(devices, Classes)
    return devices


def conv_pool(inner: int, outer: int, size: int, *, ceil: bool = False) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, size, padding="same"), nn.MaxPool2d(2, ceil_mode=ceil)]


class Language(nn.Module):
    """Two LSTM layers over a sequence, cell by cell, and an output for each step or for the last."""

    def __init__(self, words: int, embedded: int, steps: int, each: bool) -> None:
        super().__init__()
        self.embedding, self.steps, self.each = nn.Embedding(words, embedded), steps, each
        self.cells = nn.ModuleList([nn.LSTMCell(embedded, 256), nn.LSTMCell(256, 256)])
        self.output = nn.Linear(256, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x)
        for cell in self.cells:
            state, outputs = (torch.zeros(len(x), 256), torch.zeros(len(x), 256)), []
            for step in range(self.steps):
                state = cell(h[:, step], state)
                outputs.append(state[0])
            h = torch.stack(outputs, 1)
        return self.output(h if self.each else h[:, -1])


def flops_of(stack: LayerStack, batch: int) -> float:
    """FLOPs of a training batch, as lanterne prices them: the first block needs no gradient of its input."""
    costs = block_costs(stack, torch.float32)
    inner = sum(c.input_gradient for c in costs[1:])
    return batch * (sum(c.forward + c.weight_gradient for c in costs) + inner)


def test_the_timed_networks_have_the_flops_that_are_said() -> None:
    """FLASH's networks, written down again from its `models/` and counted."""
    femnist = nn.Sequential(
        *conv_pool(1, 32, 5), *conv_pool(32, 64, 5), nn.Flatten(), nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62)
    )
    assert flops_of(LayerStack(femnist, (1, 28, 28)), 10) == WORKLOADS["femnist"].flops
    celeba = nn.Sequential(
        *(m for inner in (3, 32, 32, 32) for m in conv_pool(inner, 32, 3, ceil=True)), nn.Flatten(), nn.Linear(1152, 2)
    )
    assert flops_of(LayerStack(celeba, (3, 84, 84)), 10) == WORKLOADS["celeba"].flops


@pytest.mark.parametrize(
    ("name", "net", "batch"),
    [("reddit", (10_000, 256, 10, True), 10), ("shakespeare", (80, 8, 80, False), 100)],
)
def test_the_timed_language_models_have_the_flops_that_are_said(
    name: str, net: tuple[int, int, int, bool], batch: int
) -> None:
    """Counted on two samples. The first cells of both layers start from a state of zeros that needs no gradient."""
    model = Language(*net)
    x = torch.zeros(2, net[2], dtype=torch.int64)
    with FlopCounter() as counter:
        model(x).sum().backward()
    constant = 2 * 2 * 256 * 1024 * len(model.cells)  # the input gradients of those two products
    assert (counter.total + constant) / 2 * batch == WORKLOADS[name].flops


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_timed_network_takes_its_measured_time(workload: str) -> None:
    devices, timed = build(workload=workload), WORKLOADS[workload]
    batch = Work((timed.flops / 4, timed.flops / 4, timed.flops / 2), (False, True, True), (True, False, False))
    for kind, tier in enumerate(CLASSES):
        device = devices[int(devices.of_kind(kind)[0])]
        assert device.tier == tier
        assert device.steady(batch)[-1] == pytest.approx(timed.mean[kind] / 1e3)
        assert isinstance(device.pace, NormalTime)
        assert device.pace.spread == timed.deviation[kind] / timed.mean[kind]


def test_the_numbers_are_flashs() -> None:
    """As the specification quotes them: milliseconds, KB/s, and the mix of unknown phones."""
    femnist, celeba = WORKLOADS["femnist"], WORKLOADS["celeba"]
    assert (femnist.mean, femnist.deviation) == ((1642, 588, 179), (99.5, 23.9, 2.3))
    assert (celeba.mean, celeba.deviation) == ((5392, 1355, 561), (982.5, 54.6, 20.3))
    reddit, shakespeare = WORKLOADS["reddit"], WORKLOADS["shakespeare"]
    assert (reddit.mean, reddit.deviation) == ((2596, 916, 527.7), (335.5, 20.6, 49.0))
    assert (shakespeare.mean, shakespeare.deviation) == ((28621, 13579, 10681), (1720.7, 104.6, 125.6))
    down, _, up, _ = np.array(NETWORKS).T
    assert len(NETWORKS) == 19
    assert [round(f(down)) for f in (np.min, np.median, np.max)] == [2370, 4318, 17333]
    assert [round(f(up)) for f in (np.min, np.median, np.max)] == [431, 3286, 6635]


def test_classes_are_mixed_as_flashs_phones_are() -> None:
    kinds = build().kinds
    shares = np.array([18820, 16428, 159]) / 35407
    assert sum(MIX) == 35407
    assert (np.abs(np.bincount(kinds) / N - shares) <= 4 * np.sqrt(shares * (1 - shares) / N)).all()


@pytest.mark.parametrize(("name", "mean", "deviation"), [("down", 0, 1), ("up", 2, 3)])
def test_bandwidths_are_spread_as_flash_draws_them(name: str, mean: int, deviation: int) -> None:
    """A mixture of nineteen normal laws, each without its negative part, in thousands of bytes a second."""
    numbers = build().columns[name]

    def law(x: np.ndarray) -> np.ndarray:
        laws = [truncnorm(-p[mean] / p[deviation], math.inf, p[mean], p[deviation]) for p in NETWORKS]
        return np.mean([each.cdf(x) for each in laws], axis=0)

    assert kstest(numbers / 1e3, law).pvalue > 1e-3
    assert kstest(numbers / 1024, law).pvalue < 1e-3
    assert numbers.min() > 0


def test_a_phone_has_one_network_for_both_directions() -> None:
    """The covariance of its directions is that of the nineteen means; drawn from two networks, there would be none."""
    columns = build().columns
    down, up = np.array(NETWORKS)[:, 0], np.array(NETWORKS)[:, 2]
    between = np.cov(down, up, ddof=0)[0, 1] * 1e6
    assert np.cov(columns["down"], columns["up"])[0, 1] == pytest.approx(between, rel=0.2)
