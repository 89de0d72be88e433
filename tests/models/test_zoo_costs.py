"""What networks of the zoo cost, exactly: parameters by the papers' arithmetic, the rest by PyTorch's counters."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lanterne.models import block_costs, full
from lanterne.models.zoo import build
from models.nets import EVERY, saved_by, stack_of


def conv(inputs: int, outputs: int, size: int = 3, bias: bool = False) -> int:
    return inputs * outputs * size * size + bias * outputs


def residual(inputs: int, outputs: int, normed: bool) -> int:
    """Two convolutions and their normalisations; where the shape changes, a 1x1 convolution around, with its own."""
    around = conv(inputs, outputs, 1) + 2 * outputs * normed if inputs != outputs else 0
    return conv(inputs, outputs) + conv(outputs, outputs) + 4 * outputs + around


def resnet(stages: tuple[int, ...], widths: tuple[int, ...], channels: int, normed: bool) -> list[int]:
    into = [widths[0], *(width for width, count in zip(widths, stages, strict=True) for _ in range(count))]
    blocks = [residual(a, b, normed) for a, b in pairwise(into)]
    return [conv(channels, widths[0]) + 2 * widths[0], *blocks, 10 * widths[-1] + 10]


def vgg(stages: tuple[int, ...], channels: int = 3) -> list[int]:
    """Convolutions with a bias, each with a scale and a shift per channel; one linear layer from 512."""
    widths = [w for w, n in zip((64, 128, 256, 512, 512), stages, strict=True) for _ in range(n)]
    return [conv(a, b, bias=True) + 2 * b for a, b in pairwise([channels, *widths])] + [5130]


def linear(*widths: int) -> list[int]:
    return [a * b + b for a, b in pairwise(widths)]


WIDE = (64, 128, 256, 512)
#: What torchvision's counts have more, for ImageNet: a 7x7 stem and 1,000 classes; in VGG three linear layers.
STEM, HEAD = conv(3, 64, 7) - conv(3, 64), 513_000 - 5_130
THREE = sum(linear(512 * 7 * 7, 4096, 4096, 1000)) - 5_130
PARAMETERS = [
    # performance_baselines: 77,850 and 222,078; McMahan et al.'s 2NN: 199,210; LeNet-5: 61,706.
    ("resnet8", (3, 32, 32), 10, resnet((1, 1, 1), (16, 32, 64), 3, False), 77_850),
    ("cnn", (1, 28, 28), 62, [conv(1, 16, 5, True), conv(16, 32, 5, True), *linear(1568, 128, 62)], 222_078),
    ("mlp", (1, 28, 28), 10, linear(784, 200, 200, 10), 199_210),
    ("mlp:widths=32-16", (1, 28, 28), 10, linear(784, 32, 16, 10), 25_818),
    ("lenet", (1, 28, 28), 10, [conv(1, 6, 5, True), conv(6, 16, 5, True), *linear(400, 120, 84, 10)], 61_706),
    ("lenet", (3, 32, 32), 10, [conv(3, 6, 5, True), conv(6, 16, 5, True), *linear(400, 120, 84, 10)], 62_006),
    # NeFL's tables: 11,173,962, and 21.2821 million; torchvision's counts with our stem and head.
    ("resnet18", (3, 32, 32), 10, resnet((2, 2, 2, 2), WIDE, 3, True), 11_689_512 - STEM - HEAD),
    ("resnet34", (3, 32, 32), 10, resnet((3, 4, 6, 3), WIDE, 3, True), 21_797_672 - STEM - HEAD),
    ("resnet18", (1, 28, 28), 10, resnet((2, 2, 2, 2), WIDE, 1, True), 11_173_962 - 2 * 576),
    # SALF: 9.23, 9.42, 14.73 and 20.04 million; torchvision's vgg*_bn with one linear layer.
    ("vgg11", (3, 32, 32), 10, vgg((1, 1, 2, 2, 2)), 132_868_840 - THREE),
    ("vgg13", (3, 32, 32), 10, vgg((2, 2, 2, 2, 2)), 133_053_736 - THREE),
    ("vgg16", (3, 32, 32), 10, vgg((2, 2, 3, 3, 3)), 138_365_992 - THREE),
    ("vgg19", (3, 32, 32), 10, vgg((2, 2, 4, 4, 4)), 143_678_248 - THREE),
    # The MU specification's eight layers.
    ("alexnet", (3, 32, 32), 10, [896, 18_496, 73_856, 295_168, 590_080, 2_360_320, 524_800, 5_130], 3_868_746),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "classes", "blocks", "total"), PARAMETERS)
def test_parameters_are_those_of_the_paper(
    name: str, shape: tuple[int, ...], classes: int, blocks: list[int], total: int
) -> None:
    stack = build(name, shape, classes)
    assert [c.parameters for c in block_costs(stack)] == blocks
    assert stack.size == sum(blocks) == total


@pytest.mark.parametrize("name", ["resnet-small", "resnet8", "resnet18", "resnet34", "vgg11", "vgg19"])
def test_both_normalisations_have_the_same_parameters_and_flops(name: str) -> None:
    group, batch = (block_costs(build(f"{name}:norm={norm}", (3, 32, 32), 10)) for norm in ("group", "batch"))
    assert [c[:5] for c in group] == [c[:5] for c in batch]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "megaflops"),
    [
        # Forward passes of one sample, two FLOPs per multiply-add; first three: performance_baselines, for 32 samples.
        ("cnn", (1, 28, 28), 62, 194 / 32),
        ("resnet8", (3, 32, 32), 10, 800 / 32),
        ("resnet18", (3, 32, 32), 10, 35_547 / 32),
        ("vgg16", (3, 32, 32), 10, 2 * 313),  # 313 million multiply-adds: Li et al., ICLR 2017, table 1
    ],
)
def test_forward_flops_are_those_in_the_literature(
    name: str, shape: tuple[int, ...], classes: int, megaflops: float
) -> None:
    found = sum(c.forward for c in block_costs(build(name, shape, classes)))
    assert found / 1e6 == pytest.approx(megaflops, rel=2e-3)


def test_the_cut_of_mu_splitfed() -> None:
    """Behind block 2: 19,392 parameters and 64x8x8 numbers a sample."""
    first, second = block_costs(build("alexnet", (3, 32, 32), 10))[:2]
    assert first.parameters + second.parameters == 19_392
    assert second.output == 4 * 64 * 8 * 8


# ---------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", EVERY)
def test_flops_of_whole_and_truncated_passes(name: str) -> None:
    """On shapes alone: a forward pass, and a backward pass that stops at each block."""
    stack, batch = stack_of(name), 3
    costs, n = block_costs(stack), len(stack)
    net = list(stack.net)
    starts = [torch.empty(batch, *stack.sample_shape, device="meta")]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for group in stack.groups:
            x = starts[-1]
            for i in group:
                x = net[i](x)
            starts.append(x)
    assert counter.get_total_flops() == batch * sum(c.forward for c in costs)
    for b in range(n):
        y = starts[b]
        for group in stack.groups[b:]:
            for i in group:
                y = net[i](y)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        weights, inputs = sum(c.weight_gradient for c in costs[b:]), sum(c.input_gradient for c in costs[b + 1 :])
        assert counter.get_total_flops() == batch * (weights + inputs)
        assert not b or costs[b].input_gradient > 0  # the wrong variant, with its own input gradient, is another number


@pytest.mark.parametrize("name", EVERY)
def test_bytes_of_activations(name: str) -> None:
    """What autograd keeps on real tensors, and what goes over a cut; two samples, which is what costs are taken of."""
    stack = stack_of(name)
    costs, w = block_costs(stack), torch.zeros(stack.size)
    x = torch.zeros(2, *stack.sample_shape)
    assert 2 * sum(c.saved for c in costs) == saved_by(stack.load(w), x)
    leaves: list[Tensor] = full(stack).leaves(w)
    with torch.no_grad():
        for b, cost in enumerate(costs):
            own, leaves = leaves[: len(stack.shapes[b])], leaves[len(stack.shapes[b]) :]
            x = stack.forward(own, x, b, b + 1)
            assert 2 * cost.output == x.numel() * 4
