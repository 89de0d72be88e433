"""TimelyFL: invariant 19 of the specification, the workloads of section 9.7, and its update written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lanterne.algorithms import FedAvg, TimelyFL, timelyfl
from lanterne.algorithms.timelyfl import Estimate, Work
from lanterne.fleet import Device, Fleet, Slower, preset
from lanterne.models import full
from lanterne.runtime import Simulator
from lanterne.testing import Problem, run_in_process, simulate, tiny_mlp, tiny_problem, uneven_fleet

LAYERS = 3


# ---------------------------------------------------------------------------------------------------- 19
@pytest.mark.parametrize("options", [{}, {"local_steps": 3, "momentum": 0.5}, {"cohort": 6, "weights": "equal"}])
@pytest.mark.parametrize("estimate", ["known", "probe"])
@pytest.mark.parametrize("target", [0.1, 0.5, 1.0])
def test_19_where_all_devices_are_alike_it_is_fedavg_bit_for_bit(
    options: dict[str, Any], estimate: Any, target: float
) -> None:
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5, down=1e5, up=7e4, latency=0.003)] * 6)
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3, **options), problem, fleet, 4)
    make = lambda s: TimelyFL(stack=s, lr=0.3, estimate=estimate, target=target, **options)  # noqa: E731
    found, simulator = simulate(make, problem, fleet, 4)
    assert torch.equal(found, expected)
    assert simulator.ledger.total.wasted == 0
    uneven = replace(fleet, devices=[Device(flops=1e5 * (c + 1)) for c in range(6)])
    other, _ = simulate(make, problem, uneven, 4)
    assert not torch.equal(other, expected)


# ---------------------------------------------------------------------------------------------------- workloads
positive = st.floats(1e-3, 1e3)
fleets = st.lists(st.tuples(positive, positive), min_size=1, max_size=12)


def unknown(client: int, depth: int) -> float:
    """Nobody is to ask how long a part takes."""
    raise AssertionError(client, depth)


@given(fleets, st.floats(0.01, 1))
def test_workloads_are_those_of_section_9_7(times: list[tuple[float, float]], target: float) -> None:
    method = TimelyFL(stack=tiny_mlp(), target=target, partial="share")
    estimates = {c: Estimate(cmp + com, com) for c, (cmp, com) in enumerate(times)}
    interval, work = method.fit(estimates, unknown)
    k = math.ceil(target * len(times))
    totals = [cmp + com for cmp, com in times]
    assert interval == sorted(totals)[k - 1]
    assert sum(w.depth == LAYERS for w in work.values()) >= k
    for c, total in enumerate(totals):
        (_, com), share = times[c], min(interval / total, 1.0)
        assert 0 < share <= 1
        whole = lambda x: max(math.floor(x * timelyfl.ROUNDING), 1)  # noqa: E731
        assert work[c].depth == (whole(share * LAYERS) if share < 1 else LAYERS)
        assert work[c].epochs == (whole((interval - com) / (total - com)) if share == 1 else 1)
        # Who does more than one epoch is done in time all the same.
        assert work[c].epochs == 1 or com + work[c].epochs * (total - com) <= interval * (1 + 1e-8)
    capped = replace(method, max_epochs=2).fit(estimates, unknown)[1]
    assert all(capped[c] == Work(min(w.epochs, 2), w.depth) for c, w in work.items())


@given(fleets, st.floats(0.01, 1), st.floats(0, 1))
def test_fitted_layers_are_the_most_that_are_in_time(
    times: list[tuple[float, float]], target: float, fixed: float
) -> None:
    """`fixed` is the share of the computation that is there whatever is trained: the forward pass."""

    def seconds(client: int, depth: int) -> float:
        compute, link = times[client]
        return link + compute * (fixed + (1 - fixed) * depth / LAYERS)

    estimates = {c: Estimate(cmp + com, com) for c, (cmp, com) in enumerate(times)}
    method = TimelyFL(stack=tiny_mlp(), target=target)
    interval, work = method.fit(estimates, seconds)
    shared = replace(method, partial="share").fit(estimates, seconds)[1]
    for c, (total, _) in estimates.items():
        assert 1 <= work[c].depth <= LAYERS
        assert work[c].epochs == shared[c].epochs
        if total <= interval:
            assert work[c] == shared[c]
        else:
            in_time = [d for d in range(1, LAYERS) if seconds(c, d) <= interval * timelyfl.ROUNDING]
            assert work[c].depth == max(in_time, default=1)


@pytest.mark.parametrize("partial", ["fit", "share"])
@given(st.tuples(positive, positive), st.floats(1, 10), st.floats(0, 1))
def test_more_bandwidth_never_means_less_work(
    partial: Any, times: tuple[float, float], faster: float, fixed: float
) -> None:
    """Within an interval that others set: neither the layers nor the epochs of a client fall with its bandwidth."""
    compute, link = times
    method, work = TimelyFL(stack=tiny_mlp(), partial=partial), []
    for ours in (link, link / faster):

        def seconds(client: int, depth: int, ours: float = ours) -> float:
            return ours + compute * (fixed + (1 - fixed) * depth / LAYERS)

        others = {c + 1: Estimate(1.0, 0.5) for c in range(20)}
        work.append(method.fit({0: Estimate(compute + ours, ours), **others}, seconds)[1][0])
    assert work[1].depth >= work[0].depth
    assert work[1].epochs >= work[0].epochs


def test_what_is_not_known_yet_is_done_whole() -> None:
    method = TimelyFL(stack=tiny_mlp())
    assert method.fit({0: Estimate(0.0, 0.0), 1: Estimate(0.0, 0.0), 2: Estimate(4.0, 0.0)}, unknown) == (
        0.0,
        dict.fromkeys(range(3), Work(1, LAYERS)),
    )
    assert method.fit({}, unknown) == (0.0, {})
    first = method.fit({0: Estimate(0.0, 0.0), 1: Estimate(2.0, 0.0)}, unknown)[1]
    assert first == dict.fromkeys(range(2), Work(1, LAYERS))


# ---------------------------------------------------------------------------------------------------- the update
FLEET = Fleet([Device(flops=f, down=1e6, up=5e5) for f in (4e5, 1.9e5, 1e5, 9e4, 5e4, 2e4)])
WRONG = ["", "all layers", "one epoch", "divides by all", "from the input side", "late ones too"]


def by_hand(problem: Problem, simulator: Simulator, method: TimelyFL, wrong: str) -> Tensor:
    """One round from the equations: full gradients by autograd, frozen layers put back after every step."""
    costs, size = simulator.pricing.costs(), 8 * problem.stack.size
    steps, edges = method.local_steps, problem.stack.edges
    # The input gradient of a block is only taken on the way to the blocks before it.
    whole = sum(c.forward + c.weight_gradient for c in costs) + sum(c.input_gradient for c in costs[1:])
    link = {c: size / d.down + size / d.up for c, d in enumerate(FLEET.devices)}
    compute = {c: steps * problem.batch * whole / d.flops for c, d in enumerate(FLEET.devices)}
    interval = sorted(compute[c] + link[c] for c in range(6))[math.ceil(method.target * 6) - 1]
    total, weights = torch.zeros_like(problem.w), torch.zeros_like(problem.w)
    for c, device in enumerate(FLEET.devices):
        share = min(interval / (compute[c] + link[c]), 1.0)
        epochs = max(math.floor(round((interval - link[c]) / compute[c], 9)), 1)

        def taken(depth: int, device: Device = device, epochs: int = epochs) -> float:
            first = LAYERS - depth
            flops = sum(x.forward for x in costs) + sum(x.weight_gradient for x in costs[first:])
            flops += sum(x.input_gradient for x in costs[first + 1 :])
            sent = 8 * (edges[-1] - edges[first])
            return size / device.down + epochs * steps * problem.batch * flops / device.flops + sent / device.up

        depth = max(math.floor(round(share * LAYERS, 9)), 1)
        if method.partial == "fit":
            depth = max((d for d in (1, 2, 3) if taken(d) <= interval * (1 + 1e-9)), default=1)
        depth = LAYERS if share == 1 or wrong == "all layers" else depth
        first = LAYERS - depth
        if taken(depth) > interval * (1 + 1e-9) and wrong != "late ones too":
            continue
        moving = torch.zeros_like(problem.w)
        kept = slice(0, edges[depth]) if wrong == "from the input side" else slice(edges[first], None)
        moving[kept] = 1.0
        w = problem.w
        for step in range(steps * (1 if wrong == "one epoch" else epochs)):
            rows = torch.from_numpy(problem.streams.rows(c, range(step, step + 1)))[0]
            g = problem.task.gradient(full(problem.stack), w, problem.data.x[rows], problem.data.y[rows])
            w = w - 0.3 * moving * g
        samples = problem.streams.samples(c)
        total, weights = total + samples * (w - problem.w), weights + samples * moving
    if wrong == "divides by all":
        weights = torch.full_like(weights, sum(problem.streams.samples(c) for c in range(6)))
    return problem.w + total / weights.clamp(min=1e-300)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("partial", ["fit", "share"])
@pytest.mark.parametrize(("target", "steps"), [(0.5, 1), (0.2, 2), (1.0, 1)])
def test_a_round_is_the_equations_by_hand(target: float, steps: int, partial: Any, wrong: str) -> None:
    problem = tiny_problem()
    method = TimelyFL(stack=tiny_mlp(), lr=0.3, target=target, local_steps=steps, partial=partial)
    found, simulator = simulate(lambda s: replace(method, stack=s), problem, FLEET, 1)
    expected = by_hand(problem, simulator, method, wrong)
    harmless = target == 1.0 and wrong in ("all layers", "from the input side", "late ones too", "divides by all")
    assert torch.allclose(found, expected, rtol=0, atol=1e-14) == (not wrong or harmless)
    outcomes = {r["outcome"] for r in simulator.timeline}
    assert outcomes == ({"complete"} if target == 1.0 else {"complete", "cancelled"})


def test_slow_clients_send_only_the_layers_that_they_trained() -> None:
    problem, method = tiny_problem(), TimelyFL(stack=tiny_mlp(), target=0.5, local_steps=2)
    _, simulator = simulate(lambda s: replace(method, stack=s), problem, FLEET, 1)
    edges, depths = problem.stack.edges, set()
    for r in simulator.timeline:
        steps, rest = divmod(r["of"], 2 * LAYERS)
        depth = LAYERS if not rest else r["of"] // 2 - LAYERS  # two steps of so many backwards
        depths.add(depth)
        sent = simulator.ledger[r["client"]].bytes["model_up"]
        if r["outcome"] == "complete":
            assert sent == 8 * (edges[-1] - edges[LAYERS - depth])
        assert steps >= 1
    assert depths == {1, 2, 3}


def test_a_round_lasts_no_longer_than_its_interval() -> None:
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5 / (c + 1)) for c in range(6)])
    _, simulator = simulate(lambda s: TimelyFL(stack=s, target=0.5), problem, fleet, 1)
    _, waiting = simulate(lambda s: FedAvg(stack=s), problem, fleet, 1)
    interval = sorted(r["arrived"] for r in waiting.timeline)[2]
    assert simulator.now <= interval * timelyfl.ROUNDING
    assert {r["client"] for r in simulator.timeline if r["outcome"] == "complete"} >= {0, 1, 2}


# ---------------------------------------------------------------------------------------------------- estimates
def test_a_probe_finds_what_is_known_of_a_steady_device() -> None:
    problem = tiny_problem()
    steady = Fleet([Device(f.flops, down=f.down, up=f.up, latency=0.001 * c, pace=Slower(1.0 + c)) for c, f in
                    enumerate(FLEET.devices)])  # fmt: skip
    seen: dict[str, Any] = {}

    class Told(TimelyFL):
        def fit(self, estimates: Any, seconds: Any) -> Any:
            seen[self.estimate] = estimates
            return super().fit(estimates, seconds)

    for estimate in ("known", "probe"):
        simulate(lambda s, e=estimate: Told(stack=s, estimate=e, local_steps=2), problem, steady, 3)
    for c, device in enumerate(steady.devices):
        download = 8 * problem.stack.size / device.down  # a probed client has the model already
        assert seen["probe"][c].link == pytest.approx(seen["known"][c].link - download, rel=1e-9)
        compute = [seen[e][c].total - seen[e][c].link for e in ("known", "probe")]
        assert compute[1] == pytest.approx(compute[0], rel=1e-6)


@pytest.mark.parametrize("estimate", ["known", "probe"])
def test_a_part_takes_the_seconds_that_it_was_estimated_to_take(estimate: Any) -> None:
    problem, expected = tiny_problem(), {}
    devices = [Device(1e5 / (c + 1), down=1e5 / (c + 1), up=1e6, latency=1e-3, pace=Slower(1.0 + c)) for c in range(6)]

    class Told(TimelyFL):
        def fit(self, estimates: Any, seconds: Any) -> Any:
            interval, work = super().fit(estimates, seconds)
            expected.update({(c, w.depth): seconds(c, w.depth) for c, w in work.items() if w.epochs == 1})
            return interval, work

    make = lambda s: Told(stack=s, estimate=estimate, local_steps=2, target=0.7)  # noqa: E731
    _, simulator = simulate(make, problem, Fleet(devices), 1)
    found = {}
    for r in simulator.timeline:
        if r["handler"] == "train" and r["outcome"] == "complete" and r["of"] <= 2 * 2 * LAYERS:
            found[r["client"], r["of"] // 2 - LAYERS] = r["arrived"] - r["sent"]
    assert len({depth for _, depth in found}) > 1
    assert {key: expected[key] for key in found} == pytest.approx(found, rel=1e-9)


def test_a_velocity_costs_memory_of_the_layers_that_are_trained() -> None:
    problem, static = tiny_problem(), {}
    for momentum in (0.0, 0.5):
        make = lambda s, m=momentum: TimelyFL(stack=s, momentum=m)  # noqa: E731
        _, simulator = simulate(make, problem, FLEET, 1)
        static[momentum] = {c: a.static for c, a in simulator.ledger.items()}
        depths = {r["client"]: r["of"] - LAYERS for r in simulator.timeline if r["of"] <= 2 * LAYERS}
    assert set(depths.values()) == {1, 2, 3}
    edges = problem.stack.edges
    for c, depth in depths.items():
        assert static[0.5][c] - static[0.0][c] == 8 * (edges[-1] - edges[LAYERS - depth])
        assert static[0.0][c] == 8 * (edges[-1] + edges[-1] - edges[LAYERS - depth])


def test_a_probe_sees_this_rounds_load_and_what_is_known_is_the_mean() -> None:
    """Where the load is drawn anew each round, the mean lets clients be late that could have done a part in time."""
    problem = tiny_problem()
    fleet = preset("stragglers", share=0.8, flops=1e5, down=1e7, up=1e7, latency=0.0).build(6, 3, LAYERS)
    units: dict[str, dict[str, set[int]]] = {}
    for estimate in ("known", "probe"):
        make = lambda s, e=estimate: TimelyFL(stack=s, estimate=e, local_steps=4)  # noqa: E731
        _, simulator = simulate(make, problem, fleet, 20)
        found = units[estimate] = {"complete": set(), "cancelled": set()}
        for r in simulator.timeline:
            if r["handler"] == "train":
                found[r["outcome"]].add(r["of"])
    one, two, whole = (4 * (LAYERS + depth) for depth in (1, 2, 3))
    assert units["probe"]["cancelled"] == {one}  # only those for whom one layer is too much
    assert units["probe"]["complete"] >= {one, two, whole}
    assert units["known"]["cancelled"] == {whole}
    assert not units["known"]["complete"] & {one, two}


def test_a_probe_costs_a_batch_and_a_number_and_the_model_comes_once() -> None:
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5, down=1e6, up=1e6)] * 6)
    _, known = simulate(lambda s: TimelyFL(stack=s, local_steps=4), problem, fleet, 2)
    _, probed = simulate(lambda s: TimelyFL(stack=s, local_steps=4, estimate="probe"), problem, fleet, 2)
    a, b = known.ledger.total, probed.ledger.total
    assert b.flops == pytest.approx(a.flops * 5 / 4)
    assert b.bytes["model_down"] == a.bytes["model_down"]
    assert b.bytes["scalar_up"] == 12 * 8
    assert probed.now > known.now


def test_who_does_not_answer_the_probe_is_left_out() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    gone = replace(fleet, devices=[replace(d, dropout=float(c % 2)) for c, d in enumerate(fleet.devices)])
    make = lambda s: TimelyFL(stack=s, lr=0.3, estimate="probe")  # noqa: E731
    w, simulator = simulate(make, problem, gone, 2)
    assert {r["client"] for r in simulator.timeline if r["handler"] == "train"} == {0, 2, 4}
    assert not torch.equal(w, problem.w)


@pytest.mark.parametrize("estimate", ["known", "probe"])
def test_on_the_real_clock_times_are_measured(estimate: Any) -> None:
    """The first round is whole, for nothing is known yet; the later ones end."""
    problem = tiny_problem()
    make = lambda s: TimelyFL(stack=s, lr=0.3, estimate=estimate, max_epochs=3)  # noqa: E731
    once = run_in_process(make, problem, 1)
    if estimate == "known":
        expected, _ = simulate(lambda s: FedAvg(stack=s, lr=0.3), problem, uneven_fleet(), 1)
        assert torch.allclose(once, expected, rtol=0, atol=1e-14)
    assert bool(torch.isfinite(run_in_process(make, problem, 4)).all())


@pytest.mark.parametrize("wrong", [{"target": 0}, {"target": 1.1}, {"max_epochs": 0}, {"estimate": "guess"}, {"k": 3}])
def test_impossible_hyperparameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TimelyFL(stack=tiny_mlp(), **wrong)
