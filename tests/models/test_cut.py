"""Cuts: everywhere between blocks, exact, priced as the clock prices them; and what is no cut says what is one."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import Cut, LayerStack, UCut, block_costs, find_cut, find_u_cut, legal_cuts
from lanterne.models.cut import Share
from lanterne.models.flops import FlopCounter
from lanterne.protocol import Pass
from lanterne.runtime.pricing import Pricing
from models.nets import EVERY, NAMES, stack_of
from models.splitting import numbers, split, unsplit

#: Deeper ones of a kind of which others have all of their cuts tested.
DEEPER = ("resnet34", "vgg13", "vgg16", "vgg19")
EVERYWHERE = [*EVERY, *(name for name in NAMES if name not in EVERY)]
SHARES: tuple[Share, ...] = ("flops", "parameters")
Step = Callable[[Task, Cut, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@cache
def cut_up(name: str) -> tuple[LayerStack, tuple[Cut, ...]]:
    """A model and its cuts, whose costs are derived once for all tests."""
    return stack_of(name), legal_cuts(stack_of(name))


def some(name: str) -> list[Cut]:
    """All cuts, or of the deepest the first, one in the middle, and the last."""
    cuts = cut_up(name)[1]
    return [cuts[i] for i in (0, len(cuts) // 2, -1)] if name in DEEPER else list(cuts)


# ---------------------------------------------------------------------------------------------------- exact
def encoder_detached(task: Task, cut: Cut, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The client's half never hears of the loss."""
    return split(task, cut, w, x, y, scale=0.0)


