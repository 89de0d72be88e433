"""What cannot be trained faithfully is refused, with the layer, the reason and the repair in one message."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lanterne.errors import ModelError
from lanterne.models import LayerStack
from lanterne.models.validate import check_modules
from models.nets import conv_net, residual_net, shared_activation_net


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    return net


def twice() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def frozen() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].bias.requires_grad_(False)
    return net


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)


class Skipping(nn.Sequential):
    """A chain by its type, and something else by its forward: DenseNet's blocks are written so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


BAD: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "not a Sequential": (Whole, ("a Whole", "nn.Sequential of its blocks")),
    "a list": (lambda: nn.ModuleList([nn.Linear(3, 3)]), ("a ModuleList", "nn.Sequential of its blocks")),
    "a forward of its own": (lambda: Skipping(nn.Linear(3, 3)), ("a Skipping with a forward", "plain nn.Sequential")),
    "batch normalisation": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        ("Layer '1' (BatchNorm1d)", "running statistics", "nn.GroupNorm"),
    ),
    "deep inside": (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))),
        ("Layer '0.1' (BatchNorm2d)", "track_running_stats=False"),
    ),
    "instance normalisation": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2, track_running_stats=True)),
        ("Layer '1' (InstanceNorm1d)", "running statistics"),
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)),
        ("Layer '1' (Dropout)", "global random generator", "Set its p to 0"),
    ),
    "dropout in attention": (
        lambda: nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1)),
        ("Layer '0' (MultiheadAttention)", "global random generator", "Set its dropout to 0"),
    ),
    "a random activation": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.RReLU()),
        ("Layer '1' (RReLU)", "global random generator", "Leave it out"),
    ),
    "recurrence": (
        lambda: nn.Sequential(nn.GRU(3, 3)),
        ("Layer '0' (GRU)", "list of its weights", "nn.GRUCell"),
    ),
    "buffers": (lambda: nn.Sequential(nn.Linear(3, 3), Buffered()), ("buffers (1.steps)", "no aggregation rule knows")),
    "tied weights": (tied, ("'2.weight' and '0.weight'", "one parameter in two places", "Give each its own")),
    "one layer in two places": (twice, ("'2.weight' and '0.weight'", "one parameter in two places")),
    "frozen": (frozen, ("'1.bias' is frozen", "unfreeze")),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), ("The size of '0.weight'", "Give the layer its size")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_refused_with_the_repair(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(ModelError) as caught:
        LayerStack(make(), (3,))  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("net", [nn.Sequential(), nn.Sequential(nn.Flatten(), nn.ReLU())])
def test_a_model_without_parameters_is_refused(net: nn.Sequential) -> None:
    with pytest.raises(ModelError, match=re.escape("no parameters: there is nothing to train. Give it a layer")):
        LayerStack(net, (3,))


@pytest.mark.parametrize(
    "net",
    [
        residual_net(),
        conv_net(),
        shared_activation_net(),
        nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)),
        nn.Sequential(Skipping(nn.Linear(3, 3)), nn.Linear(3, 3)),
    ],
)
def test_the_repairs_are_accepted(net: nn.Sequential) -> None:
    check_modules(net)
