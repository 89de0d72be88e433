"""The convex problem: its optimum, its gradients through truncated passes, its steps, and the slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lanterne.budget import Units
from lanterne.fleet import Device, ExponentialLayers, Job, Work, reach
from lanterne.learn import Task, budgeted_sgd
from lanterne.models import LayerStack
from studies.salf import convex, slopes
from studies.salf.convex import BLOCKS, FEATURES, PENALTY, WIDTH, Term, descend, objective, problem

RNG = np.random.default_rng(0)


def test_the_optimum_is_known_to_twelve_digits() -> None:
    known = problem()
    assert np.abs(known.gradient(known.optimum)).max() < 1e-12
    # The gradient is F's: against differences of F.
    w, step = RNG.normal(size=FEATURES), 1e-6
    for i in range(0, FEATURES, 13):
        e = np.eye(FEATURES)[i] * step
        difference = (value(w + e) - value(w - e)) / (2 * step)
        assert difference == pytest.approx(known.gradient(w)[i], rel=1e-6)
    assert known.errors(known.optimum) == (0.0, 0.0)
    assert known.errors(w)[1] == pytest.approx(value(w) - value(known.optimum), rel=1e-9)


def value(w) -> float:
    known = problem()
    return float(np.mean((known.x @ w - known.y) ** 2) / 2 + PENALTY / 2 * w @ w)


def test_the_constants_bound_every_client() -> None:
    known = problem()
    for part in np.split(known.x, convex.CLIENTS):
        own = np.linalg.eigvalsh(part.T @ part / len(part) + PENALTY * np.eye(FEATURES))
        assert known.convexity <= own[0] <= own[-1] <= known.smoothness
    assert known.step(0) <= 1 / (4 * known.smoothness) * (1 + 1e-12)


@pytest.mark.parametrize("depth", range(1, BLOCKS + 1))
def test_a_truncated_pass_gives_the_partial_gradients_of_f(depth: int) -> None:
    known = problem()
    stack = LayerStack(nn.Sequential(*(Term(block * WIDTH) for block in range(BLOCKS))), (FEATURES + 2,))
    x = torch.from_numpy(np.concatenate([known.x, -known.y[:, None], np.zeros((len(known.y), 1))], axis=1))
    w = torch.from_numpy(RNG.normal(size=FEATURES))
    budget = Units(BLOCKS + depth)
    after, _, done = budgeted_sgd(Task(stack, objective), w, x[None], torch.zeros(1, len(x)).long(), 1.0, budget)
    assert done == depth
    expected = known.gradient(w.numpy())
    expected[: (BLOCKS - depth) * WIDTH] = 0.0
    assert (w - after).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def settings(method: str, **more) -> dict:
    [cell, *_] = [c for c in convex.cells(40) if c.settings["method"] == method]
    return {**cell.settings, **more}


def test_fedavg_with_decaying_steps_is_what_it_says() -> None:
    """Against plain NumPy, on the batches that the run has read."""
    known, read = problem(), []
    original = convex.Streams.rows

    def spy(self, client, steps):
        rows = original(self, client, steps)
        read.append((steps.start, rows))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convex.Streams, "rows", spy)
        found = descend(settings("fedavg", rounds=5))["rows"]
    w, t0 = np.zeros(FEATURES), 2 / known.convexity
    for t in range(5):
        [*batches] = [rows.ravel() for start, rows in read if start == t]
        assert len(batches) == convex.CLIENTS
        x, y = (np.stack([each[rows] for rows in batches]) for each in (known.x, known.y))
        gradients = np.einsum("ub,ubf->uf", x @ w - y, x) / convex.BATCH + PENALTY * w
        w = w - t0 / (t + known.gamma) * gradients.mean(0)
    assert found[-1]["distance"] == pytest.approx(np.sum((w - known.optimum) ** 2), rel=1e-9)


def test_a_salf_that_hears_everything_is_fedavg() -> None:
    salf, fedavg = (
        [row["distance"] for row in descend(settings(method, deadline=deadline))["rows"]]
        for method, deadline in (("salf-paper", 1e6), ("fedavg", None))
    )
    assert salf == pytest.approx(fedavg, rel=1e-9)


def test_a_curve_depends_on_its_settings_alone() -> None:
    one, two = (descend(settings("salf-ht", rounds=10)) for _ in range(2))
    assert one == two
    assert descend(settings("salf-ht", rounds=10, seed=7)) != one


def test_independent_batches_are_those_of_no_epoch() -> None:
    """With replacement, a client's first epoch repeats rows; reshuffled, it has each once."""
    known, seen = problem(), {}
    for batches in ("independent", "reshuffled"):
        made = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convex, "Streams", lambda rows, *rest, made=made: made.append(rows) or streams(rows, *rest))
            descend(settings("fedavg", batches=batches, rounds=100))
        seen[batches] = made[0]
    own = len(known.y) // convex.CLIENTS
    assert all(np.array_equal(rows, np.arange(u * own, (u + 1) * own)) for u, rows in enumerate(seen["reshuffled"]))
    for u, rows in enumerate(seen["independent"]):
        assert len(rows) == 100 * convex.BATCH
        assert len(set(rows.tolist())) < 0.75 * len(rows)  # 1 - 1/e of them
        assert set(rows.tolist()) <= set(range(u * own, (u + 1) * own))


streams = convex.Streams


def rows(power: float, **more) -> list[dict]:
    shared = {"method": "fedavg", "clock": "alike", "deadline": None, "batches": "independent", "seed": 1, **more}
    return [
        {**shared, "round": t, "distance": 5 * t**power, "excess": 2 * t**power, "virtual_seconds": 7.5 * t}
        for t in range(1, 1001, 9)
    ]


@pytest.mark.parametrize("power", [-1.0, -0.5, -2.0])
def test_slopes_are_exponents(power: float) -> None:
    assert slopes.slope(rows(power), "distance") == pytest.approx(power)


def test_a_slope_is_of_the_tail() -> None:
    bent = [{**row, "distance": 1.0} if row["round"] < 100 else row for row in rows(-1.0)]
    assert slopes.slope(bent, "distance") == pytest.approx(-1.0)


def test_the_table_and_the_picture_of_slopes(tmp_path) -> None:
    every = [*rows(-1.0), *rows(-1.2, seed=2)]
    every += [*rows(-0.5, method="salf-code", deadline=1.5), *rows(-0.5, method="salf-code", deadline=1.5, seed=2)]
    text = slopes.slopes(every)
    assert "| fedavg | alike | independent | waits | 0 | -1.10 ± 0.14 | -1.10 ± 0.14 |" in text
    assert "| salf-code | alike | independent | 1.5 | 0.51 | -0.50 ± 0.00 |" in text
    path = slopes.picture(every, tmp_path / "convex.png")
    assert path.stat().st_size > 10_000


def test_p_is_that_of_the_clock() -> None:
    """The table's closed form against the chances from which SALF itself reckons its p."""
    work = Work((1.0,) * (2 * BLOCKS), (False,) * BLOCKS + (True,) * BLOCKS, (False,) * 2 * BLOCKS)
    for clock, means in convex.CLOCKS.items():
        devices = [Device(latency=0.0, pace=ExponentialLayers(mean)) for mean in means]
        q = [reach(device, Job(0, work, lambda _: 0, deadline=1.5))[-1] for device in devices]
        assert float(slopes._empty(clock, 1.5)) == pytest.approx(np.prod(1 - np.array(q)), rel=0.05)
