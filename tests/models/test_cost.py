"""Costs against PyTorch's own counters on real tensors, and against numbers by hand."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import BlockCost, LayerStack, block_costs, describe, full
from lanterne.models.flops import FlopCounter
from lanterne.models.zoo import build
from models.nets import NAMES, ZOO, batch_of, residual_net, saved_by, stack_of, weights_of


def real(name: str, batch: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The user's module with numbers in it, and a batch."""
    stack = stack_of(name)
    return stack.load(weights_of(stack, dtype=dtype)), batch_of(stack, batch, dtype=dtype)[0]


# ---------------------------------------------------------------------------------------------------- FLOPs
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [2, 5])
def test_flops_are_those_that_pytorch_counts(name: str, batch: int) -> None:
    """Of a forward pass, and of a forward and a backward pass, in which nobody asks for the gradient of the samples."""
    costs = block_costs(stack_of(name))
    net, x = real(name, batch)
    with FlopCounterMode(display=False) as forward:
        y = net(x)
    assert forward.get_total_flops() == batch * sum(c.forward for c in costs)
    with FlopCounterMode(display=False) as backward:
        y.backward(torch.ones_like(y))
    weights, inputs = sum(c.weight_gradient for c in costs), sum(c.input_gradient for c in costs)
    assert backward.get_total_flops() == batch * (weights + inputs - costs[0].input_gradient)
    assert backward.get_total_flops() != batch * (weights + inputs)  # the wrong variant: the samples' gradient as well


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_that_starts_in_the_middle_costs_its_blocks(name: str) -> None:
    """The input gradient of block b is what the blocks below b need: each span is counted on its own."""
    stack, costs = stack_of(name), block_costs(stack_of(name))
    w, (h, _) = weights_of(stack), batch_of(stack, 3)
    for b, cost in enumerate(costs):
        leaves = [leaf.requires_grad_() for leaf in stack.span(b, b + 1).leaves(stack.span(b, b + 1).take(w).clone())]
        both = cost.weight_gradient + cost.input_gradient
        for x, expected in ((h, cost.weight_gradient), (h.clone().requires_grad_(), both)):
            with FlopCounterMode(display=False) as forward:
                y = stack.forward(leaves, x, b, b + 1)
            assert forward.get_total_flops() == 3 * cost.forward
            with FlopCounterMode(display=False) as backward:
                y.sum().backward()
            assert backward.get_total_flops() == 3 * expected
        h = y.detach()


def test_flops_by_hand() -> None:
    """Two per multiply-add; the MLP of SALF on 28x28 images, and a convolution."""
    mlp = block_costs(build("salf-mlp", (1, 28, 28), 10))
    assert [c.forward for c in mlp] == [2 * 784 * 32, 2 * 32 * 16, 2 * 16 * 10]
    assert all(c.forward == c.weight_gradient == c.input_gradient for c in mlp)  # three products of one size
    conv = block_costs(build("salf-cnn", (1, 28, 28), 10))
    assert [c.forward for c in conv] == [
        2 * 24 * 24 * 6 * 25 * 1,  # 24x24 places, 6 filters of 5x5x1
        2 * 8 * 8 * 6 * 25 * 6,  # after pooling 12x12: 8x8 places, 6 filters of 5x5x6
        2 * 96 * 50,  # 6 channels of 4x4
        2 * 50 * 10,
    ]


def test_the_counter_counts_what_pytorchs_counts() -> None:
    net, x = real("resnet-small", 2)
    with FlopCounter() as ours, FlopCounterMode(display=False) as theirs:
        net(x).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


# ---------------------------------------------------------------------------------------------------- numbers and bytes
@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("salf-mlp", (1, 28, 28), [784 * 32 + 32, 32 * 16 + 16, 16 * 10 + 10]),  # 25,818: the authors' count
        ("salf-cnn", (1, 28, 28), [156, 906, 4850, 510]),  # 6 x 25 + 6, 6 x 150 + 6, 96 x 50 + 50, 510: 6,422
        ("salf-cnn", (3, 32, 32), [456, 906, 7550, 510]),  # 6 x 75 + 6, ..., 6 x 5 x 5 x 50 + 50: 9,422
        # Stem 16 x 9 and its norm 2 x 16. A block of 16 channels: two convolutions 16 x 16 x 9 and two norms 2 x 16.
        # The third: 16 x 32 x 9, 32 x 32 x 9, two norms 2 x 32 and the way around, 16 x 32. Output: 512 x 10 + 10.
        ("resnet-small", (1, 8, 8), [144 + 32, 2 * 2304 + 64, 2 * 2304 + 64, 4608 + 9216 + 128 + 512, 5130]),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], parameters: list[int]) -> None:
    stack = build(name, shape, 10)
    assert [c.parameters for c in block_costs(stack)] == parameters
    assert stack.size == sum(parameters)
    published = {("salf-mlp", 1): 25_818, ("salf-cnn", 1): 6_422, ("salf-cnn", 3): 9_422, ("resnet-small", 1): 29_114}
    assert stack.size == published[name, shape[0]]


