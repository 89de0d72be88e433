"""SALF's aggregation: invariants 1 to 9 of the specification, by their numbers.

Each names the variant that it catches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lanterne.algorithms import FedAvg, Salf
from lanterne.models import LayerStack
from lanterne.protocol import Reply, Request
from lanterne.testing import simulate, tiny_problem, uneven_fleet

RULES = ("paper", "cond", "code", "ht")


def stack_of(layers: int) -> LayerStack:
    """Layers of one parameter each: block b is coordinate b."""
    return LayerStack(nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(layers))).double(), (1,))


def aggregate(
    salf: Salf,
    w: Tensor,
    depths: Sequence[int],
    deltas: Tensor,
    p: Sequence[float],
    q: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """The next weights when client u has reached `depths[u]` blocks with `deltas[u]`."""
    layers = len(salf.stack)
    replies = [
        Reply(Request(u, "train"), 0.0, "partial", {"delta": deltas[u, layers - d :], "reached": torch.tensor(d)})
        for u, d in enumerate(depths)
    ]
    counts = {u: salf._steps(d) for u, d in enumerate(depths)}
    chances = {u: list(q[u]) if q else [1.0] * layers for u in range(len(depths))}
    return salf._aggregate(salf.init(w), replies, counts, dict.fromkeys(range(len(depths)), 1.0), p, chances)[0]


def literal(w: Tensor, depths: Sequence[int], deltas: Tensor, p: Sequence[float]) -> Tensor:
    """Section 2.1 as it stands: 1/(1-p) (mean w_u - p w), layer by layer."""
    layers, out = len(w), w.clone()
    for l in range(layers):  # noqa: E741
        reached = [u for u, d in enumerate(depths) if d >= layers - l]
        if reached:
            mean = sum(w[l] + deltas[u, l] for u in reached) / len(reached)
            out[l] = (mean - p[l] * w[l]) / (1 - p[l])
    return out


# ---------------------------------------------------------------------------------------------------- 1, 2
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("weights", "steps", "dtype"),
    [("equal", 1, torch.float64), ("samples", 3, torch.float64), ("samples", 1, torch.float32)],
)
@pytest.mark.parametrize(("deadline", "p"), [(math.inf, "auto"), (10.0, "auto"), (10.0, "zero")])
def test_1_without_stragglers_every_rule_is_fedavg_bit_for_bit(
    rule: Any, weights: Any, steps: int, dtype: torch.dtype, deadline: float, p: Any
) -> None:
    """Exactly, for all four: weights are whole numbers, so the sum over the invited, by which `code` and `ht` divide,
    has the bits of the sum over the arrivals; a factor of 1 changes nothing; and all divide the same sum of deltas.
    """
    problem, fleet = tiny_problem(dtype=dtype), uneven_fleet()
    common: Any = {"lr": 0.3, "local_steps": steps, "weights": weights}
    expected, _ = simulate(lambda s: FedAvg(stack=s, **common), problem, fleet, 3)
    make = lambda s: Salf(stack=s, rule=rule, deadline=deadline, p=p, **common)  # noqa: E731
    found, simulator = simulate(make, problem, fleet, 3)
    assert torch.equal(found, expected)
    assert simulator.ledger.total.wasted == 0


@pytest.mark.parametrize("rule", RULES)
def test_1_the_wrong_variant_an_interrupted_client_is_not_fedavg(rule: Any) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    expected, simulator = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, fleet, 1)
    last = max(r["arrived"] for r in simulator.timeline)
    found, simulator = simulate(lambda s: Salf(stack=s, lr=0.3, rule=rule, deadline=0.99 * last), problem, fleet, 1)
    assert sum(r["outcome"] == "partial" for r in simulator.timeline) == 1
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("rule", ["paper", "ht"])
def test_1_counting_is_sure_of_nothing_before_it_has_counted(rule: Any) -> None:
    """The one exception: with a deadline, a counted p begins at 1/2 and q too, as Laplace has it, whoever comes."""
    problem, fleet = tiny_problem(), uneven_fleet()
    whole, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, fleet, 1)
    make = lambda s: Salf(stack=s, lr=0.3, rule=rule, p="empirical", deadline=10.0)  # noqa: E731
    found, _ = simulate(make, problem, fleet, 1)
    assert torch.allclose(found - problem.w, 2 * (whole - problem.w), rtol=0, atol=1e-15)


def test_2_one_step_on_equal_shards_averages_gradients() -> None:
    problem = tiny_problem()
    found, _ = simulate(lambda s: Salf(stack=s, lr=0.3, weights="equal"), problem, uneven_fleet(), 1)
    gradients = []
    for c in range(len(problem.rows)):
        rows = torch.from_numpy(problem.streams.rows(c, range(1)))[0]
        task = problem.task
        gradients.append(task.gradient(task.stack.span(0, 3), problem.w, problem.data.x[rows], problem.data.y[rows]))
    assert torch.allclose(found, problem.w - 0.3 * torch.stack(gradients).mean(0), rtol=0, atol=1e-15)
    assert not torch.allclose(found, problem.w - 0.3 * torch.stack(gradients).sum(0), rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- 3, 4, 5
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.floats(0, 0.999), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_3_an_empty_layer_keeps_its_bits(depths: list[int], p: list[float]) -> None:
    stack, w = stack_of(3), torch.tensor([0.1, -0.0, 0.3], dtype=torch.float64)
    deltas = torch.ones(len(depths), 3, dtype=torch.float64)
    for rule in RULES:
        out = aggregate(Salf(stack=stack, rule=rule), w, depths, deltas, p)
        assert bool(torch.isfinite(out).all())
        for l in range(3):  # noqa: E741
            if max(depths) < 3 - l:
                assert out[l].view(torch.int64) == w[l].view(torch.int64)
            else:
                assert out[l] != w[l]


def test_3_also_when_p_is_one() -> None:
    w = torch.zeros(2, dtype=torch.float64)
    out = aggregate(Salf(stack=stack_of(2)), w, [1], torch.ones(1, 2, dtype=torch.float64), [1.0, 0.0])
    assert out.tolist() == [0.0, 1.0]


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=6),
    st.lists(st.floats(0, 0.85), min_size=4, max_size=4),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_4_the_delta_form_is_the_literal_form(depths: list[int], p: list[float], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, generator=g, dtype=torch.float64)
    deltas = torch.randn(len(depths), 4, generator=g, dtype=torch.float64)
    found = aggregate(Salf(stack=stack_of(4)), w, depths, deltas, p)
    assert torch.allclose(found, literal(w, depths, deltas, p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "p", "expected"),
    [("code", (0.0, 0.0), (1, 6)), ("cond", (0.0, 0.0), (2, 6)), ("paper", (0.5, 0.0), (4, 6))],
)
def test_5_hand_fixture(rule: Any, p: tuple[float, ...], expected: tuple[float, ...]) -> None:
    deltas = torch.tensor([[2.0, 4.0], [math.nan, 8.0]], dtype=torch.float64)
    out = aggregate(Salf(stack=stack_of(2), rule=rule), torch.zeros(2, dtype=torch.float64), [2, 1], deltas, p)
    assert out.tolist() == list(expected)


def test_shrinkage_goes_from_the_mean_over_contributors_to_the_division_by_all() -> None:
    deltas, w = torch.tensor([[2.0, 4.0], [0.0, 8.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for s, expected in ((0.0, 2.0), (0.5, 1.5), (1.0, 1.0)):
        out = aggregate(Salf(stack=stack_of(2), rule="cond", shrinkage=s), w, [2, 1], deltas, (0.0, 0.0))
        assert out.tolist() == [expected, 6.0]


def test_the_factor_is_capped_and_counted() -> None:
    salf, w = Salf(stack=stack_of(1), factor_cap=10.0), torch.zeros(1, dtype=torch.float64)
    arrays = {"delta": torch.ones(1, dtype=torch.float64), "reached": torch.tensor(1)}
    replies = [Reply(Request(0, "train"), 0.0, "complete", arrays)]
    out, capped = salf._aggregate(salf.init(w), replies, {0: [1]}, {0: 1.0}, [0.99], {})
    assert out.item() == 10.0
    assert capped == 1


# ------------------------------------------------------------------------------------- 6, 7, 8, 9: exact expectations
def expectation(
    salf: Salf, law: Sequence[float], users: int, deltas: Tensor, statistic: Callable[[Tensor, Sequence[int]], Tensor]
) -> Tensor:
    """The exact mean of a statistic over all depths of all users, drawn independently from one law: no sampling."""
    layers = len(salf.stack)
    q = [sum(law[layers - l :]) for l in range(layers)]  # noqa: E741
    p = [(1 - x) ** users for x in q]
    w = torch.zeros(layers, dtype=torch.float64)
    total = torch.zeros(layers, dtype=torch.float64)
    for depths in product(range(layers + 1), repeat=users):
        chance = math.prod(law[d] for d in depths)
        total += chance * statistic(aggregate(salf, w, depths, deltas, p, [q] * users), depths)
    return total


LAW = (0.3, 0.4, 0.2, 0.1)  # of depths 0..3
DELTAS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.5, 1.5], [-1.0, 4.0, 2.5], [0.7, 0.2, -0.9]], dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
def test_6_expectation_of_every_rule(rule: Any) -> None:
    """Corrected, the delta is unbiased, as is `ht`; uncorrected it is (1 - p) of the mean, divided by all q of it."""
    salf = Salf(stack=stack_of(3), rule=rule, factor_cap=1e9)
    q = torch.tensor([sum(LAW[3 - l :]) for l in range(3)], dtype=torch.float64)  # noqa: E741
    p = (1 - q) ** 4
    ones = torch.ones(3, dtype=torch.float64)
    scale = {"paper": ones, "cond": 1 - p, "code": q, "ht": ones}
    found = expectation(salf, LAW, 4, DELTAS, lambda w, _: w)
    assert torch.allclose(found, scale[rule] * DELTAS.mean(0), rtol=1e-12, atol=1e-12)
    for other in RULES:
        if not torch.allclose(scale[other], scale[rule]):
            assert not torch.allclose(found, scale[other] * DELTAS.mean(0), rtol=1e-3)


def test_7_conditional_on_somebody_the_mean_is_unbiased() -> None:
    salf = Salf(stack=stack_of(3), rule="cond")
    seen = torch.zeros(3, dtype=torch.float64)

    def given_somebody(w: Tensor, depths: Sequence[int]) -> Tensor:
        return torch.where(torch.tensor([max(depths) >= 3 - l for l in range(3)]), w, 0.0)  # noqa: E741

    q = torch.tensor([sum(LAW[3 - l :]) for l in range(3)], dtype=torch.float64)  # noqa: E741
    seen = expectation(salf, LAW, 4, DELTAS, given_somebody) / (1 - (1 - q) ** 4)
    assert torch.allclose(seen, DELTAS.mean(0), rtol=1e-12, atol=1e-12)


def test_8_mean_squared_error_is_the_closed_form() -> None:
    salf, mean = Salf(stack=stack_of(3), factor_cap=1e9), DELTAS.mean(0)
    found = expectation(salf, LAW, 4, DELTAS, lambda w, _: (w - mean) ** 2)
    spread = ((DELTAS - mean) ** 2).mean(0)
    for l in range(3):  # noqa: E741
        q = sum(LAW[3 - l :])
        p = (1 - q) ** 4
        count = [math.comb(4, k) * q**k * (1 - q) ** (4 - k) for k in range(5)]
        between = sum(count[k] * (4 - k) / (k * 3) for k in range(1, 5)) * float(spread[l]) / (1 - p) ** 2
        assert float(found[l]) == pytest.approx(between + p / (1 - p) * float(mean[l]) ** 2, rel=1e-12)
        assert float(found[l]) != pytest.approx(between, rel=1e-3)  # without the price of empty rounds


def test_9_with_unlike_users_ht_is_unbiased_and_the_mean_is_not() -> None:
    """The fixture of section 2.2: six users, one layer, q = .9 .8 .5 .3 .2 .1; expectation over all 2^6 outcomes."""
    q = [0.9, 0.8, 0.5, 0.3, 0.2, 0.1]
    deltas = torch.tensor([[0.9], [0.6], [0.2], [-0.3], [-0.4], [-0.292]], dtype=torch.float64)
    found = {}
    for rule in ("ht", "paper"):
        salf, total = Salf(stack=stack_of(1), rule=rule, factor_cap=1e9), 0.0
        p = math.prod(1 - x for x in q)
        for depths in product((0, 1), repeat=6):
            chance = math.prod(x if d else 1 - x for x, d in zip(q, depths, strict=True))
            out = aggregate(salf, torch.zeros(1, dtype=torch.float64), depths, deltas, [p], [[x] for x in q])
            total += chance * float(out)
        found[rule] = total
    target = float(deltas.mean())
    assert found["ht"] == pytest.approx(target, abs=1e-12)
    assert abs(found["paper"] - target) > 0.1  # biased towards the fast


# ---------------------------------------------------------------------------------------------------- counts
def test_several_steps_have_different_counts_per_layer() -> None:
    salf = Salf(stack=stack_of(3), local_steps=4)
    assert salf._steps(3 * 2 + 1) == [2, 2, 3]
    assert np.all(np.array(salf._steps(12)) == 4)
    by_steps = replace(salf, by_steps=True, rule="cond")
    arrays = {"delta": torch.ones(3, dtype=torch.float64), "reached": torch.tensor(7)}
    replies = [Reply(Request(0, "train"), 0.0, "partial", arrays)]
    state = by_steps.init(torch.zeros(3, dtype=torch.float64))
    out, _ = by_steps._aggregate(state, replies, {0: [2, 2, 3]}, {0: 1.0}, [0.0] * 3, {})
    assert out.tolist() == [2.0, 2.0, 4 / 3]
