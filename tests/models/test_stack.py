"""A stack is the user's Sequential: the same blocks, the same numbers, from any thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lanterne.errors import ModelError
from lanterne.models import LayerStack, full, prefix, reached, suffix
from lanterne.testing import tiny_mlp
from models.nets import NAMES, USERS, Residual, batch_of, residual_net, shared_activation_net, stack_of, weights_of


def oracle(stack: LayerStack, w: Tensor, x: Tensor) -> Tensor:
    """The user's own module, called by PyTorch with other weights. Independent of how the stack orders or groups."""
    names = [name for block in stack.parameters for name in block]
    return functional_call(stack.net, dict(zip(names, full(stack).leaves(w), strict=True)), (x,))


# ---------------------------------------------------------------------------------------------------- blocks
@pytest.mark.parametrize(
    ("net", "groups"),
    [
        ([nn.Linear(4, 4)], {"0": ["0"]}),
        ([nn.Flatten(), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()], {"2": ["0", "1", "2", "3"]}),  # a head joins the first
        ([nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4)], {"0": ["0", "1", "2"], "3": ["3"]}),
        ([nn.Linear(4, 4), nn.ReLU(), nn.RMSNorm(4), nn.Linear(4, 4)], {"0": ["0", "1", "2"], "3": ["3"]}),
        ([nn.LayerNorm(4), nn.Linear(4, 4)], {"0": ["0"], "1": ["1"]}),  # there is no block before it
        ([nn.Flatten(), nn.LayerNorm(4), nn.GroupNorm(1, 4)], {"1": ["0", "1", "2"]}),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)], {"0": ["0", "1"]}),
        ([nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4)], {"0": ["0", "1"], "2": ["2"]}),
        ([nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))], {"0": ["0"], "1": ["1"]}),
    ],
)  # fmt: skip
def test_children_are_grouped_into_blocks(net: list[nn.Module], groups: dict[str, list[str]]) -> None:
    stack = LayerStack(nn.Sequential(*net), (4,))
    assert stack.names == tuple(groups)
    assert stack.groups == tuple(tuple(map(int, group)) for group in groups.values())
    assert len(stack) == len(groups)


def test_a_layer_that_stands_in_two_places_is_run_in_both() -> None:
    """`named_children` leaves the second place out: a stack that used it would be another, shallower model."""
    stack = LayerStack(shared_activation_net(), (6,))
    assert len(list(stack.net.named_children())) == 4
    assert stack.groups == ((0, 1), (2, 3), (4, 5))


def test_names_are_the_users_and_parameters_are_in_their_order() -> None:
    stack = LayerStack(residual_net(), (2, 3))
    assert stack.names == ("in", "first", "second", "out")
    assert stack.parameters[0] == ("in.weight", "in.bias", "norm.weight", "norm.bias")
    assert stack.parameters[1] == (
        "first.scale", "first.body.0.weight", "first.body.0.bias", "first.body.2.0.weight", "first.body.2.0.bias",
    )  # fmt: skip
    sizes = [sum(p.numel() for p in child.parameters()) for child in residual_net()]
    assert stack.edges == (0, sizes[1] + sizes[2], *(sum(sizes[: k + 1]) for k in (4, 5, 6)))
    assert stack.size == sum(sizes)


def test_the_users_model_is_left_as_it_is() -> None:
    net = residual_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    ids = {name: id(p) for name, p in net.named_parameters()}
    stack = LayerStack(net, (2, 3))
    stack.forward(full(stack).leaves(stack.flat() + 1), torch.ones(2, 2, 3))
    assert {name: id(p) for name, p in net.named_parameters()} == ids
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    with torch.no_grad():
        net.out.bias += 1  # and what the user does to it later does not reach the stack
    assert torch.equal(stack.flat()[-3:], before["out.bias"])


# ---------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("name", USERS)
def test_flat_and_load_are_inverse(name: str) -> None:
    net = USERS[name][0]()
    stack = LayerStack(net, USERS[name][1])
    assert torch.equal(stack.flat(), torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    w = weights_of(stack)
    loaded = stack.load(w)
    assert torch.equal(LayerStack(loaded, USERS[name][1]).flat(), w)
    x, _ = batch_of(stack)
    assert torch.equal(loaded(x), oracle(stack, w, x))
    assert not torch.equal(stack.flat().double(), w)  # the stack has kept its own


@pytest.mark.parametrize("name", ["salf-mlp", "resnet-small"])
def test_load_gives_a_model_of_the_zoo_its_weights(name: str) -> None:
    stack = stack_of(name)
    w = weights_of(stack)
    assert stack.flat().is_meta
    loaded = stack.load(w)
    assert not any(p.is_meta or p.data_ptr() == w.data_ptr() for p in loaded.parameters())
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in loaded.parameters()]), w)


# ---------------------------------------------------------------------------------------------------- forward
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_is_the_users_own_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    stack = stack_of(name)
    for key in range(2):
        w, (x, _) = weights_of(stack, key, dtype), batch_of(stack, 3, key, dtype)
        found = stack.forward(full(stack).leaves(w), x)
        assert torch.equal(found, oracle(stack, w, x))
        assert found.shape[1:] == stack.output_shape
        assert not torch.equal(found, stack.forward(full(stack).leaves(w.flip(0)), x))


