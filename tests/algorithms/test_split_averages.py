"""What averages of models must do, number 13 of section 9 of the specification, and the defect of section 7.2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from lanterne.learn import Update, coverage_mean
from lanterne.models import ParamView

Average = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def by_coverage(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """What all methods here average by, of models that have moved from 0: so that it would show what it did to them."""
    start = torch.zeros_like(models[0])
    view = ParamView(slice(0, start.numel()), ((tuple(start.shape),),))
    return coverage_mean(start, [Update(view, m, k) for m, k in zip(models, weights, strict=True)])


def into_the_last(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Section 7.2: the sum is written into the dictionary of the client that arrived last, which is summed as well."""
    total = models[-1]
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        if i == 0:
            total.copy_(model * (weight / sum(weights)))
        else:
            total.add_(model * (weight / sum(weights)))
    return total


def into_the_first(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The right number, in the memory of a client."""
    total = models[0].mul_(weights[0] / sum(weights))
    for model, weight in zip(models[1:], weights[1:], strict=True):
        total.add_(model, alpha=weight / sum(weights))
    return total


def by_all_who_were_asked(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Divided by one more than there are."""
    return sum(k * m for k, m in zip(weights, models, strict=True)) / (sum(weights) + 1)  # type: ignore[return-value]


def one_after_the_other(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """A running mean that gives each arrival half."""
    del weights
    mean = models[0].clone()
    for model in models[1:]:
        mean = 0.5 * (mean + model)
    return mean


def handed_through(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of one model alone, itself: whoever steps on the average steps on the client's memory."""
    return models[0] if len(models) == 1 else by_coverage(models, weights)


def faults(average: Average) -> set[str]:
    """What is wrong with an average."""
    found, g = set[str](), torch.Generator().manual_seed(0)
    for number in (1, 2, 3, 5):
        weights = [float(1 + k % 3) for k in range(number)]
        models = [torch.randn(7, dtype=torch.float64, generator=g) for _ in range(number)]
        kept = [m.clone() for m in models]
        right = torch.stack([k * m for k, m in zip(weights, kept, strict=True)]).sum(0) / sum(weights)
        result = average(models, weights)
        if not torch.allclose(result, right, rtol=0, atol=1e-12):
            found.add("value")
        if not all(torch.equal(a, b) for a, b in zip(models, kept, strict=True)):
            found.add("inputs")
        if any(result.data_ptr() == m.data_ptr() for m in models):
            found.add("memory")
        one = kept[0]
        if not torch.allclose(average([one.clone() for _ in kept], weights), one, rtol=0, atol=1e-12):
            found.add("identity")
        for order in permutations(range(number)):
            other = average([kept[i].clone() for i in order], [weights[i] for i in order])
            if not torch.allclose(other, result, rtol=0, atol=1e-12):
                found.add("order")
    return found


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (by_coverage, set[str]()),
        (into_the_last, {"value", "inputs", "memory", "identity", "order"}),
        (into_the_first, {"inputs", "memory"}),
        (by_all_who_were_asked, {"value", "identity"}),
        (one_after_the_other, {"value", "order"}),
        (handed_through, {"memory"}),
    ],
)
def test_13_averages_of_equals_are_equal_know_no_order_and_leave_the_models_alone(
    average: Average, expected: set[str]
) -> None:
    """Ours is right; each wrong one is found out, and by what."""
    assert faults(average) == expected


def test_13_models_that_are_equal_to_the_start_leave_it_to_the_bit() -> None:
    start = torch.tensor([0.1, -0.0, 1e-300, 3.0], dtype=torch.float64)
    view = ParamView(slice(0, 4), (((4,),),))
    found = coverage_mean(start, [Update(view, start - start, k) for k in (1.0, 3.0, 7.0)])
    assert torch.equal(found, start)


def test_13_the_sum_that_is_written_into_the_last_arrival() -> None:
    """The specification's number: 1.33 instead of 3.0; right if the first that is summed has arrived last."""
    values = (1.0, 2.0, 6.0)
    models = lambda: [torch.tensor([v], dtype=torch.float64) for v in values]  # noqa: E731
    assert float(by_coverage(models(), [1.0] * 3)) == pytest.approx(3.0, abs=1e-12)
    assert float(into_the_last(models(), [1.0] * 3)) == pytest.approx(4 / 3, abs=1e-12)
    assert float(into_the_first(models(), [1.0] * 3)) == pytest.approx(3.0, abs=1e-12)
