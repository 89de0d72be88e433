"""No block writes into its input: behind a cut that is a message, before the first block the data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

from lanterne.errors import ModelError
from lanterne.learn import Task
from lanterne.models import LayerStack, legal_cuts
from models.nets import batch_of, weights_of
from models.splitting import numbers, split, unsplit


class Adds(nn.Module):
    """Writes into what it is given."""

    def __init__(self, how: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.how(x)
        return self.linear(x)


def preactivated(inplace: bool) -> nn.Sequential:
    """Blocks that begin with an activation, as DenseNets and later ResNets have it; and a first one that does."""

    def block() -> nn.Sequential:
        return nn.Sequential(nn.Sequential(nn.ReLU(inplace), nn.LayerNorm(4)), nn.ELU(inplace=inplace), nn.Linear(4, 4))

    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.ReLU(inplace), nn.Linear(4, 4), block(), nn.ReLU(inplace), block())


def test_an_activation_in_place_behind_a_cut_leaves_the_smashed_data_alone() -> None:
    inplace, plain = (LayerStack(preactivated(flag), (2, 2)) for flag in (True, False))
    w, (x, y) = weights_of(inplace), batch_of(plain)
    overwritten = x.clone()
    inplace.load(w)(overwritten)
    assert not torch.equal(overwritten, x)  # as the user's own module does it, and it stays as it is
    for stack in (inplace, plain):
        task = Task(stack)
        loss, gradient = unsplit(task, w, x, y)
        for cut in legal_cuts(stack):
            low, high = cut.views(stack)
            smashed = task.predict(low, low.take(w), x)
            before = smashed.clone()
            for again in (Task(stack), Task(stack, functional=True)):
                again.predict(high, high.take(w), smashed)
                again.gradient_with_input(high, high.take(w), smashed, y)
            assert torch.equal(smashed, before)
            assert bool((smashed < 0).any()) == (cut.at == 1)  # or there would be nothing to overwrite
            found = split(task, cut, w, x, y)
            assert torch.equal(found[0], loss)
            assert torch.equal(found[1], gradient)
    assert torch.equal(unsplit(Task(inplace), w, x, y)[1], unsplit(Task(plain), w, x, y)[1])
    assert torch.equal(x, batch_of(plain)[0])
    assert legal_cuts(inplace) == legal_cuts(plain)


@pytest.mark.parametrize("first", [False, True], ids=["behind a cut", "on the data"])
@pytest.mark.parametrize(
    "how", [Tensor.relu_, f.relu_, lambda x: x.view(-1).mul_(2), lambda x: x.add_(1), lambda x: x[0].zero_()]
)
def test_what_cannot_be_kept_from_overwriting_its_input_is_refused(
    first: bool, how: Callable[[Tensor], object]
) -> None:
    blocks = [Adds(how), nn.Linear(4, 4)] if first else [nn.Linear(4, 4), Adds(how)]
    stack = LayerStack(nn.Sequential(*blocks), (4,))
    with pytest.raises(ModelError, match=f"Block '{int(not first)}' writes into its input.*x = x \\+ y"):
        legal_cuts(stack)


def test_what_ends_a_block_in_place_is_none_of_the_next_ones_business() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))
    stack = LayerStack(net, (4,))
    task, (w, x, y) = Task(stack), numbers(stack)
    (cut,) = legal_cuts(stack)
    assert torch.equal(split(task, cut, w, x, y)[1], unsplit(task, w, x, y)[1])
    copies = LayerStack(nn.Sequential(nn.Linear(4, 4), Adds(lambda x: x.clone().relu_())), (4,))
    assert len(legal_cuts(copies)) == 1


def test_a_block_that_gives_no_tensor_is_refused() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x), x  # type: ignore[return-value]

    with pytest.raises(ModelError, match="Block '0' gives a tuple, and what goes from block to block is one tensor"):
        legal_cuts(LayerStack(nn.Sequential(Both(4, 4), nn.Linear(4, 4)), (4,)))