def pooled_mean(task: Task, cut: Cut, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The server takes the mean over two clients' rows and does not undo it."""
    return split(task, cut, w, x, y, scale=0.5)


def another_cut(task: Task, cut: Cut, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Client and server do not agree on the model: the server's parameters stand first."""
    loss, gradient = split(task, cut, w, x, y)
    edge = task.stack.edges[cut.at]
    return loss, torch.cat([gradient[edge:], gradient[:edge]])


def other_weights(task: Task, cut: Cut, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The server answers with weights that it has stepped already."""
    low, high = cut.views(task.stack)
    smashed = task.predict(low, low.take(w), x)
    g, _ = task.gradient_with_input(high, high.take(w), smashed, y)
    stepped = torch.cat([low.take(w), high.take(w) - 0.1 * g])
    loss, gradient = split(task, cut, stepped, x, y)
    return loss, gradient


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_cut_gives_the_loss_and_the_gradient_of_the_unsplit_model_exactly(name: str) -> None:
    """Invariant 1 of split learning, to the bit."""
    stack, cuts = cut_up(name)
    task, (w, x, y) = Task(stack), numbers(stack)
    loss, gradient = unsplit(task, w, x, y)
    assert [cut.at for cut in cuts] == list(range(1, len(stack)))
    for cut in some(name):
        found = split(task, cut, w, x, y)
        assert torch.equal(found[0], loss)
        assert torch.equal(found[1], gradient)
    assert bool(gradient[: stack.edges[1]].any())


@pytest.mark.parametrize("wrong", [encoder_detached, pooled_mean, another_cut, other_weights])
@pytest.mark.parametrize("name", ["salf-mlp", "resnet-small", "residual"])
def test_a_split_that_is_done_wrong_is_seen(name: str, wrong: Step) -> None:
    stack = stack_of(name)
    task, (w, x, y) = Task(stack), numbers(stack)
    _, gradient = unsplit(task, w, x, y)
    for cut in legal_cuts(stack):
        assert not torch.allclose(wrong(task, cut, w, x, y)[1], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_is_exact_in_every_form(name: str) -> None:
    """Float32, images laid out for a CPU, and transforms as under vmap; there are the reference's numbers."""
    stack = stack_of(name)
    w, x, y = numbers(stack)
    for task in (Task(stack), Task(stack, channels_last=True)):
        loss, gradient = unsplit(task, w.float(), x.float(), y)
        for cut in legal_cuts(stack):
            found = split(task, cut, w.float(), x.float(), y)
            assert torch.equal(found[0], loss)
            assert torch.equal(found[1], gradient)
    _, gradient = unsplit(Task(stack), w, x, y)
    for cut in legal_cuts(stack):
        found = split(Task(stack, functional=True), cut, w, x, y)
        assert torch.allclose(found[1], gradient, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- U-shaped
def u_shaped(task: Task, u: UCut, w: Tensor, x: Tensor, y: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The labels never leave the client: up, down, gradient up, gradient down."""
    head, body, tail = u.views(task.stack)
    smashed = task.predict(head, head.take(w), x)
    features = task.predict(body, body.take(w), smashed)
    loss = task.loss(task.predict(tail, tail.take(w), features), y)
    g_tail, up = task.gradient_with_input(tail, tail.take(w), features, y)
    g_body, down = task.pullback_with_input(body, body.take(w), smashed, scale * up)
    return loss, torch.cat([task.pullback(head, head.take(w), x, down), g_body, g_tail])


def pairs(name: str) -> Iterator[UCut]:
    return itertools.starmap(UCut, itertools.combinations(some(name), 2))


@pytest.mark.parametrize("name", [n for n in EVERYWHERE if len(stack_of(n)) > 2 and n not in DEEPER])
def test_labels_that_stay_at_home_change_nothing(name: str) -> None:
    stack = stack_of(name)
    task, (w, x, y) = Task(stack), numbers(stack)
    loss, gradient = unsplit(task, w, x, y)
    large = stack.size > 1_000_000
    for u in itertools.islice(pairs(name), 0, None, max(len(some(name)) - 1, 2) if large else 1):
        found = u_shaped(task, u, w, x, y)
        assert torch.equal(found[0], loss)
        assert torch.equal(found[1], gradient)
        if not large:
            assert not torch.allclose(u_shaped(task, u, w, x, y, scale=0.5)[1], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_a_u_are_the_whole_model(name: str) -> None:
    stack = stack_of(name)
    w, whole = torch.arange(float(stack.size)), cut_up(name)[1][0]
    for u in pairs(name):
        parts = u.views(stack)
        assert torch.equal(torch.cat([view.take(w) for view in parts]), w)
        assert u.body.parameters == parts[1].size
        assert u.home.parameters == parts[0].size + parts[2].size
        assert u.home.plus(u.body) == whole.client.plus(whole.server)


def test_where_the_parts_of_a_u_begin() -> None:
    stack = stack_of("resnet8")
    u = find_u_cut(stack, "stem", "block3")
    assert (u.head.at, u.tail.at, u.head.shape, u.tail.shape) == (1, 4, (16, 8, 8), (64,))
    assert find_u_cut(stack, 1, "4") == u == find_u_cut(stack, 1, 4, legal_cuts(stack))
    assert find_u_cut(stack, "parameters:0", "parameters:1") == u


@pytest.mark.parametrize(("head", "tail"), [(2, 2), (3, 1), ("block2", "stem"), ("flops:0.5", "flops:0.5")])
def test_a_u_without_a_body_is_refused(head: int | str, tail: int | str) -> None:
    with pytest.raises(ModelError, match=r"no block is left for the server\. .*Legal cuts: 1 'stem'.*; 4 'block3'"):
        find_u_cut(stack_of("resnet8"), head, tail)
    cuts = legal_cuts(stack_of("resnet8"))
    with pytest.raises(ModelError, match="no block is left for the server"):
        UCut(cuts[1], cuts[1])


# ---------------------------------------------------------------------------------------------------- what it costs
@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_crosses_a_cut_and_what_each_side_costs(name: str) -> None:
    stack = stack_of(name)
    costs, cuts = block_costs(stack), cut_up(name)[1]
    w, x = torch.empty(stack.size, device="meta"), torch.empty(3, *stack.sample_shape, device="meta")
    for cut in cuts:
        low, high = cut.views(stack)
        smashed = Task(stack).predict(low, low.take(w), x)
        assert cut.name == stack.names[cut.at - 1]
        assert (3, *cut.shape) == smashed.shape
        assert cut.floats == math.prod(cut.shape) == smashed[0].numel()
        assert cut.nbytes == 4 * cut.floats
        assert (cut.client.parameters, cut.server.parameters) == (low.size, high.size)
        assert cut.client.parameters + cut.server.parameters == stack.size
        assert cut.client.forward + cut.server.forward == sum(c.forward for c in costs)
        backward = sum(c.weight_gradient for c in costs) + sum(c.input_gradient for c in costs[1:])
        assert cut.client.backward + cut.server.backward == backward
        for of in SHARES:
            whole = getattr(cut.client, of) + getattr(cut.server, of)
            assert cut.share(of) == pytest.approx(getattr(cut.client, of) / whole, rel=1e-15)
            assert cut.share(of) + getattr(cut.server, of) / whole == pytest.approx(1, rel=1e-15)
    for of in SHARES:
        shares = [cut.share(of) for cut in cuts]
        assert shares == sorted(set(shares))
        assert 0 < shares[0] <= shares[-1] < 1
    if name not in DEEPER:
        assert [cut.nbytes for cut in legal_cuts(stack, torch.float64)] == [8 * cut.floats for cut in cuts]


@pytest.mark.parametrize("name", NAMES)
def test_each_side_costs_what_is_counted_while_it_works_and_what_the_clock_charges(name: str) -> None:
    stack, batch = stack_of(name), 4
    task, (w, x, y), n = Task(stack), numbers(stack), len(stack)
    pricing = Pricing({}, task, batch, torch.float64, x, y)

    def counted(work: Callable[..., Tensor | tuple[Tensor, Tensor]], *args: object) -> float:
        with FlopCounter() as counter:
            work(*args)
        return counter.total / batch

    for cut in legal_cuts(stack):
        low, high = cut.views(stack)
        smashed = task.predict(low, low.take(w), x)
        up = torch.ones_like(smashed)
        assert counted(task.predict, low, low.take(w), x) == cut.client.forward
        assert counted(task.pullback, low, low.take(w), x, up) == cut.client.flops  # it runs forward again
        assert counted(task.gradient_with_input, high, high.take(w), smashed, y) == cut.server.flops
        client = [Pass("forward", 0, cut.at), Pass("backward", 0, cut.at)]
        server = [Pass("forward", cut.at, n), Pass("backward", cut.at, n, to_input=True)]
        assert sum(pricing.work(client).flops) == batch * cut.client.flops
        assert sum(pricing.work(server).flops) == batch * cut.server.flops
    for u in pairs(name):
        view = u.views(stack)[1]
        smashed = torch.ones(batch, *u.head.shape, dtype=w.dtype)
        up = torch.ones(batch, *u.tail.shape, dtype=w.dtype)
        assert counted(task.pullback_with_input, view, view.take(w), smashed, up) == u.body.flops


def test_the_published_cut_of_alexnet() -> None:
    """GAS: the client's half has 19,392 parameters, and 64x8x8 numbers go up for a sample."""
    from lanterne.models.zoo import build

    cut = find_cut(build("alexnet", (3, 32, 32), 10), "conv2")
    assert (cut.at, cut.client.parameters, cut.shape, cut.nbytes) == (2, 19_392, (64, 8, 8), 16 * 1024)


# ---------------------------------------------------------------------------------------------------- finding one
@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_cut_is_found_by_name_and_by_number(name: str) -> None:
    stack, cuts = cut_up(name)
    for cut in cuts:
        assert find_cut(stack, cut.name, cuts) == find_cut(stack, cut.at, cuts) == cut
        if str(cut.at) not in stack.names:
            assert find_cut(stack, str(cut.at), cuts) == cut
    if name not in DEEPER:
        assert find_cut(stack, 1) == cuts[0]


def test_a_word_that_is_a_block_means_the_block() -> None:
    """Blocks of a Sequential without names are called by numbers, which are not their order."""
    stack = stack_of("shared activation")
    assert stack.names == ("0", "2", "4")
    assert (find_cut(stack, "2").at, find_cut(stack, 2).at, find_cut(stack, "1").at) == (2, 2, 1)
    assert find_cut(stack, "0").at == 1
    with pytest.raises(ModelError, match="Of 3 blocks a client cannot hold 0"):
        find_cut(stack, 0)


@given(st.sampled_from(["salf-cnn", "resnet8", "residual"]), st.sampled_from(SHARES), st.decimals(0, 1, places=4))
def test_a_share_finds_the_nearest_cut(name: str, of: Share, wanted: Decimal) -> None:
    stack, cuts = cut_up(name)
    found, near = find_cut(stack, f"{of}:{wanted:f}", cuts), float(wanted)
    for cut in cuts:
        assert abs(found.share(of) - near) <= abs(cut.share(of) - near) + 1e-12
        assert find_cut(stack, f"{of}:{cut.share(of):.12f}", cuts) == cut


def test_of_two_equally_near_the_smaller_is_taken() -> None:
    """In exact numbers: in floating point a third is farther from a half than two thirds."""
    stack = LayerStack(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), (4,))
    assert find_cut(stack, "parameters:0.5").at == 1
    assert abs(1 / 3 - 0.5) > abs(2 / 3 - 0.5)
    assert [Fraction(c.client.parameters, stack.size) for c in legal_cuts(stack)] == [Fraction(1, 3), Fraction(2, 3)]
    assert [find_cut(stack, f"parameters:{s}").at for s in ("0", ".4", "0.51", "1", "1.0")] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (0, "Of 5 blocks a client cannot hold 0"),
        (5, "Of 5 blocks a client cannot hold 5"),
        (-1, "Of 5 blocks a client cannot hold -1"),
        ("7", "Of 5 blocks a client cannot hold 7"),
        ("output", "'output' is the last block: behind it nothing is left for the server"),
        ("relu", "'relu' stands within block 'stem', which is one piece"),
        ("norm", "'norm' stands within block 'stem'"),
        ("block1.conv1", "'block1.conv1' stands within block 'block1', which is one piece"),
        ("flatten", "'flatten' stands within block 'block3'"),
        ("blok1", "There is no block 'blok1'"),
        ("", "There is no block ''"),
        ("9" * 5000, "There is no block '999"),
        ("flops:1.5", "'flops:1.5' is no share of a model: it has to be a number from 0 to 1"),
        ("flops:-0.5", "'flops:-0.5' is no share"),
        ("flops:nan", "'flops:nan' is no share"),
        ("flops:", "'flops:' is no share"),
        ("parameters:half", "'parameters:half' is no share"),
        ("flops:1e-999999999", "'flops:1e-999999999' is no share"),
        ("bytes:0.5", "There is no block 'bytes:0.5'"),
        (0.25, "A cut is a number of blocks, a block's name or a share, not 0.25"),
        (True, "A cut is a number of blocks, a block's name or a share, not True"),
        (None, "A cut is a number of blocks, a block's name or a share, not None"),
    ],
)
def test_what_is_no_cut_says_why_and_names_all_that_are(where: object, reason: str) -> None:
    stack = stack_of("resnet8")
    cuts = legal_cuts(stack)
    with pytest.raises(ModelError) as caught:
        find_cut(stack, where)  # type: ignore[arg-type]
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    for cut, shape in zip(cuts, ("16x8x8", "16x8x8", "32x4x4", "64"), strict=True):
        shares = f"flops:{cut.share('flops'):.3g}, parameters:{cut.share('parameters'):.3g}"
        assert f"{cut.at} {cut.name!r} ({shape}, {shares})" in message


def test_a_model_of_one_block_cannot_be_cut() -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,))
    assert legal_cuts(stack) == ()
    with pytest.raises(ModelError, match=r"of one block cannot be cut\. Write its layers"):
        find_cut(stack, 1)