@pytest.mark.parametrize("name", NAMES)
def test_spans_compose(name: str) -> None:
    stack = stack_of(name)
    w, (x, _) = weights_of(stack), batch_of(stack)
    whole = stack.forward(full(stack).leaves(w), x)
    for cut in range(1, len(stack)):
        low, high = prefix(stack, cut), suffix(stack, cut)
        smashed = stack.forward(low.leaves(low.take(w)), x, low.first, low.last)
        assert torch.equal(stack.forward(high.leaves(high.take(w)), smashed, high.first, high.last), whole)
    h = x
    for b in range(len(stack)):
        h = stack.forward(stack.span(b, b + 1).leaves(w[stack.edges[b] : stack.edges[b + 1]]), h, b, b + 1)
    assert torch.equal(h, whole)


@pytest.mark.parametrize("name", ["resnet-small", "residual", "shared activation"])
def test_threads_do_not_see_each_others_weights(name: str) -> None:
    stack, threads = stack_of(name), 6
    cases = [(weights_of(stack, key), batch_of(stack, 2, key)[0]) for key in range(threads)]
    expected = [oracle(stack, w, x) for w, x in cases]
    assert not torch.equal(expected[0], expected[1])

    def work(i: int) -> bool:
        w, x = cases[i]
        return all(torch.equal(stack.forward(full(stack).leaves(w), x), expected[i]) for _ in range(25))

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, [*range(threads)] * 3))


def test_vmap_over_weights_leaves_nothing_behind() -> None:
    stack = stack_of("residual")
    ws, (x, _) = torch.stack([weights_of(stack, k) for k in range(3)]), batch_of(stack)
    together = vmap(lambda w: stack.forward(full(stack).leaves(w), x))(ws)
    alone = [stack.forward(full(stack).leaves(w), x) for w in ws]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-12, atol=1e-12)
    assert torch.equal(alone[0], oracle(stack, ws[0], x))


# ---------------------------------------------------------------------------------------------------- views of blocks
def test_equal_spans_are_one_object() -> None:
    stack = stack_of("resnet-small")
    n = len(stack)
    assert stack.span(1, 3) is stack.span(1, 3)
    assert full(stack) is stack.span(0, n) is prefix(stack, n) is suffix(stack, 0) is reached(stack, n)
    assert reached(stack, 2) is suffix(stack, n - 2)
    assert stack.span(1, 3) is not stack.span(1, 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_divides_the_parameters(name: str) -> None:
    stack = stack_of(name)
    w = torch.arange(float(stack.size))
    for cut in range(len(stack) + 1):
        low, high = prefix(stack, cut), suffix(stack, cut)
        assert torch.equal(torch.cat([low.take(w), high.take(w)]), w)
        assert (low.last, high.first, high.last) == (cut, cut, len(stack))
        assert low.size + high.size == full(stack).size == stack.size
    for depth in range(len(stack) + 1):
        assert reached(stack, depth).size == stack.size - stack.edges[len(stack) - depth]


# ---------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize("shape", [(5,), (3, 5), (1, 8, 8)])
def test_samples_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(6, 4)), shape)
    with pytest.raises(ModelError, match=r"cannot take samples of shape .*first layer fits the data"):
        _ = stack.output_shape


class Own(nn.Module):
    """A layer with a forward of the user's own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


READS_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "item": lambda x: x * x.sum().item(),
    "if": lambda x: x if x.sum() > 0 else -x,
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x[x.nonzero()[:, 0]],
    "mask": lambda x: x[x > 0],
    "unique": torch.unique,
}


@pytest.mark.parametrize("function", READS_VALUES.values(), ids=READS_VALUES)
def test_a_model_that_reads_values_cannot_be_priced(function: Callable[[Tensor], Tensor]) -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(3, 4), Own(function)), (3,))
    with pytest.raises(ModelError, match=r"reads values in its forward .* depends on them .* as torch\.where") as error:
        _ = stack.output_shape
    assert "first layer" not in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_model_that_makes_tensors_elsewhere_is_told_where() -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(3, 4), Own(lambda x: x + torch.zeros(4, 4)[:2])), (3,))
    with pytest.raises(ModelError, match=r"makes a tensor on a device of its own.* with device=x\.device"):
        _ = stack.output_shape


def test_a_layer_that_is_called_wrongly_is_no_bare_error() -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(3, 4), nn.Bilinear(4, 4, 2)), (3,))
    with pytest.raises(ModelError, match=r"cannot take samples of shape .*missing 1 required positional argument"):
        _ = stack.output_shape


def test_a_block_with_any_name_is_found() -> None:
    """A name that is also a prefix of another must not take the other's parameters."""
    net = nn.Sequential(OrderedDict([("a", nn.Linear(4, 4)), ("ab", Residual(4)), ("a_b", nn.Linear(4, 2))]))
    stack = LayerStack(net, (4,))
    assert [{n.split(".")[0] for n in block} for block in stack.parameters] == [{"a"}, {"ab"}, {"a_b"}]


def test_a_stack_can_be_copied_and_sent() -> None:
    import copy
    import pickle

    stack = tiny_mlp()
    x, w = torch.ones(2, 6, dtype=torch.float64), torch.linspace(-1, 1, stack.size, dtype=torch.float64)
    expected = stack.forward(stack.span(0, 3).leaves(w), x)
    for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert torch.equal(other.forward(other.span(0, 3).leaves(w), x), expected)
