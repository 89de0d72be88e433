"""BatchNorm by the batch in training, by statistics of training samples in judging."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from lanterne.models import (
    LayerStack,
    Statistics,
    batch_norms,
    batch_statistics,
    full,
    total_variance,
    with_statistics,
)
from lanterne.models.zoo import build
from models.nets import batch_of, stack_of, weights_of


class Twice(nn.Module):
    """A user's block that calls one layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, affine=False, track_running_stats=False)
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.norm(x)))


def flat_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    )


USERS = {
    "flat": lambda: LayerStack(flat_net(), (6,)),
    "convolutions": lambda: stack_of("convolutions"),
    "resnet-small": lambda: stack_of("resnet-small:norm=batch"),
    "resnet8": lambda: stack_of("resnet8:norm=batch"),
}


def run(stack: LayerStack, w: Tensor, x: Tensor) -> Tensor:
    return stack.forward(full(stack).leaves(w), x)


def test_which_layers_are_meant() -> None:
    assert batch_norms(USERS["flat"]()) == ("2",)
    assert batch_norms(build("resnet8", (1, 8, 8), 10)) == batch_norms(stack_of("residual")) == ()
    deep = batch_norms(build("resnet18:norm=batch", (3, 32, 32), 10))
    assert len(deep) == 1 + 2 * 8 + 3  # stem, two in each block, three shortcuts
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2))  # by sample in training and judging alike
    assert batch_norms(LayerStack(net, (1, 4, 4))) == ()