# Batch normalisation keeps a mean per channel, which does not grow with the batch: its cost is that of two samples.
BY_BATCH = ("convolutions", "resnet-small:norm=batch")
BATCHES = [(name, batch) for name in NAMES for batch in (2, 6) if batch == 2 or name not in BY_BATCH]


@pytest.mark.parametrize(("name", "batch"), BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_bytes_are_those_that_autograd_keeps(name: str, dtype: torch.dtype, batch: int) -> None:
    net, x = real(name, batch, dtype)
    costs = block_costs(stack_of(name), dtype)
    assert sum(c.saved for c in costs) * batch == saved_by(net, x)
    assert all(c.saved >= 0 for c in costs)


def test_saved_bytes_and_outputs_by_hand() -> None:
    """A linear layer keeps its input, tanh its output; of two neighbours that need one tensor the first keeps it."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    costs = block_costs(LayerStack(net, (3,)), torch.float64)
    assert [c.saved for c in costs] == [8 * 3 + 8 * 5, 0]
    assert [c.output for c in costs] == [8 * 5, 8 * 2]
    assert [c.output for c in block_costs(LayerStack(net, (3,)), torch.float32)] == [4 * 5, 4 * 2]
    without = block_costs(LayerStack(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), (3,)), torch.float64)
    assert [c.saved for c in without] == [8 * 3, 8 * 5]


@pytest.mark.parametrize("name", ZOO)
def test_outputs_are_the_bytes_of_smashed_data(name: str) -> None:
    stack = stack_of(name)
    w, (h, _) = weights_of(stack), batch_of(stack, 3)
    for b, cost in enumerate(block_costs(stack, torch.float64)):
        h = stack.forward(stack.span(b, b + 1).leaves(stack.span(b, b + 1).take(w)), h, b, b + 1)
        assert 3 * cost.output == h.untyped_storage().nbytes()


def test_rows_for_a_table() -> None:
    stack = stack_of("salf-mlp")
    rows = describe(stack)
    assert [row["block"] for row in rows] == list(stack.names)
    assert [BlockCost(**{k: v for k, v in row.items() if k != "block"}) for row in rows] == list(block_costs(stack))


# ---------------------------------------------------------------------------------------------------- mistakes
class Partly(nn.Module):
    """Has a parameter that its forward does not use."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "never called":
            return self.used(x)
        if self.way == "detached":
            return self.used(x) + self.idle(x).detach()
        return self.used(x) + self.idle.bias  # its weight is idle


@pytest.mark.parametrize(
    ("way", "named"), [("never called", "idle.weight"), ("detached", "idle.weight"), ("half", "idle.weight")]
)
def test_a_parameter_that_forward_never_uses_is_refused_with_its_block(way: str, named: str) -> None:
    """Unnoticed, it would end the first step of training with an error about a graph."""
    net = nn.Sequential(OrderedDict([("first", nn.Linear(3, 3)), ("second", Partly(way)), ("third", nn.Linear(3, 2))]))
    stack = LayerStack(net, (3,))
    with pytest.raises(ModelError, match=rf"Block 'second' never uses its parameter 'second\.{named}'.*Leave it out"):
        block_costs(stack)
    x, y = batch_of(stack)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        Task(stack).gradient(full(stack), stack.flat().double(), x, y)


def test_a_block_that_uses_no_parameter_at_all_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(ModelError, match=r"Block '1' never uses its parameter '1\.weight'"):
        block_costs(LayerStack(nn.Sequential(nn.Linear(3, 3), Idle()), (3,)))
    with pytest.raises(ModelError, match=r"Block '0' never uses its parameter '0\.weight'"):
        block_costs(LayerStack(nn.Sequential(Idle(), nn.Linear(3, 3)), (3,)))


def test_a_block_that_ignores_its_input_is_refused_where_something_stands_before_it() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.expand(len(x), 3)

    with pytest.raises(ModelError, match="output of block '1' does not depend on its input"):
        block_costs(LayerStack(nn.Sequential(nn.Linear(3, 3), Constant()), (3,)))
    assert len(block_costs(LayerStack(nn.Sequential(Constant(), nn.Linear(3, 2)), (3,)))) == 2


def test_samples_that_do_not_fit_are_refused_before_anything_is_counted() -> None:
    with pytest.raises(ModelError, match=r"cannot take samples of shape \(7,\)"):
        block_costs(LayerStack(residual_net(), (7,)))


def test_counting_touches_no_number() -> None:
    stack = LayerStack(residual_net(), (2, 3))
    w, before = stack.flat(), torch.get_rng_state()
    block_costs(stack)
    assert torch.equal(stack.flat(), w)
    assert torch.equal(torch.get_rng_state(), before)
    x, _ = batch_of(stack, dtype=torch.float32)
    assert torch.equal(stack.forward(full(stack).leaves(w), x), functional_call(stack.net, {}, (x,)))
