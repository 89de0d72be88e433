"""Auxiliary networks: they fit every cut, start as models do, and teach the client's half."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as f

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import LayerStack, block_costs, find_cut, full, initial_weights, legal_cuts, prefix, suffix
from lanterne.models.heads import HEADS, build_head
from lanterne.models.zoo import options_of
from models.nets import LARGER, NAMES, Residual, batch_of, stack_of, weights_of

#: What is deeper than others of its kind, or has another normalisation, is left out.
FITS = [*NAMES, *(n for n in LARGER if n not in ("resnet34", "vgg13", "vgg16", "vgg19") and "batch" not in n)]
WORDS = ("pooled", "conv", "conv:width=6", "decoder", "decoder:output=sigmoid", "copied", "copied:blocks=2")
squares = f.mse_loss


def at_cut(name: str, where: int | str = 1) -> tuple[Task, Tensor, Tensor, Tensor, Tensor]:
    """A client's half at work: the task, its weights, samples, labels, smashed data."""
    stack = stack_of(name)
    task, low = Task(stack), prefix(stack, find_cut(stack, where).at)
    w, (x, y) = low.take(weights_of(stack)), batch_of(stack)
    return task, w, x, y, task.predict(low, w, x)


# ---------------------------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize("name", FITS)
def test_every_head_fits_every_cut(name: str) -> None:
    stack = stack_of(name)
    for cut in legal_cuts(stack):
        flat = len(cut.shape) != 3
        for word in WORDS:
            if (flat and word.startswith("conv")) or (word == "copied:blocks=2" and cut.at + 2 > len(stack)):
                continue
            head = build_head(word, stack, cut)
            assert head.sample_shape == cut.shape
            expected = stack.sample_shape if word.startswith("decoder") else stack.output_shape
            assert head.output_shape == expected
            assert head.size == sum(c.parameters for c in block_costs(head))  # and every parameter is used
            w = torch.empty(head.size, device="meta")
            assert Task(head).predict(full(head), w, torch.empty(3, *cut.shape, device="meta")).shape == (3, *expected)


@pytest.mark.parametrize(
    ("word", "where", "children", "size"),
    [
        ("pooled", "stem", "AdaptiveAvgPool2d Flatten Linear", 16 * 10 + 10),
        ("pooled", "block3", "Flatten Linear", 64 * 10 + 10),
        ("conv", "block2", "Conv2d GroupNorm ReLU AdaptiveAvgPool2d Flatten Linear",
         32 * 32 * 9 + 32 + 64 + 32 * 10 + 10),
        ("conv:width=8", "stem", "Conv2d GroupNorm ReLU AdaptiveAvgPool2d Flatten Linear", 16 * 8 * 9 + 8 + 16 + 90),
        ("decoder", "stem", "Upsample Conv2d GroupNorm ReLU Conv2d", 16 * 12 * 9 + 12 + 24 + 12 * 9 + 1),
        ("decoder:widen=2,output=sigmoid", "block2", "Upsample Conv2d GroupNorm ReLU Conv2d Sigmoid",
         32 * 24 * 9 + 24 + 48 + 24 * 9 + 1),
        ("decoder:output=sigmoid", "block3", "Flatten Linear Unflatten Sigmoid", 64 * 64 + 64),
        ("copied", "stem", "ResidualBlock AdaptiveAvgPool2d Flatten Linear", 2 * (16 * 16 * 9 + 32) + 170),
        ("copied:blocks=2", "block2", "ResidualBlock AdaptiveAvgPool2d Flatten Linear",
         32 * 64 * 9 + 64 * 64 * 9 + 4 * 64 + 32 * 64 + 650),
    ],
)  # fmt: skip
def test_what_a_head_is_made_of(word: str, where: str, children: str, size: int) -> None:
    stack = stack_of("resnet8")
    head = build_head(word, stack, find_cut(stack, where))
    assert [type(child).__name__ for child in head.net] == children.split()
    assert head.size == size
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.net.modules())


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (3, 1), (6, 1), (8, 4), (12, 2), (20, 2), (32, 4), (64, 4)])
def test_a_normalisation_has_at_least_two_channels_to_a_group(width: int, groups: int) -> None:
    stack = stack_of("resnet8")
    head = build_head(f"conv:width={width}", stack, find_cut(stack, 1))
    assert head.net.norm.num_groups == groups
    assert width % groups == 0


