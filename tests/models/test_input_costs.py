"""What frozen and double backward passes cost, against a count over the user's module on real tensors, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lanterne.models import LayerStack, block_costs, input_costs
from lanterne.models.flops import FlopCounter
from models.nets import NAMES, batch_of, stack_of, weights_of


@pytest.mark.parametrize("name", [*NAMES, "resnet8", "vgg11:norm=batch"])
@pytest.mark.parametrize("batch", [2, 5])
def test_flops_are_those_that_are_counted(name: str, batch: int) -> None:
    """Of the whole chain: forward, the gradient of the input, and what differentiates it by the parameters."""
    stack = stack_of(name)
    forward, costs = block_costs(stack), input_costs(stack)
    net, (x, _) = stack.load(weights_of(stack)), batch_of(stack, batch)
    x.requires_grad_()
    frozen = batch * sum(c.forward + i.backward for c, i in zip(forward, costs, strict=True))
    double = batch * (sum(c.double for c in costs) + sum(c.onward for c in costs[1:]))
    with FlopCounter() as first:
        (g,) = torch.autograd.grad(net(x).square().sum(), [x], create_graph=True)
    assert first.total == frozen
    with FlopCounter() as second:
        torch.autograd.grad(g.square().sum(), list(net.parameters()), allow_unused=True)
    assert second.total == double
    assert double > frozen / 2


def test_two_linear_layers_by_hand() -> None:
    """Each product of a layer with its batch is 2 FLOPs a weight: one there, one back; then three, and one to go on."""
    stack = LayerStack(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (3,))
    assert [tuple(c) for c in input_costs(stack)] == [(30.0, 90.0, 30.0), (20.0, 60.0, 20.0)]
