"""The zoo: its networks are the published ones, and take what they say they take."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as f

from lanterne.errors import ModelError
from lanterne.learn import Task, inputs_at
from lanterne.models import full, initial_weights, reached
from lanterne.models.zoo import DEFAULT, MODELS, ResidualBlock, build, check_name
from models.nets import EVERY, LARGER, batch_of, stack_of, weights_of

#: More blocks of the same kind than others that are tested: what takes long is left out for these.
DEEPER = ("resnet34", "vgg13", "vgg16", "vgg19")


@pytest.mark.parametrize("name", [name for name in EVERY if name not in DEEPER])
def test_every_model_gives_one_number_per_class_and_learns(name: str) -> None:
    stack = stack_of(name)
    assert stack.output_shape == (EVERY[name][1],)
    task, (x, y), w = Task(stack), batch_of(stack, 8), initial_weights(stack, 0, torch.float64)
    rate, steps = (0.005, 10) if name.startswith(("resnet18", "vgg11")) else (0.1, 40)
    before = task.loss(task.predict(full(stack), w, x), y)
    for _ in range(steps):
        w = task.descend_(full(stack), w, [x], [y], rate)
    assert float(task.loss(task.predict(full(stack), w, x), y)) < 0.75 * float(before)


def test_there_is_a_default_and_every_model_is_tested() -> None:
    assert DEFAULT in MODELS
    assert set(MODELS) == {name.partition(":")[0] for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_a_model_is_built_without_weights_and_without_buffers(name: str) -> None:
    net = stack_of(name).net
    assert all(p.is_meta for p in net.parameters())
    assert not list(net.buffers())


# ---------------------------------------------------------------------------------------------------- blocks
@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet8", ["stem", *(f"block{i}" for i in range(1, 4)), "output"]),
        ("resnet18", ["stem", *(f"block{i}" for i in range(1, 9)), "output"]),
        ("resnet34", ["stem", *(f"block{i}" for i in range(1, 17)), "output"]),
        ("vgg11", [*(f"conv{i}" for i in range(1, 9)), "output"]),
        ("vgg13", [*(f"conv{i}" for i in range(1, 11)), "output"]),
        ("vgg16", [*(f"conv{i}" for i in range(1, 14)), "output"]),
        ("vgg19", [*(f"conv{i}" for i in range(1, 17)), "output"]),
        ("alexnet", [*(f"conv{i}" for i in range(1, 6)), "hidden1", "hidden2", "output"]),
        ("lenet", ["conv1", "conv2", "hidden1", "hidden2", "output"]),
        ("cnn", ["conv1", "conv2", "hidden", "output"]),
        ("mlp", ["hidden1", "hidden2", "output"]),
    ],
)
def test_blocks_are_layers_and_whole_residual_blocks(name: str, blocks: list[str]) -> None:
    """No border lies within a residual block, and a normalisation belongs to the convolution before it."""
    stack = stack_of(name)
    assert list(stack.names) == blocks
    for number, group in enumerate(stack.groups):
        children = [stack.net[i] for i in group]
        assert sum(isinstance(child, ResidualBlock | nn.Conv2d | nn.Linear) for child in children) == 1
        if name.startswith("vgg") and number < len(blocks) - 1:
            assert [type(child) for child in children[:3]] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
            assert not [child for child in children[3:] if isinstance(child, nn.GroupNorm | nn.ReLU)]


def test_where_the_poolings_of_vgg_are() -> None:
    for name, behind in (("vgg11", (1, 2, 4, 6, 8)), ("vgg16", (2, 4, 7, 10, 13)), ("vgg19", (2, 4, 8, 12, 16))):
        stack = stack_of(name)
        pooled = [b for b, g in enumerate(stack.groups, 1) if any(isinstance(stack.net[i], nn.MaxPool2d) for i in g)]
        assert pooled == list(behind)


@pytest.mark.parametrize(
    ("name", "strides"), [("resnet8", (1, 2, 2)), ("resnet34", (1,) * 3 + (2, 1, 1, 1) + (2,) + (1,) * 5 + (2, 1, 1))]
)
def test_where_a_resnet_halves_its_images(name: str, strides: tuple[int, ...]) -> None:
    net = stack_of(name).net
    blocks = [child for child in net if isinstance(child, ResidualBlock)]
    assert tuple(block.conv1.stride[0] for block in blocks) == strides
    changes = [block.conv1.in_channels != block.conv1.out_channels for block in blocks]
    assert [isinstance(block.shortcut, nn.Identity) for block in blocks] == [not change for change in changes]


# ---------------------------------------------------------------------------------------------------- samples
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("salf-cnn", (1, 8, 8), r"at least 16x16, not samples of shape \(1, 8, 8\)\. Use 'resnet-small'.* or 'mlp'"),
        ("salf-cnn", (1, 28, 15), "at least 16x16"),
        ("salf-cnn", (784,), "takes images, not samples of shape"),
        ("resnet-small", (64,), r"takes images, not samples of shape \(64,\)\. .* or use 'mlp'"),
        ("resnet18", (28, 28), r"Bring them as \(channels, height, width\)"),
        ("vgg16", (1, 28, 28), "'vgg16' takes images of at least 32x32"),
        ("alexnet", (1, 8, 8), "at least 12x12"),
    ],
)
def test_what_a_model_cannot_take_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, shape, 10)


#: The smallest image; models that are not here take none, or samples of any shape.
SMALLEST = {
    **dict.fromkeys(["resnet-small", "resnet8", "resnet18", "resnet34"], 1),
    **dict.fromkeys(["vgg11", "vgg13", "vgg16", "vgg19"], 32),
    "alexnet": 12,
    "lenet": 12,
    "cnn": 4,
    "salf-cnn": 16,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_model_takes_every_image_from_its_smallest_on(name: str) -> None:
    """Digits 8x8, MNIST 28x28 and CIFAR 32x32 among them; what is smaller is refused with the smallest."""
    least = SMALLEST[name]
    for height, width in [(least, least), (least, least + 3), (least + 5, least), (8, 8), (28, 28), (32, 32), (33, 64)]:
        for channels in (1, 3):
            if min(height, width) >= least:
                assert build(name, (channels, height, width), 7).output_shape == (7,)
    for shape in [(1, least - 1, 40), (3, 40, least - 1), (1, 8, 8), (1, 28, 28)]:
        if 0 < min(shape[1:]) < least:
            with pytest.raises(ModelError, match=rf"'{name}' takes images of at least {least}x{least}, not"):
                build(name, shape, 7)
    assert set(SMALLEST) | {"mlp", "salf-mlp"} == set(MODELS)


def test_lenet_has_a_margin_on_small_images_only() -> None:
    assert [build("lenet", (1, n, n), 10).net.conv1.padding for n in (12, 28, 31, 32)] == [(2, 2)] * 3 + [(0, 0)]


# ---------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resnet-smal", "no model called 'resnet-smal'. Did you mean 'resnet-small'?"),
        ("xyz", "Choose from: alexnet, cnn, lenet, mlp, resnet-small, resnet18"),
        ("", "no model called ''"),
        ("resnet18:nrm=batch", "'resnet18' has no option 'nrm'. Did you mean 'norm'?"),
        ("resnet18:norm=bach", "norm is 'bach', which is none. Did you mean 'batch'?"),
        ("resnet18:norm=layer", "Choose from: batch, group"),
        ("resnet18:norm=batch,norm=batch", "says twice what norm is"),
        ("resnet18:", r"'resnet18:' cannot be read at ''\. Write for instance 'resnet18:norm=batch'"),
        ("resnet18:norm", "cannot be read at 'norm'"),
        ("resnet18:norm=", "cannot be read at 'norm='"),
        ("resnet18:norm=batch,", "cannot be read at ''"),
        ("lenet:norm=batch", "'lenet' has no options, so that 'lenet:norm=batch' says too much. Write 'lenet'."),
        ("mlp:widths=0", "whole numbers from 1 on with hyphens between them. Write for instance widths=200-200"),
        ("mlp:widths=20-", "has to be whole numbers"),
        ("mlp:widths=-20", "has to be whole numbers"),
        ("mlp:widths=2.5", "has to be whole numbers"),
        ("mlp:width=20", "Did you mean 'widths'?"),
    ],
)
def test_a_word_that_cannot_be_read_is_refused(word: str, message: str) -> None:
    for refuse in (check_name, lambda word: build(word, (3, 32, 32), 10)):
        with pytest.raises(ModelError, match=message):
            refuse(word)


@pytest.mark.parametrize("name", ["resnet-small", "resnet8", "resnet34", "vgg13"])
def test_the_normalisation_is_the_one_that_was_asked_for(name: str) -> None:
    def norms(word: str) -> set[type[nn.Module]]:
        layers = build(word, (3, 32, 32), 10).net.modules()
        return {type(layer) for layer in layers if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d)}

    assert norms(name) == norms(f"{name}:norm=group") == {nn.GroupNorm}
    assert norms(f"{name}:norm=batch") == {nn.BatchNorm2d}


# ---------------------------------------------------------------------------------------------------- gradients
def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", LARGER)
def test_gradients_in_both_forms_are_the_users_own(name: str) -> None:
    """As the tests of learning have it for small models: whole, and stopped in the middle."""
    stack = stack_of(name)
    w, (x, y) = weights_of(stack), batch_of(stack, 2)
    net = stack.load(w)
    f.cross_entropy(net(x), y).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    del net
    for functional in (False, True):
        assert apart(Task(stack, functional=functional).gradient(full(stack), w, x, y), expected) < 1e-12
    for depth in () if name in DEEPER else (1, len(stack) // 2):
        view, low = reached(stack, depth), inputs_at(Task(stack), w, x, depth)
        for functional in (False, True):
            found = Task(stack, functional=functional).gradient(view, view.take(w), low, y)
            assert apart(found, expected[view.index]) < 1e-12


@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*DEEPER, "resnet18", "vgg11")])
def test_gradients_of_stacked_clients_are_those_of_each(name: str) -> None:
    """Under vmap, as the batched executor does it."""
    stack = stack_of(name)
    ws = torch.stack([weights_of(stack, key) for key in range(2)])
    xs, ys = (torch.stack(t) for t in zip(*(batch_of(stack, 4, key) for key in range(2)), strict=True))
    task = Task(stack, functional=True)
    together = vmap(lambda w, x, y: task.gradient(full(stack), w, x, y))(ws, xs, ys)
    for found, w, x, y in zip(together, ws, xs, ys, strict=True):
        assert apart(found, Task(stack).gradient(full(stack), w, x, y)) < 1e-12


# ---------------------------------------------------------------------------------------------------- residual blocks
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (4, 8, 1), (4, 4, 2)])
def test_a_residual_block_is_its_formula(inputs: int, outputs: int, stride: int, normed: bool) -> None:
    block = ResidualBlock(inputs, outputs, stride, partial(nn.GroupNorm, 2), normed).double()
    x = torch.randn(3, inputs, 6, 6, dtype=torch.float64)
    p = dict(block.named_parameters())
    y = f.conv2d(x, p["conv1.weight"], stride=stride, padding=1)
    y = f.relu(f.group_norm(y, 2, p["norm1.weight"], p["norm1.bias"]))
    y = f.group_norm(f.conv2d(y, p["conv2.weight"], padding=1), 2, p["norm2.weight"], p["norm2.bias"])
    changes = (inputs, stride) != (outputs, 1)
    shortcut = x
    if changes:
        shortcut = f.conv2d(x, p["shortcut.0.weight" if normed else "shortcut.weight"], stride=stride)
        if normed:
            shortcut = f.group_norm(shortcut, 2, p["shortcut.1.weight"], p["shortcut.1.bias"])
    assert torch.equal(block(x), f.relu(shortcut + y))
    assert isinstance(block.shortcut, nn.Identity) == (not changes)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)  # a cut may hold the input