@pytest.mark.parametrize("name", ["resnet-small:norm=batch", "shared activation", "convolutions"])
def test_copied_blocks_are_those_behind_the_cut(name: str) -> None:
    stack = stack_of(name)
    for cut in legal_cuts(stack):
        for blocks in range(1, len(stack) - cut.at + 1):
            head, last = build_head(f"copied:blocks={blocks}", stack, cut), cut.at + blocks
            assert head.names[:blocks] == stack.names[cut.at : last]
            assert head.shapes[:blocks] == stack.shapes[cut.at : last]
            assert len(head) == blocks + (last < len(stack))
            w, h = weights_of(stack), torch.randn(3, *cut.shape, dtype=torch.float64)
            view = stack.span(cut.at, last)
            expected = Task(stack).predict(view, view.take(w), h)
            if last < len(stack):  # what is pooled stands with the last of them
                expected = nn.AdaptiveAvgPool2d(1)(expected).flatten(1) if expected.dim() == 4 else expected
            assert torch.equal(Task(head).predict(head.span(0, blocks), view.take(w), h), expected)


# ---------------------------------------------------------------------------------------------------- starting weights
@pytest.mark.parametrize("word", WORDS)
def test_a_head_starts_as_a_model_does(word: str) -> None:
    stack = stack_of("resnet8")
    head = build_head(word, stack, find_cut(stack, "block1"))
    assert all(p.is_meta for p in head.net.parameters())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    w = initial_weights(head, 7, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(w, initial_weights(head, 7, torch.float64))
    assert not torch.equal(w, initial_weights(head, 8, torch.float64))
    assert torch.equal(w.float(), initial_weights(head, 7))
    *_, weight, _ = full(head).leaves(w)  # of the last layer
    bound = 1 / math.sqrt(weight[0].numel())
    assert 0.9 * bound < float(weight.abs().max()) <= bound


def test_copied_blocks_may_start_as_the_servers() -> None:
    """With the model's key; with another they start anew. A user's own keep the numbers that the user gave them."""
    stack = stack_of("resnet8")
    cut = find_cut(stack, "block1")
    head, at = build_head("copied", stack, cut), slice(stack.edges[cut.at], stack.edges[cut.at + 1])
    assert torch.equal(initial_weights(head, 3)[: head.edges[1]], initial_weights(stack, 3)[at])
    assert not torch.equal(initial_weights(head, 4)[: head.edges[1]], initial_weights(stack, 3)[at])


def test_a_users_own_blocks_keep_their_numbers_and_the_layer_behind_them_is_drawn() -> None:
    net = nn.Sequential(nn.Linear(4, 5), Residual(5), Residual(5), nn.Linear(5, 3))
    stack = LayerStack(net, (4,))
    head = build_head("copied", stack, find_cut(stack, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    w = initial_weights(head, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(w[: head.edges[1]], stack.flat()[stack.edges[1] : stack.edges[2]])
    assert 0 < float(w[head.edges[1] :].abs().max()) <= 1 / math.sqrt(5)
    assert torch.equal(w[: head.edges[1]], initial_weights(head, 1)[: head.edges[1]])
    assert not torch.equal(w, initial_weights(head, 1))


def test_no_name_of_the_users_is_taken() -> None:
    names = ("in", "head_linear", "_head", "out")
    stack = LayerStack(nn.Sequential(OrderedDict((name, nn.Linear(4, 4)) for name in names)), (4,))
    head = build_head("copied:blocks=2", stack, find_cut(stack, 1))
    assert list(head.net._modules) == ["head_linear", "_head", "__head_flatten", "__head_linear"]
    assert head.size == 3 * 20


# ---------------------------------------------------------------------------------------------------- what it teaches
def jointly(task: Task, w: Tensor, head: LayerStack, v: Tensor, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd through client and head in one graph, by the modules themselves."""
    stack, at = task.stack, task.stack.edges.index(len(w))
    half = nn.Sequential(OrderedDict(list(stack.net.named_children())[: stack.groups[at - 1][-1] + 1]))
    client, own = (view.leaves(u.clone().requires_grad_()) for view, u in ((prefix(stack, at), w), (full(head), v)))
    named = zip((half, head.net), (client, own), (stack.parameters[:at], head.parameters), strict=True)
    for net, values, blocks in named:
        x = functional_call(net, dict(zip((n for block in blocks for n in block), values, strict=True)), x)
    gradients = torch.autograd.grad(task.loss(x, target), [*client, *own])
    flat = torch.cat([g.reshape(-1) for g in gradients])
    return flat[: len(w)], flat[len(w) :]


def through_head(
    task: Task, w: Tensor, head: LayerStack, v: Tensor, x: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """As a client does it: the head's gradient at the smashed data, pulled back through its half."""
    low = prefix(task.stack, task.stack.edges.index(len(w)))
    g, up = task.on(head).gradient_with_input(full(head), v, task.predict(low, w, x), target)
    return task.pullback(low, w, x, up), g


def detached(task: Task, w: Tensor, head: LayerStack, v: Tensor, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The smashed data are detached before the head, so that only the head learns."""
    client, own = through_head(task, w, head, v, x, target)
    return torch.zeros_like(client), own


CASES = [(name, word) for name in ("salf-cnn", "resnet-small", "residual") for word in WORDS]
CASES = [(n, w) for n, w in CASES if not (n == "residual" and w.startswith("conv"))]


@pytest.mark.parametrize(("name", "word"), CASES)
def test_gradients_reach_the_clients_half_through_a_head(name: str, word: str) -> None:
    task, w, x, y, _ = at_cut(name)
    head = build_head(word, task.stack, find_cut(task.stack, 1))
    v = weights_of(head, 3)
    target = x
    if word.startswith("decoder"):
        task = replace(task, loss=squares)
    else:
        target = y
    expected = jointly(task, w, head, v, x, target)
    for form in (task, replace(task, functional=True)):
        found = through_head(form, w, head, v, x, target)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-14)
            assert float(b.norm()) > 1e-6
    assert not torch.allclose(detached(task, w, head, v, x, target)[0], expected[0], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["salf-mlp", "resnet-small", "residual"])
def test_a_head_that_is_the_server_gives_the_true_cut_gradient(name: str) -> None:
    """Invariant 17: the surrogate of an auxiliary network that is the server's network is exact."""
    stack = stack_of(name)
    for cut in legal_cuts(stack):
        task, _, _, y, smashed = at_cut(name, cut.at)
        high, head = suffix(stack, cut.at), build_head(f"copied:blocks={len(stack) - cut.at}", stack, cut)
        server = high.take(weights_of(stack))
        assert head.size == high.size
        true = task.gradient_with_input(high, server, smashed, y)
        found = task.on(head).gradient_with_input(full(head), server, smashed, y)
        assert all(torch.equal(a, b) for a, b in zip(found, true, strict=True))
        other = task.on(head).gradient_with_input(full(head), 1.01 * server, smashed, y)
        assert not torch.allclose(other[1], true[1], rtol=1e-6)


@pytest.mark.parametrize("word", WORDS)
def test_a_client_learns_by_a_head_alone(word: str) -> None:
    """Steps on both lower the head's loss by more than steps on the head alone."""
    task, w, x, y, _ = at_cut("resnet-small", 2)
    head = build_head(word, task.stack, find_cut(task.stack, 2))
    if word.startswith("decoder"):
        task, x = replace(task, loss=squares), x.sigmoid()
    low, after, rate = prefix(task.stack, 2), {}, 0.003 if task.loss is squares else 0.1
    for both in (False, True):
        own, v, target = w.clone(), initial_weights(head, 0, torch.float64), x if task.loss is squares else y
        start = float(task.loss(task.on(head).predict(full(head), v, task.predict(low, own, x)), target))
        for _ in range(15):
            client, g = through_head(task, own, head, v, x, target)
            own, v = own - rate * both * client, v - rate * g
        after[both] = float(task.loss(task.on(head).predict(full(head), v, task.predict(low, own, x)), target))
    assert after[True] < after[False] < start


@pytest.mark.parametrize("word", WORDS)
def test_heads_of_many_clients_go_under_vmap(word: str) -> None:
    """As the batched executor takes them."""
    task, *_ = at_cut("resnet-small")
    head = build_head(word, task.stack, find_cut(task.stack, 1))
    if word.startswith("decoder"):
        task = replace(task, loss=squares)
    cases = []
    for key in range(2):
        x, y = batch_of(task.stack, 3, key)
        smashed = torch.randn(3, *head.sample_shape, dtype=torch.float64)
        cases.append((weights_of(head, key), smashed, x if task.loss is squares else y))
    many = replace(task, functional=True).on(head)
    together = vmap(lambda v, h, t: many.gradient_with_input(full(head), v, h, t))(
        *(torch.stack(each) for each in zip(*cases, strict=True))
    )
    for i, (v, h, t) in enumerate(cases):
        for a, b in zip(together, task.on(head).gradient_with_input(full(head), v, h, t), strict=True):
            assert torch.allclose(a[i], b, rtol=1e-11, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- decoders
@pytest.mark.parametrize(("name", "where"), [("salf-cnn", 1), ("salf-cnn", 3), ("resnet8", 3), ("mlp:widths=7", 1)])
def test_what_a_decoder_can_reach(name: str, where: int) -> None:
    """With a sigmoid a picture in [0, 1], without it any number: samples below 0 as well."""
    task, _, x, _, smashed = at_cut(name, where)
    cut = find_cut(task.stack, where)
    out = {}
    for kind in ("linear", "sigmoid"):
        head = build_head(f"decoder:output={kind}", task.stack, cut)
        out[kind] = task.on(head).predict(full(head), 20 * weights_of(head, 1), smashed)
        assert out[kind].shape == x.shape
    assert torch.equal(out["sigmoid"], out["linear"].sigmoid())
    assert float(out["sigmoid"].min()) >= 0
    assert float(out["sigmoid"].max()) <= 1
    assert float(out["linear"].min()) < 0
    assert float(out["linear"].max()) > 1


def test_a_decoder_is_infopros_formula() -> None:
    task, _, x, _, smashed = at_cut("salf-cnn")
    head = build_head("decoder:output=sigmoid", task.stack, find_cut(task.stack, 1))
    v = weights_of(head, 2)
    a, b, scale, shift, c, d = full(head).leaves(v)
    h = f.interpolate(smashed, size=x.shape[2:], mode="bilinear", align_corners=True)
    h = f.relu(f.group_norm(f.conv2d(h, a, b, padding=1), 2, scale, shift))
    expected = f.conv2d(h, c, d, padding=1).sigmoid()
    assert torch.equal(task.on(head).predict(full(head), v, smashed), expected)
    h = f.interpolate(smashed, size=x.shape[2:], mode="bilinear", align_corners=False)
    h = f.relu(f.group_norm(f.conv2d(h, a, b, padding=1), 2, scale, shift))
    assert not torch.allclose(f.conv2d(h, c, d, padding=1).sigmoid(), expected)


def test_the_encoders_gradient_depends_on_what_is_to_be_reconstructed() -> None:
    """Invariant 12, as far as it is a head's: another target, another gradient."""
    task, w, x, _, _ = at_cut("resnet-small")
    task = replace(task, loss=squares)
    head = build_head("decoder", task.stack, find_cut(task.stack, 1))
    v = weights_of(head)
    a, b = (through_head(task, w, head, v, x, target)[0] for target in (x, x + 1))
    assert float((a - b).norm()) > 1e-3 * float(a.norm()) > 0


# ---------------------------------------------------------------------------------------------------- mistakes
def conv_out() -> nn.Sequential:
    """A model that labels every pixel."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))


@pytest.mark.parametrize(
    ("word", "where", "message"),
    [
        ("poled", 1, "There is no head called 'poled'. Did you mean 'pooled'?"),
        ("pooled:width=3", 1, "The head 'pooled' has no options, so that 'pooled:width=3' says too much."),
        ("conv:widht=3", 1, "The head 'conv' has no option 'widht'. Did you mean 'width'?"),
        ("conv:width=0", 1, "A head's width is '0', but has to be a whole number from 1 on. Write for"),
        ("conv:width=8-8", 1, "A head's width is '8-8', but has to be a whole number"),
        ("conv:width", 1, "'conv:width' cannot be read at 'width'. Write for instance 'conv:width=32'."),
        ("decoder:output=tanh", 1, "A head's output is 'tanh', which is none. Choose from: linear, sigmoid."),
        ("conv", "block3", "A 'conv' head takes images, but behind block 'block3' there are 64 numbers for a sample."),
        ("decoder:widen=2", "block3", "A decoder of 64 numbers to 1x8x8 numbers is one linear layer"),
        ("copied:blocks=5", 1, "A head cannot copy 5 blocks: behind block 'stem' there are 4. Write at most"),
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused_with_the_repair(word: str, where: int | str, message: str) -> None:
    stack = stack_of("resnet8")
    with pytest.raises(ModelError) as caught:
        build_head(word, stack, find_cut(stack, where))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["pooled", "conv", "copied"])
def test_a_model_without_classes_has_no_head_that_classifies(word: str) -> None:
    for make in (conv_out, lambda: nn.Sequential(*conv_out(), nn.Conv2d(3, 3, 1))):
        stack = LayerStack(make(), (1, 6, 6))
        cut = find_cut(stack, 1)
        if word != "copied" or len(stack) > 2:
            with pytest.raises(ModelError, match=f"A '{word}' head gives one number per class, but .* 3x6x6"):
                build_head(word, stack, cut)
        assert build_head(f"copied:blocks={len(stack) - 1}", stack, cut).output_shape == (3, 6, 6)
        assert build_head("decoder", stack, cut).output_shape == (1, 6, 6)


def test_every_option_has_a_meaning() -> None:
    options = {name: options_of(make) for name, make in HEADS.items()}
    assert {name: list(each) for name, each in options.items()} == {
        "pooled": [], "conv": ["width"], "decoder": ["widen", "output"], "copied": ["blocks"],
    }  # fmt: skip
    assert options["conv"]["width"][1:3] == ("a whole number", "32")
    assert all(option.meaning for each in options.values() for option in each.values())
