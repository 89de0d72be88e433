"""Starting weights: a function of the key, within PyTorch's bounds, and the user's own where there are any."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from lanterne.errors import ModelError
from lanterne.models import LayerStack, full, initial_weights
from models.nets import ZOO, residual_net, stack_of

CASES = [(name, key) for name in ZOO for key in (0, 1, 2**62)]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_same_key_same_bits_and_dtypes_differ_by_rounding_only(name: str, key: int) -> None:
    w = initial_weights(stack_of(name), key, torch.float64)
    assert torch.equal(initial_weights(stack_of(name), key, torch.float64), w)
    assert torch.equal(initial_weights(stack_of(name), key), w.float())
    assert torch.equal(initial_weights(stack_of(name), key, torch.bfloat16), w.bfloat16())
    assert not torch.equal(initial_weights(stack_of(name), key + 1, torch.float64), w)


def test_weights_do_not_depend_on_ambient_randomness_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    w = initial_weights(stack_of("resnet-small"), 5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(initial_weights(stack_of("resnet-small"), 5), w)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ZOO)
def test_weights_are_uniform_within_one_over_the_root_of_the_fan_in(name: str) -> None:
    stack = stack_of(name)
    names = [n for block in stack.parameters for n in block]
    tensors = dict(zip(names, full(stack).leaves(initial_weights(stack, 3, torch.float64)), strict=True))
    units = []
    for n, tensor in tensors.items():
        layer = stack.net.get_submodule(n.rpartition(".")[0])
        if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
            assert bool((tensor == float(n.endswith("weight"))).all())
            continue
        bound = 1 / math.sqrt(tensors[n.rpartition(".")[0] + ".weight"][0].numel())
        assert float(tensor.abs().max()) <= bound
        units.append(tensor.reshape(-1) / bound)
        if tensor.numel() > 500:  # a tighter bound would be another law: the largest of n uniform draws is near 1
            assert float(tensor.abs().max()) > 0.98 * bound
    u = torch.cat(units)  # uniform on (-1, 1): mean 0 with standard error 1/sqrt(3 n), mean square 1/3
    assert abs(float(u.mean())) < 4 / math.sqrt(3 * len(u))
    assert abs(float((u**2).mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / len(u))


def test_layers_of_equal_shape_get_different_weights() -> None:
    stack = stack_of("resnet-small")
    w = initial_weights(stack, 0)
    first, second = (w[stack.edges[b] : stack.edges[b + 1]] for b in (1, 2))
    assert stack.shapes[1] == stack.shapes[2]
    assert not torch.equal(first[:2304], second[:2304])
    assert not torch.equal(first[:2304], first[2336:4640])


def test_the_users_own_weights_are_kept() -> None:
    net = residual_net()
    stack = LayerStack(net, (2, 3))
    own = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    for key in range(2):
        assert torch.equal(initial_weights(stack, key), own)
        assert torch.equal(initial_weights(stack, key, torch.float64), own.double())


def test_drawn_weights_have_the_law_of_pytorchs_own() -> None:
    """Two samples of one law: the Kolmogorov-Smirnov distance of 8,000 numbers each stays under its 1e-6 quantile."""
    torch.manual_seed(0)
    theirs = nn.Linear(20, 400).weight.detach().reshape(-1)
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(20, 400))
    ours = initial_weights(LayerStack(net, (20,)), 0)[:8000]
    assert ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-6
    wrong = torch.nn.init.kaiming_normal_(torch.empty(400, 20)).reshape(-1)
    assert ks_2samp(wrong.numpy(), theirs.numpy()).pvalue < 1e-6


def test_a_layer_without_a_rule_is_named() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"'1\.weight' of PReLU\. Build the model on the CPU"):
        initial_weights(LayerStack(net, (3,)), 0)
