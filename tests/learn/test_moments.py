"""Moments that grow row by row, what is drawn from them, and the loss that forgives rare labels: number 16."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lanterne.learn import NO_LABEL, absorb, cross_entropy, drawn, logit_adjusted, no_moments, normal, topped_up
from lanterne.learn.moments import RIDGE, Moments

LABELS, WIDTH = 4, 3
KINDS = pytest.mark.parametrize("full", [False, True], ids=["variances", "covariances"])


def batches(n: int = 40, seed: int = 0) -> list[tuple[Tensor, Tensor, float]]:
    """Batches of unlike size and weight; the last label never comes, and the third not before batch 20."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        rows = int(torch.randint(1, 7, (), generator=g))
        x = 5.0 + torch.randn(rows, WIDTH, dtype=torch.float64, generator=g) * torch.tensor([1.0, 2.0, 0.5])
        found.append((x, torch.randint(0, 2 + (i >= 20), (rows,), generator=g), float(i + 1)))
    return found


def absorbed(found: list[tuple[Tensor, Tensor, float]], full: bool) -> Moments:
    moments = no_moments(LABELS, WIDTH, full=full)
    for x, y, weight in found:
        moments = absorb(moments, x, y, torch.tensor(math.log(weight), dtype=torch.float64))
    return moments


def of_all_rows(found: list[tuple[Tensor, Tensor, float]], label: int) -> tuple[Any, Any]:
    """NumPy's weighted mean and covariance of every row of a label."""
    x = torch.cat([x[y == label] for x, y, _ in found]).numpy()
    weights = np.concatenate([np.full(int((y == label).sum()), weight) for _, y, weight in found])
    centre = np.average(x, axis=0, weights=weights)
    return centre, np.cov(x.T, aweights=weights, ddof=0)


@KINDS
def test_16_incremental_moments_are_those_of_all_rows(full: bool) -> None:
    found = batches()
    moments = absorbed(found, full)
    for label in range(3):
        centre, covariance = of_all_rows(found, label)
        expected = covariance if full else covariance.diagonal()
        assert np.allclose(moments.mean[label], centre, rtol=0, atol=1e-12)
        assert np.allclose(moments.spread[label], expected, rtol=0, atol=1e-12)
        total = sum(weight * int((y == label).sum()) for _, y, weight in found)
        assert math.exp(moments.log_weight[label]) == pytest.approx(total, rel=1e-12)
    assert moments.log_weight[3] == -math.inf
    assert not moments.mean[3].any()
    assert not moments.spread[3].any()


def test_16_they_are_the_papers_update_row_by_row() -> None:
    """mu' = (S mu + s a) / (S + s), and the covariance likewise; nothing is added to its diagonal on the way."""
    mean, covariance, total = np.zeros(WIDTH), np.zeros((WIDTH, WIDTH)), 0.0
    found = batches(10)
    for x, y, weight in found:
        for a in x[y == 0].numpy():
            before, mean = mean, (total * mean + weight * a) / (total + weight)
            d, e = mean - before, mean - a
            spread = total * (covariance + np.outer(d, d)) + weight * np.outer(e, e)
            total += weight
            covariance = spread / total
    moments = absorbed(found, full=True)
    assert np.allclose(moments.mean[0], mean, rtol=0, atol=1e-12)
    assert np.allclose(moments.spread[0], covariance, rtol=0, atol=1e-12)


@KINDS
def test_16_only_ratios_of_weights_count_and_they_may_be_astronomical(full: bool) -> None:
    """exp(5000) is no number of a computer; its ratio to exp(4999) is."""
    found = batches(8)
    for far in (0.0, 5000.0):
        moments = no_moments(LABELS, WIDTH, full=full)
        for i, (x, y, _) in enumerate(found):
            moments = absorb(moments, x, y, torch.tensor(far + i, dtype=torch.float64))
        near = absorbed([(x, y, math.exp(i)) for i, (x, y, _) in enumerate(found)], full)
        assert torch.allclose(moments.mean, near.mean, rtol=0, atol=1e-11)
        assert torch.allclose(moments.spread, near.spread, rtol=0, atol=1e-11)


@KINDS
def test_what_is_drawn_has_the_moments(full: bool) -> None:
    moments = absorbed(batches(), full)
    rows = drawn(moments, normal(torch.tensor(3), (LABELS, 40_000, WIDTH)))
    for label in range(3):
        expected = moments.spread[label] if full else torch.diag(moments.spread[label])
        # Six standard errors of a mean and of a product of two normal numbers.
        variances = torch.diagonal(expected)
        assert ((rows[label].mean(0) - moments.mean[label]).abs() < 6 * (variances / 40_000).sqrt()).all()
        bound = 6 * torch.sqrt(2 * torch.outer(variances, variances) / 40_000) + RIDGE
        assert ((torch.cov(rows[label].T) - expected).abs() < bound).all()