def test_the_choice_can_be_narrowed() -> None:
    """To what fits a device, say."""
    stack = stack_of("resnet8")
    fits = [cut for cut in legal_cuts(stack) if cut.client.parameters < 10_000]
    assert [cut.at for cut in fits] == [1, 2]
    assert find_cut(stack, "parameters:0.9", fits).at == 2
    for where in (3, "block2"):
        with pytest.raises(ModelError, match=r"not among the cuts to choose from\. Legal cuts: 1 [^;]*; 2 [^;]*\.$"):
            find_cut(stack, where, fits)


def test_cuts_are_plain_values_and_each_client_may_have_its_own() -> None:
    """What one client does at its cut does not depend on another's: there is nothing behind a cut but its numbers."""
    stack = stack_of("resnet-small")
    task, (w, x, y), cuts = Task(stack), numbers(stack), legal_cuts(stack)
    assert len({*cuts, *legal_cuts(stack_of("resnet-small"))}) == len(cuts)
    assert pickle.loads(pickle.dumps(cuts)) == cuts
    own = {client: find_cut(stack, where, cuts) for client, where in enumerate(("stem", 3, "flops:0.9", "stem"))}
    assert [own[c].at for c in range(4)] == [1, 3, 4, 1]
    together = [split(task, own[c], w, x, y)[1] for c in range(4)]
    assert all(torch.equal(g, unsplit(task, w, x, y)[1]) for g in together)
