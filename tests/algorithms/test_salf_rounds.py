"""SALF and its baselines on the clock: invariants 12 to 18 of the specification, by their numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, poisson

from lanterne.algorithms import Drop, FedAvg, Salf
from lanterne.budget import Clock, Units
from lanterne.fleet import Device, Draw, ExponentialLayers, Fleet, Job, Slower, Work, preset, timing
from lanterne.learn import budgeted_sgd, local_sgd
from lanterne.models import full
from lanterne.runtime import Loop, Simulator
from lanterne.testing import simulate, tiny_cnn, tiny_mlp, tiny_problem, uneven_fleet
from lanterne.tree import digest

LAYERS = 3


def histogram(mean: float, deadline: float, layers: int, draws: int) -> np.ndarray:
    """How often each depth was reached on the exponential clock."""
    work = Work((1.0,) * (2 * layers), (False,) * layers + (True,) * layers, (True,) + (False,) * (2 * layers - 1))
    device, counts = Device(pace=ExponentialLayers(mean)), np.zeros(layers + 1)
    for i in range(draws):
        units = timing(device, Job(0, work, lambda _: 0, deadline=deadline), Draw(7, i, 0, 0)).units
        counts[layers if units is None else max(units - layers, 0)] += 1
    return counts


def law(ratio: float, layers: int, shift: int = 0) -> np.ndarray:
    """min(shift + Poisson(ratio), layers)."""
    chance = np.zeros(layers + 1)
    for k in range(200):
        chance[min(k + shift, layers)] += poisson.pmf(k, ratio)
    return chance / chance.sum()


@pytest.mark.parametrize(("mean", "deadline", "layers"), [(1.0, 1.0, 3), (0.5, 1.5, 6), (2.0, 8.0, 8)])
def test_12_depths_on_the_exponential_clock_are_poisson(mean: float, deadline: float, layers: int) -> None:
    counts = histogram(mean, deadline, layers, 6000)
    expected = law(deadline / mean, layers) * counts.sum()
    assert chisquare(counts, expected).pvalue > 1e-3
    wrong = law(deadline / mean, layers, shift=1) * counts.sum()  # the authors' first follow-up drew 1 + Poisson
    wrong += (counts.sum() - wrong.sum() + 1e-9 * len(counts)) / len(counts)
    assert chisquare(counts + 1e-9, wrong).pvalue < 1e-6


# ---------------------------------------------------------------------------------------------------- 13
@pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
def test_13_reached_blocks_have_the_bits_of_the_full_pass(stack, momentum: float, steps: int) -> None:
    problem = tiny_problem(stack=stack)
    task, w = problem.task, problem.w
    rows = torch.from_numpy(problem.streams.rows(3, range(steps)))
    x, y = problem.data.x[rows], problem.data.y[rows]
    for units in range(2 * len(stack) * steps + 1):
        whole, rest = divmod(units, 2 * len(stack))
        depth = max(rest - len(stack), 0)
        full_w = [
            local_sgd(task, full(stack), w, x[:k], y[:k], 0.1, momentum)[0] for k in (whole, min(whole + 1, steps))
        ]
        start = stack.edges[len(stack) - depth]
        for budget in (Units(units), counting_clock(units, whole, len(stack))):
            found, _, done = budgeted_sgd(task, w, x, y, 0.1, budget, momentum)
            assert torch.equal(found[start:], full_w[1][start:] if depth else full_w[0][start:])
            assert torch.equal(found[:start], full_w[0][:start])
            assert done == whole * len(stack) + depth


def counting_clock(units: int, whole: int, blocks: int) -> Clock:
    """A clock with time for so many units."""
    left = [units]

    def allows() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return Clock(allows)


def test_13_velocity_of_unreached_blocks_stays() -> None:
    problem = tiny_problem()
    rows = torch.from_numpy(problem.streams.rows(0, range(1)))
    m = torch.arange(float(problem.stack.size), dtype=torch.float64)
    _, after, _ = budgeted_sgd(
        problem.task, problem.w, problem.data.x[rows], problem.data.y[rows], 0.1, Units(LAYERS + 1), 0.5, m
    )
    edge = problem.stack.edges[-2]
    assert torch.equal(after[:edge], m[:edge])
    assert not torch.equal(after[edge:], m[edge:])


# ---------------------------------------------------------------------------------------------------- 14
def test_14_relabelling_users_changes_nothing() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    order = [3, 0, 5, 1, 4, 2]

    class Relabelled(type(problem.streams)):  # the batches move with their owner
        def rows(self, client: int, steps: range) -> np.ndarray:
            return problem.streams.rows(order[client], steps)

        def samples(self, client: int) -> int:
            return problem.streams.samples(order[client])

    moved = replace(fleet, devices=[fleet.devices[c] for c in order])
    make = lambda s: Salf(stack=s, lr=0.3, deadline=0.03)  # noqa: E731
    expected, _ = simulate(make, problem, fleet, 4)
    algorithm, executor = make(problem.stack), Loop(problem.task, problem.data.x, problem.data.y)
    simulator = Simulator(algorithm, moved, executor, Relabelled(problem.rows, problem.batch, 0), dtype=torch.float64)
    state = algorithm.init(problem.w)
    for _ in range(4):
        state = simulator.round(algorithm, state)
    executor.close()
    assert torch.allclose(state.w, expected, rtol=0, atol=1e-13)
    assert not torch.equal(expected, problem.w)


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_14_scaling_all_times_leaves_depths(scale: float) -> None:
    problem = tiny_problem()
    found = []
    for factor in (1.0, scale):
        fleet = preset("exponential-layers", mean=0.5 * factor).build(6, 3, LAYERS)
        w, simulator = simulate(lambda s, f=factor: Salf(stack=s, lr=0.3, deadline=1.0 * f), problem, fleet, 5)
        found.append((digest({"w": w}), [r["units"] for r in simulator.timeline], simulator.now / factor))
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------- 15, 16
def test_15_drop_over_arrivals_is_fedavg_over_them() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    _, simulator = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, fleet, 1)
    times = sorted(r["arrived"] for r in simulator.timeline)
    for k in range(7):
        deadline = (times[k - 1] + times[min(k, 5)]) / 2 if 0 < k < 6 else (times[0] / 2 if k == 0 else times[-1])
        in_time = [r["client"] for r in simulator.timeline if r["arrived"] <= deadline]
        found, _ = simulate(lambda s, d=deadline: Drop(stack=s, lr=0.3, deadline=d), problem, fleet, 1)
        if not in_time:
            assert torch.equal(found, problem.w)
            continue
        gone = replace(
            fleet, devices=[d if c in in_time else replace(d, dropout=1.0) for c, d in enumerate(fleet.devices)]
        )
        expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, gone, 1)
        assert torch.equal(found, expected)
        coded, _ = simulate(
            lambda s, d=deadline: Drop(stack=s, lr=0.3, deadline=d, rule="code", weights="equal"), problem, fleet, 1
        )
        equal, _ = simulate(lambda s, d=deadline: Drop(stack=s, lr=0.3, deadline=d, weights="equal"), problem, fleet, 1)
        assert torch.allclose(coded - problem.w, (equal - problem.w) * len(in_time) / 6, rtol=0, atol=1e-15)
        assert torch.equal(coded, equal) == (len(in_time) == 6)


def test_16_without_stragglers_all_three_are_one() -> None:
    problem = tiny_problem()
    fleet = preset("stragglers", share=0.0, flops=1e5).build(6, 1, LAYERS)
    _, simulator = simulate(lambda s: Salf(stack=s, lr=0.3), problem, fleet, 1)
    deadline = simulator.now
    salf, _ = simulate(lambda s: Salf(stack=s, lr=0.3, deadline=deadline), problem, fleet, 4)
    drop, _ = simulate(lambda s: Drop(stack=s, lr=0.3, deadline=deadline), problem, fleet, 4)
    fedavg, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, fleet, 4)
    assert torch.equal(salf, fedavg)
    assert torch.equal(drop, fedavg)


def test_16_everybody_too_slow_changes_nothing() -> None:
    problem = tiny_problem()
    fleet = preset("stragglers", share=1.0, load="constant", slowdown=1e6).build(6, 1, LAYERS)
    for make in (lambda s: Salf(stack=s, deadline=0.1), lambda s: Drop(stack=s, deadline=0.1)):
        found, simulator = simulate(make, problem, fleet, 3)
        assert torch.equal(found, problem.w)
        assert simulator.now == pytest.approx(0.3)


# ---------------------------------------------------------------------------------------------------- 17, 18
def test_17_rounds_last_exactly_the_deadline_and_waiting_lasts_the_slowest() -> None:
    problem, rounds, deadline = tiny_problem(), 5, 0.0625
    fleet = Fleet([Device(flops=1e5, down=1e6, up=1e6, pace=Slower(8.0) if c else None) for c in range(6)])
    for make in (lambda s: Salf(stack=s, deadline=deadline), lambda s: Drop(stack=s, deadline=deadline)):
        _, simulator = simulate(make, problem, fleet, rounds)
        assert simulator.now == rounds * deadline
    _, simulator = simulate(lambda s: FedAvg(stack=s), problem, fleet, rounds)
    slowest = max(r["arrived"] - r["sent"] for r in simulator.timeline if r["round"] == 1)
    assert simulator.now == pytest.approx(rounds * slowest, rel=1e-12)
    assert simulator.now > rounds * deadline


def test_17_the_upload_may_be_allowed_after_the_deadline() -> None:
    problem, fleet = tiny_problem(), Fleet([Device(flops=3e4, up=1e4) for _ in range(2)])
    _, inside = simulate(lambda s: Salf(stack=s, deadline=0.08), problem, _first(fleet), 1)
    _, after = simulate(lambda s: Salf(stack=s, deadline=0.08, upload="after"), problem, _first(fleet), 1)
    assert inside.now == 0.08
    assert after.now > 0.08
    assert after.timeline[0]["units"] > inside.timeline[0]["units"]


def _first(fleet: Fleet) -> Fleet:
    return replace(fleet, devices=[fleet.devices[c % len(fleet)] for c in range(6)])


def test_18_uploads_shrink_with_depth() -> None:
    problem = tiny_problem()
    edges, seen = problem.stack.edges, set()
    for deadline in np.linspace(0.005, 0.08, 12):
        _, simulator = simulate(lambda s, d=float(deadline): Salf(stack=s, deadline=d), problem, uneven_fleet(), 1)
        for r in simulator.timeline:
            depth = max(r["units"] - LAYERS, 0)
            seen.add(-1 if r["outcome"] == "lost" else depth)
            sent = simulator.ledger[r["client"]].bytes
            if r["outcome"] == "lost":  # the model has not come through by the deadline: there is nothing to send
                assert r["downloaded"] == deadline
                assert not sent["model_up"] + sent["scalar_up"]
                assert sent["model_down"] < 8 * edges[-1]
                continue
            assert sent["model_up"] == 8 * (edges[-1] - edges[LAYERS - depth])
            assert sent["scalar_up"] == 8
            assert sent["model_down"] == 8 * edges[-1]
    assert seen == {-1, 0, 1, 2, 3}


# ---------------------------------------------------------------------------------- what reviews found
@pytest.mark.parametrize("rule", ["paper", "ht"])
def test_counting_invents_no_empty_rounds_without_a_deadline(rule) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, fleet, 3)
    found, _ = simulate(lambda s: Salf(stack=s, lr=0.3, p="empirical", rule=rule), problem, fleet, 3)
    assert torch.equal(found, expected)


def test_the_chance_to_be_heard_counts_losses() -> None:
    """Horvitz-Thompson stays unbiased when requests are lost: q = 1/2 for everybody, over many draws."""
    problem = tiny_problem(same=True)
    calm = Fleet([Device(flops=1e6)] * 6)
    whole, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, calm, 1)
    full_step = float((whole - problem.w).norm())
    ratios = []
    for seed in range(300):
        lossy = Fleet([Device(flops=1e6, dropout=0.5)] * 6, seed=seed)
        make = lambda s: Salf(stack=s, lr=0.3, rule="ht", deadline=10.0, weights="equal")  # noqa: E731
        w, _ = simulate(make, problem, lossy, 1)
        ratios.append(float((w - problem.w).norm()) / full_step)
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1.0) < 4 * error
    assert error < 0.05