def test_a_covariance_without_rank_can_be_drawn_from() -> None:
    """One row has none at all: what is drawn is that row, give or take the ridge."""
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    moments = absorb(no_moments(1, WIDTH, full=True), x, torch.tensor([0]), torch.tensor(0.0, dtype=torch.float64))
    rows = drawn(moments, normal(torch.tensor(0), (1, 100, WIDTH)))
    assert not moments.spread.any()
    assert (rows - x).abs().max() < 6 * RIDGE**0.5


def test_each_label_is_topped_up_to_so_many_rows() -> None:
    found = batches()
    moments = absorbed(found, full=False)
    x, y = torch.zeros(6, WIDTH), torch.tensor([0, 0, 0, 0, 1, 1])
    more, labels = topped_up(moments, x, y, 3, torch.tensor(7))
    assert more.dtype == x.dtype
    assert torch.equal(more[:6], x)
    assert torch.equal(labels[:6], y)
    made = labels[6:]
    # Four of label 0 are enough, one of label 1 lacks, three of label 2; label 3 has never been seen.
    assert [int((made == label).sum()) for label in range(LABELS)] == [0, 1, 3, 0]
    assert int((made == NO_LABEL).sum()) == 8
    for row, label in zip(more[6:], made, strict=True):
        if label != NO_LABEL:
            distance = (row - moments.mean[label]) / moments.spread[label].sqrt()
            assert distance.abs().max() < 6
    other, _ = topped_up(moments, x, y, 3, torch.tensor(8))
    assert not torch.equal(more, other)


def test_rows_without_a_label_count_for_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    output, labels = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.tensor([0, NO_LABEL, 2, NO_LABEL, 1])
    assert torch.equal(cross_entropy(output, labels), cross_entropy(output[::2], labels[::2]))


def test_logit_adjustment_by_hand() -> None:
    """-log of prior_y exp(o_y) / sum_c prior_c exp(o_c); an even prior changes nothing."""
    g = torch.Generator().manual_seed(0)
    output, labels = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    prior = torch.tensor([0.2, 0.8, 0.0], dtype=torch.float64)
    odds = prior * output.exp()
    expected = -(odds[torch.arange(5), labels] / odds.sum(1)).log().mean()
    assert torch.allclose(logit_adjusted(cross_entropy, prior)(output, labels), expected, rtol=0, atol=1e-12)
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    plain = cross_entropy(output, labels)
    assert torch.allclose(logit_adjusted(cross_entropy, even)(output, labels), plain, rtol=0, atol=1e-12)
    w = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logit_adjusted(cross_entropy, prior)(w, labels), w)
    assert torch.isfinite(gradient).all()
    assert not gradient[:, 2].any()


def test_normal_numbers_are_normal_and_streams_of_near_keys_are_unlike() -> None:
    n = 100_000
    streams = [normal(torch.tensor(key), (n,)) for key in (0, 1, 2, -(2**63), 2**63 - 1)]
    bound = 6 / math.sqrt(n)
    for z in streams:
        assert abs(float(z.mean())) < bound
        assert abs(float(z.square().mean()) - 1) < bound * math.sqrt(2)
        assert abs(float((z**3).mean())) < bound * math.sqrt(15)
        assert abs(float((z**4).mean()) - 3) < bound * math.sqrt(96)
        assert abs(float((z[1:] * z[:-1]).mean())) < bound
        for edge in (-2.0, -0.5, 0.5, 2.0):
            share = 0.5 * math.erfc(-edge / math.sqrt(2))
            assert abs(float((z < edge).double().mean()) - share) < 3 * bound
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert abs(float((a * b).mean())) < bound
            assert not set(a[:1000].tolist()) & set(b.tolist())


def test_normal_numbers_come_from_splitmix64() -> None:
    """The generator's published outputs for the seed 1234567: 6457827717110365317, 3203168211198807973, 98172..."""
    from statistics import NormalDist

    from lanterne.learn.noise import _INCREMENT, _mixed

    state = torch.tensor(1234567) + torch.arange(1, 4) * _INCREMENT
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [v % (1 << 64) for v in _mixed(state).tolist()] == published
    start = int(_mixed(torch.tensor(9)))
    word = int(_mixed(torch.tensor(start) + _INCREMENT)) % (1 << 64)
    expected = NormalDist().inv_cdf(((word >> 12) + 0.5) / (1 << 52))
    assert float(normal(torch.tensor(9), (1,))) == pytest.approx(expected, rel=1e-12)