@pytest.mark.parametrize("name", USERS)
def test_what_a_layer_sees_is_what_it_normalises_by(name: str) -> None:
    """Judged by the statistics of a batch, that batch comes out as in training."""
    stack = USERS[name]()
    w, (x, _) = weights_of(stack), batch_of(stack, 9)
    judged = with_statistics(stack, batch_statistics(stack, w, x))
    assert torch.allclose(run(judged, w, x), run(stack, w, x), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(run(judged, w, x + 1), run(stack, w, x + 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", USERS)
def test_a_judged_sample_does_not_depend_on_the_others(name: str) -> None:
    stack = USERS[name]()
    w, (x, _) = weights_of(stack), batch_of(stack, 9)
    judged = with_statistics(stack, batch_statistics(stack, w, x))
    one_by_one = torch.cat([run(judged, w, x[i : i + 1]) for i in range(9)])
    assert torch.allclose(run(judged, w, x), one_by_one, rtol=1e-12, atol=1e-12)
    pairs = torch.cat([run(stack, w, x[i : i + 3]) for i in range(0, 9, 3)])  # in training it does
    assert not torch.allclose(run(stack, w, x), pairs, rtol=1e-3, atol=1e-3)


def mean_of_variances(parts: list[Statistics]) -> Statistics:
    """The wrong variant, as it is usual: how much the means differ is left out."""
    shares = [part.samples / sum(p.samples for p in parts) for part in parts]
    mean, variance = (
        {n: sum(s * part[i][n] for s, part in zip(shares, parts, strict=True)) for n in parts[0].mean} for i in (1, 2)
    )
    return Statistics(sum(p.samples for p in parts), mean, variance)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (2, 7, 3)])
def test_the_total_variance_is_that_of_all_samples(sizes: tuple[int, ...]) -> None:
    """NeFL's and LocFedMix-SL's total-variance merge; exact for the first layer, with clients that differ."""
    stack = USERS["flat"]()
    w = torch.linspace(-1, 1, stack.size, dtype=torch.float64)
    x, _ = batch_of(stack, 12)
    x += torch.arange(12).reshape(12, *[1] * (x.ndim - 1)) / 4  # chunks have different means
    parts = [batch_statistics(stack, w, chunk) for chunk in x.split(sizes)]
    h = nn.functional.linear(x.flatten(1), *full(stack).leaves(w)[:2])
    found = total_variance(parts)
    assert found.samples == 12
    assert torch.allclose(found.mean["2"], h.mean(0), rtol=1e-13)
    assert torch.allclose(found.variance["2"], h.var(0, correction=0), rtol=1e-12)
    assert torch.allclose(mean_of_variances(parts).mean["2"], h.mean(0), rtol=1e-13)
    wrong = mean_of_variances(parts).variance["2"]
    assert bool((wrong < 0.9 * found.variance["2"]).all()) == (len(sizes) > 1)  # else the clients agree


def test_a_layer_that_is_called_twice_has_the_statistics_of_both_calls() -> None:
    stack = LayerStack(nn.Sequential(Twice(), nn.Linear(5, 2)), (5,))
    w, x = weights_of(stack), torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight, bias = full(stack).leaves(w)[:2]
    first = nn.functional.batch_norm(x, None, None, training=True)
    inputs = torch.cat([x, nn.functional.linear(first, weight, bias)])
    found = batch_statistics(stack, w, x)
    assert found.samples == 8
    assert torch.allclose(found.mean["0.norm"], inputs.mean(0), rtol=1e-12)
    assert torch.allclose(found.variance["0.norm"], inputs.var(0, correction=0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stack_is_left_as_it_is_and_shares_its_views(dtype: torch.dtype) -> None:
    stack = USERS["resnet-small"]()
    w, (x, _) = weights_of(stack, dtype=dtype), batch_of(stack, 6, dtype=dtype)
    before = run(stack, w, x)
    statistics = batch_statistics(stack, w, x)
    judged = with_statistics(stack, statistics)
    after = run(judged, w, x[:2])
    assert after.dtype == dtype
    assert {v.dtype for v in (*statistics.mean.values(), *statistics.variance.values())} == {dtype}
    assert torch.equal(run(stack, w, x), before)
    assert not list(stack.net.buffers())
    assert full(judged) is full(stack)
    assert judged.names == stack.names
    again = with_statistics(judged, batch_statistics(stack, w, x + 1))
    assert torch.equal(run(judged, w, x[:2]), after)
    assert not torch.equal(run(again, w, x[:2]), after)


def test_a_judged_model_can_be_taken_away() -> None:
    """With its statistics as PyTorch keeps them, so that it gives outside what it gives here."""
    stack = USERS["resnet-small"]()
    w, (x, _) = weights_of(stack), batch_of(stack, 6)
    judged = with_statistics(stack, batch_statistics(stack, w, x))
    net = judged.load(w)
    assert torch.equal(net(x[:2]), run(judged, w, x[:2]))
    assert torch.equal(net.eval()(x[:1]), run(judged, w, x[:1]))
    assert sorted(dict(net.named_buffers())) == sorted(
        f"{name}.{kind}" for name in batch_norms(stack) for kind in ("running_mean", "running_var")
    )


def test_threads_measure_without_seeing_each_other() -> None:
    stack, count = USERS["resnet-small"](), 6
    cases = [(weights_of(stack, key), batch_of(stack, 5, key)[0]) for key in range(count)]
    expected = [batch_statistics(stack, w, x) for w, x in cases]

    def work(i: int) -> bool:
        found = batch_statistics(stack, *cases[i])
        return all(torch.equal(found.mean[n], expected[i].mean[n]) for n in found.mean)

    with ThreadPoolExecutor(count) as pool:
        assert all(pool.map(work, [*range(count)] * 4))
    assert not torch.equal(expected[0].mean["norm"], expected[1].mean["norm"])


def test_14_the_merge_is_pooled_where_averaged_buffers_are_too_small() -> None:
    """Section 2.9, row 9: two clients' batches of 32 rows whose means differ, merged by the total variance.

    Judging recomputes the statistics of training rows, so there are no buffers to average: what the specification warns
    of would be 7.6 of 18.9 here, and the pooled sample variance differs from ours by the factor n / (n - 1) alone.
    """
    rows, places = 32, (-1.0, 1.0)
    spread, distance = 7.6, (18.9 - 7.6) ** 0.5
    x = torch.randn(2, rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)  # exactly 0 and 1
    x = spread**0.5 * x + distance * torch.tensor(places, dtype=torch.float64).reshape(2, 1, 1)
    stack = LayerStack(nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.Linear(1, 2)), (1,))
    w, pooled = weights_of(stack), x.reshape(-1, 1)
    parts = [batch_statistics(stack, w, client) for client in x]
    merged, buffers = float(total_variance(parts).variance["0"]), float(mean_of_variances(parts).variance["0"])
    assert merged == pytest.approx(18.9, rel=1e-12)
    assert buffers == pytest.approx(7.6, rel=1e-12)
    assert merged == pytest.approx(float(pooled.var(correction=0)), rel=1e-12)
    assert float(pooled.var()) / merged == pytest.approx(2 * rows / (2 * rows - 1), rel=1e-12)
    judged = with_statistics(stack, total_variance(parts))
    assert torch.allclose(run(judged, w, pooled), run(stack, w, pooled), rtol=1e-11, atol=1e-11)
    wrong = with_statistics(stack, mean_of_variances(parts))
    assert not torch.allclose(run(wrong, w, pooled), run(stack, w, pooled), rtol=0.1)
