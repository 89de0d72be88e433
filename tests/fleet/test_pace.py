"""The probability of reaching a unit is the share of draws in which the clock reaches it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import gamma, kstest, poisson, truncnorm

from fleet.jobs import CONSTANT, PACES, steps, upload
from lanterne.fleet import (
    Device,
    Draw,
    ExponentialLayers,
    Job,
    Loaded,
    NormalTime,
    Pace,
    Slower,
    SometimesSlower,
    UniformDepth,
    reach,
    timing,
)

DRAWS = 1500
BLOCKS = 3
#: One step and two, the upload inside the deadline and after it, deadlines from hardly anything to nearly all.
JOBS = [
    Job(5, steps(BLOCKS, count), upload([4, 10, 20], BLOCKS), deadline, stop)
    for count, stop, deadlines in ((1, "arrive", (1.2, 2.5)), (2, "compute", (0.9, 2.2)))
    for deadline in deadlines
]


def device(pace: Pace | None) -> Device:
    return Device(flops=10.0, down=50.0, up=40.0, latency=0.1, overhead=0.05, pace=pace)


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{len(job.work)} units, {job.deadline} s, {job.stop}")
def test_reach_is_the_share_of_draws(pace: Pace | None, job: Job) -> None:
    d, n = device(pace), len(job.work)
    done = np.array([timing(d, job, Draw(1, 2, r, r)).units for r in range(DRAWS)], dtype=object)
    done = np.array([n if units is None else units for units in done])
    q = reach(d, job)
    share = (done[:, None] > np.arange(n)).mean(axis=0)
    error = np.sqrt(q * (1 - q) / DRAWS)
    assert (np.abs(share - q) <= 4 * error).all(), (share, q)  # and exact where the probability is 0 or 1
    assert (np.diff(q) <= 0).all()
    if pace in CONSTANT.values():
        assert set(q.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("pace", [p for p in PACES.values() if p not in CONSTANT.values()])
def test_the_cases_are_not_trivial(pace: Pace) -> None:
    """For every pace that varies some probability is neither 0 nor 1, so that a wrong one would be seen."""
    assert any(((q > 0.05) & (q < 0.95)).any() for q in (reach(device(pace), job) for job in JOBS))


def test_the_wrong_variant_has_the_reach_of_another_pace() -> None:
    job = JOBS[1]
    wrong = reach(device(Loaded(5.0)), job) - reach(device(Loaded(4.0)), job)
    assert np.abs(wrong).max() > 4 * 0.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
@pytest.mark.parametrize("count", [1, 3])
def test_expected_is_the_mean_of_draws(pace: Pace | None, count: int) -> None:
    d, work = device(pace), steps(BLOCKS, count)
    times = np.array([d.whole(work, Draw(7, 2, r, r)) for r in range(DRAWS)])
    assert abs(times.mean() - d.expected(work)) <= 4 * times.std() / math.sqrt(DRAWS) + 1e-12 * times.mean()
    assert d.expected(steps(BLOCKS, 0)) == 0.0


# ---------------------------------------------------------------------------------------------------- each law
def test_slower_is_a_factor() -> None:
    work = steps(2)
    assert device(Slower(3.0)).finished(work, Draw(0, 0, 0, 0)).tolist() == (3.0 * device(None).steady(work)).tolist()
    with_overhead = Device(flops=10.0, overhead=1.0).finished(steps(1, 3), Draw(0, 0, 0, 0))
    assert with_overhead.tolist() == pytest.approx([1.1, 1.3, 2.6, 2.7, 3.9, 4.2])  # once a batch, at its first unit


def test_who_straggles_is_drawn_per_client_and_round_and_not_per_request() -> None:
    pace = SometimesSlower(0.4, 5.0)
    slow = np.array([[pace.slow(Draw(3, client, r, 0)) for r in range(60)] for client in range(60)])
    assert abs(slow.mean() - 0.4) < 4 * math.sqrt(0.24 / slow.size)
    assert (slow != slow[0]).any()
    assert (slow != slow[:, :1]).any()
    assert all(pace.slow(Draw(3, 5, 6, nth)) == slow[5, 6] for nth in range(9))
    assert any(pace.slow(Draw(4, c, 0, 0)) != slow[c, 0] for c in range(60))


def test_a_load_leaves_a_share_that_is_uniform() -> None:
    d, work = device(Loaded(4.0)), steps(2)
    whole = float(device(None).steady(work)[-1])
    shares = [whole / d.whole(work, Draw(0, 1, r, 0)) for r in range(1000)]
    assert kstest(shares, "uniform", args=(0.25, 0.75)).pvalue > 1e-4
    assert kstest(shares, "uniform", args=(0.2, 0.8)).pvalue < 1e-4


@pytest.mark.parametrize("spread", [0.05, 0.8])
def test_a_normal_time_is_drawn_again_while_it_is_negative(spread: float) -> None:
    d, work = device(NormalTime(spread)), steps(2)
    whole = float(device(None).steady(work)[-1])
    factors = [d.whole(work, Draw(0, 1, r, 0)) / whole for r in range(2000)]
    assert kstest(factors, truncnorm(-1 / spread, math.inf, 1.0, spread).cdf).pvalue > 1e-4
    assert kstest(factors, truncnorm(-1 / spread, math.inf, 1.0, 1.4 * spread).cdf).pvalue < 1e-4
    assert d.expected(work) / whole == pytest.approx(truncnorm(-1 / spread, math.inf, 1.0, spread).mean())
    again = [d.whole(work, Draw(0, 1, 7, nth)) for nth in range(5)]
    assert len(set(again)) == 1  # of a round, not of a request


@pytest.mark.parametrize(("mean", "seconds"), [(0.4, 1.0), (1.0, 2.5), (2.0, 0.3)])
def test_layers_in_time_are_poisson(mean: float, seconds: float) -> None:
    """`P[min(Poisson(T / mean), L) >= l]`; the forward passes take no time."""
    layers = 5
    d = Device(pace=ExponentialLayers(mean))
    q = reach(d, Job(0, steps(layers), lambda k: 0, seconds))
    assert q.tolist() == pytest.approx([1.0] * layers + [poisson.sf(k, seconds / mean) for k in range(layers)])
    assert q[-1] == pytest.approx(gamma.cdf(seconds, layers, scale=mean))  # the sum of L exponential times
    times = [d.finished(steps(layers), Draw(0, 0, 0, nth)) for nth in range(500)]
    assert all((t[:layers] == 0).all() for t in times)
    gaps = np.concatenate([np.diff(t[layers - 1 :]) for t in times])
    assert kstest(gaps, "expon", args=(0, mean)).pvalue > 1e-4


@pytest.mark.parametrize(("minimum", "maximum"), [(1, 4), (0, 4), (2, 3), (4, 4)])
def test_depths_in_time_are_uniform(minimum: int, maximum: int) -> None:
    layers, within = 4, 2.0
    d = Device(pace=UniformDepth(within, minimum, maximum))
    job = Job(0, steps(layers), lambda k: 0, within)
    depths = []
    for r in range(2000):
        units = timing(d, job, Draw(0, 1, r, 0)).units
        depths.append(layers if units is None else units - layers)
    share = np.bincount(depths, minlength=layers + 1) / len(depths)
    wanted = np.array([float(minimum <= depth <= maximum) for depth in range(layers + 1)]) / (maximum - minimum + 1)
    assert (np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / len(depths))).all()
    assert reach(d, job).tolist() == pytest.approx([1.0] * layers + np.cumsum(wanted[:0:-1])[::-1].tolist())


@pytest.mark.parametrize("pace", [p for p in PACES.values() if p is not None])
def test_draws_are_functions_of_seed_and_client(pace: Pace) -> None:
    work = steps(2)
    d = device(pace)
    for draw in (Draw(0, 1, 2, 3), Draw(5, 1, 2, 3), Draw(0, 4, 2, 3)):
        assert d.finished(work, draw).tolist() == d.finished(work, draw).tolist()
    if pace not in CONSTANT.values():
        assert len({d.whole(work, Draw(seed, 1, 2, 3)) for seed in range(20)}) > 1
        assert len({d.whole(work, Draw(0, client, 2, 3)) for client in range(20)}) > 1
