"""The zoo: its networks are the published ones, and take what they say they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import full
from lanterne.models.zoo import DEFAULT, MODELS, ResidualBlock, build
from models.nets import ZOO, batch_of, stack_of, weights_of


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_number_per_class_and_learns(name: str) -> None:
    stack = stack_of(name)
    assert stack.output_shape == (ZOO[name][1],)
    task, (x, y), w = Task(stack), batch_of(stack, 8), weights_of(stack)
    before = task.loss(task.predict(full(stack), w, x), y)
    for _ in range(20):
        w = task.descend_(full(stack), w, x, y, 0.1)
    assert float(task.loss(task.predict(full(stack), w, x), y)) < 0.5 * float(before)


def test_there_is_a_default() -> None:
    assert DEFAULT in MODELS
    assert set(MODELS) == set(ZOO)  # a new model is tested by these tests too


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_without_weights(name: str) -> None:
    assert all(p.is_meta for p in stack_of(name).net.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("salf-cnn", (1, 8, 8), r"at least 16x16, not samples of shape \(1, 8, 8\)\. Use 'salf-mlp'"),
        ("salf-cnn", (1, 28, 15), "at least 16x16"),
        ("salf-cnn", (784,), "at least 16x16"),
        ("resnet-small", (64,), r"takes images, not samples of shape \(64,\)\. Use 'salf-mlp'"),
        ("resnet-small", (8, 8), "takes images"),
        ("resnet-smal", (1, 8, 8), "no model called 'resnet-smal'. Did you mean 'resnet-small'?"),
        ("xyz", (1, 8, 8), "Choose from: resnet-small, salf-cnn, salf-mlp"),
    ],
)
def test_what_a_model_cannot_take_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, shape, 10)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 19), (2, 33, 16)])
def test_the_cnn_fits_every_image_that_it_takes(shape: tuple[int, ...]) -> None:
    assert build("salf-cnn", shape, 7).output_shape == (7,)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 9), (2, 1, 1)])
def test_the_resnet_fits_every_image(shape: tuple[int, ...]) -> None:
    assert build("resnet-small", shape, 7).output_shape == (7,)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (4, 8, 1), (4, 4, 2)])
def test_a_residual_block_is_its_formula(inputs: int, outputs: int, stride: int) -> None:
    block = ResidualBlock(inputs, outputs, stride, 2).double()
    x = torch.randn(3, inputs, 6, 6, dtype=torch.float64)
    p = dict(block.named_parameters())
    y = f.conv2d(x, p["conv1.weight"], stride=stride, padding=1)
    y = f.relu(f.group_norm(y, 2, p["norm1.weight"], p["norm1.bias"]))
    y = f.group_norm(f.conv2d(y, p["conv2.weight"], padding=1), 2, p["norm2.weight"], p["norm2.bias"])
    changes = (inputs, stride) != (outputs, 1)
    shortcut = f.conv2d(x, p["shortcut.weight"], stride=stride) if changes else x
    assert torch.equal(block(x), f.relu(shortcut + y))
    assert isinstance(block.shortcut, nn.Identity) == (not changes)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)  # a cut may hold the input
