"""Models that the tests of the lower layers share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lanterne.models import LayerStack, initial_weights
from lanterne.models.zoo import build

#: Small models of the zoo, each on a shape that it takes, and classes: with the users' they go through all tests.
ZOO = {
    "salf-mlp": ((1, 5, 4), 3),
    "salf-cnn": ((2, 16, 17), 4),
    "resnet-small": ((1, 8, 8), 10),
    "resnet-small:norm=batch": ((1, 8, 8), 10),
}
#: The others, on images that keep them cheap: they go through the tests of the zoo.
LARGER = {
    "resnet8": ((1, 8, 8), 10),
    "resnet8:norm=batch": ((1, 8, 8), 10),
    "resnet18": ((3, 8, 8), 10),
    "resnet18:norm=batch": ((3, 8, 8), 10),
    "resnet34": ((1, 4, 4), 10),
    "vgg11": ((3, 32, 32), 10),
    "vgg11:norm=batch": ((1, 32, 32), 10),
    "vgg13": ((1, 32, 32), 10),
    "vgg16": ((1, 32, 33), 10),
    "vgg19": ((1, 32, 32), 10),
    "alexnet": ((3, 12, 13), 10),
    "lenet": ((1, 12, 13), 10),
    "cnn": ((2, 5, 8), 62),
    "mlp": ((1, 5, 4), 3),
    "mlp:widths=7": ((9,), 3),
}
EVERY = {**ZOO, **LARGER}


class Residual(nn.Module):
    """A user's block: nested Sequentials, a parameter of its own, and a way around."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.body = nn.Sequential(nn.Linear(size, size + 1), nn.Tanh(), nn.Sequential(nn.Linear(size + 1, size)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


def residual_net() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict([
            ("flatten", nn.Flatten()),
            ("in", nn.Linear(6, 5)),
            ("norm", nn.LayerNorm(5)),
            ("act", nn.GELU()),
            ("first", Residual(5)),
            ("second", Residual(5)),
            ("out", nn.Linear(5, 3)),
        ])
    )  # fmt: skip


def shared_activation_net() -> nn.Sequential:
    """One activation in three places, as is often written."""
    act = nn.Tanh()
    return nn.Sequential(nn.Linear(6, 4), act, nn.Linear(4, 5), act, nn.Linear(5, 3), act)


def conv_net() -> nn.Sequential:
    """In every kind of place: a head without parameters, norms, pools and activations in and out of place."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 2, stride=2), nn.BatchNorm2d(3, track_running_stats=False), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


USERS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "residual": (residual_net, (2, 3)),
    "shared activation": (shared_activation_net, (6,)),
    "convolutions": (conv_net, (1, 4, 4)),
}
NAMES = [*ZOO, *USERS]


def stack_of(name: str) -> LayerStack:
    """A model by name, of the zoo or a user's."""
    if name in EVERY:
        return build(name, *EVERY[name])
    make, shape = USERS[name]
    return LayerStack(make(), shape)


def weights_of(stack: LayerStack, key: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Weights in general position: no zeros and ones of a normalisation, which would hide mistakes."""
    w = initial_weights(stack, key, dtype)
    return w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(key), dtype=dtype)


def batch_of(
    stack: LayerStack, size: int = 4, key: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Samples and labels."""
    g = torch.Generator().manual_seed(key)
    classes = stack.output_shape[0]
    return torch.randn(size, *stack.sample_shape, generator=g, dtype=dtype), torch.randint(
        classes, (size,), generator=g
    )


def saved_by(net: nn.Module, x: Tensor) -> int:
    """Bytes of all that a forward pass keeps for the backward pass, each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # which keeps the address taken
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)
    assert y.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
