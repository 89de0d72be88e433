"""The defects of sections 7 and 2.11 of the specification: this implementation is free of them.

Each check is also given an implementation that has the defect, and must refuse it.

Tested elsewhere, by their numbers:

* 7.1.1 as "V1 is not FedAvg": `test_split_exact.test_4_a_server_optimiser_made_anew_for_every_batch_breaks_it`.
* 7.1.9, an activation in place at the cut: `models/test_out_of_place.py`.
* 7.2, one server half where V1 has replicas: `test_split_exact.test_4_and_5_v1_is_fedavg_wherever_the_model_is_cut`.
* 7.2 and 7.1.4, waiting for all ranks: `test_split_vanishing.py`, and here.
* 7.3, a ring without a hand-off of weights: `test_split_exact.test_2_visits_follow_one_another_and_hand_on`.
* 7.4, mean or sum: `test_split_exact.test_6_a_pooled_loss_scales_what_a_client_gets`, `test_sglr.py`; dropout's
  generator: `models/test_validate.py`; weights that do not sum to one: `learn/test_aggregate.py`; ragged batches and
  one row under BatchNorm: `cli/test_split_bad_input.py`.
* 4.3.10, two averages over different sets: `test_split_vanishing.test_it_is_in_neither_average`.
* 4.5.9, labels that cost nothing: `test_split_costs.test_23_bytes_are_those_of_the_closed_forms`.

What cannot be here: 7.1.2 (models come with the sizes that they take: `models/test_zoo.py`); 7.1.5 for buffers, 4.1.12
and the integer `num_batches_tracked` (a model with buffers is refused: `models/test_validate.py`); 7.1.10 (a data set
that is not here); weight decay and a debugger's breakpoint (7.3: there is neither); clipping, `set_to_none` and loss
scalers (7.4: there are none, gradients are values); the defects of decoder and mixture (2.11: an encoder that gets no
gradient of the regulariser, a client that is its own partner), which belong to the tests of LocFedMix-SL.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import samples
from algorithms.defective import (
    AVERAGED,
    CLIENTS,
    EDGE,
    METHODS,
    NAMES,
    STEPPING,
    STEPS,
    Defective,
    forgetful,
    refuses,
    stack,
    steps_of,
    watch,
    wrapping,
)
from algorithms.split_methods import make
from lanterne.budget import Units
from lanterne.experiment import parse_config, prepare
from lanterne.protocol import Inbox, Local
from lanterne.runtime import Loop, Simulator
from lanterne.testing import tiny_problem, uneven_fleet


# ------------------------------------------------------------------------------------- 2.11: both halves are trained
def check_encoder(algorithm: Any) -> None:
    """Every client's half moves with every batch that it learns from."""
    _, seen, _ = watch(algorithm)
    trained = [s for s in seen if s.job.handler in ("backward", "local")]
    assert len(trained) == CLIENTS * STEPS
    for s in trained:
        after = s.out["half"] if "half" in s.out else s.state["w"]
        assert not torch.equal(after[:EDGE], s.before[:EDGE])


@wrapping("backward", "local")
def detached(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
    """The cut tensor was detached in the wrong place: what comes back goes nowhere."""
    before = inbox.arrays.get("w", state.get("w"))
    after, out = handler(task, state, inbox, local)

    def still(w: Tensor) -> Tensor:
        return torch.cat([before[:EDGE], w[EDGE:]])

    after = {n: still(t) if n == "w" else t for n, t in after.items()}
    return after, {n: still(t) if n == "half" else t for n, t in out.items()}


@METHODS
def test_2_11_and_7_4_the_encoder_gets_its_gradient(name: str) -> None:
    algorithm = make(name, stack(), local_steps=STEPS)
    check_encoder(algorithm)
    refuses(lambda: check_encoder(Defective(algorithm, detached)))


def check_server_steps(name: str, algorithm: Any) -> None:
    """As many steps in a round as the method says, and each moves the half."""
    _, seen, _ = watch(algorithm)
    steps = steps_of(seen)
    assert len(steps) == (STEPS if name in ("psl", "sglr") else CLIENTS * STEPS)
    for s in steps:
        assert not torch.equal(s.state["w"], s.before)


@wrapping(*STEPPING)
def once(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
    """The server steps on the first batch of a round alone."""
    after, out = handler(task, state, inbox, local)
    if "stepped" in state:
        after = {**after, "w": inbox.arrays.get("w", state["w"])}
    return {**after, "stepped": torch.zeros((), device=after["w"].device)}, out


@METHODS
def test_2_11_the_server_steps_with_every_batch_and_not_once_a_round(name: str) -> None:
    algorithm = make(name, stack(), local_steps=STEPS)
    check_server_steps(name, algorithm)
    refuses(lambda: check_server_steps(name, Defective(algorithm, once)))


# ---------------------------------------------------------------------------------------- 7.1: the SplitFed reference
def check_adam(algorithm: Any) -> None:
    """A replica's Adam has counted all steps since the replica began."""
    _, seen, _ = watch(algorithm)
    counts: dict[Any, int] = {}
    for s in steps_of(seen):
        counts[s.job.to] = counts.get(s.job.to, 0) + 1
        assert float(s.state["t"]) == counts[s.job.to]
    assert max(counts.values()) >= STEPS


@METHODS
def test_7_1_1_server_adam_is_not_made_anew_each_batch(name: str) -> None:
    algorithm = make(name, stack(), local_steps=STEPS, lr=0.02, optimiser="adam")
    check_adam(algorithm)
    refuses(lambda: check_adam(Defective(algorithm, forgetful)))


@METHODS
def test_7_1_3_what_is_judged_are_both_halves_after_the_round(name: str) -> None:
    problem = tiny_problem(CLIENTS)
    algorithm = make(name, problem.stack, local_steps=STEPS)

    def stale(*given: Any) -> Tensor:
        judge = getattr(algorithm, "models", None)
        now = algorithm.evaluated(given[0]) if judge is None else judge(*given)
        return torch.cat([problem.w[:EDGE].expand(*now.shape[:-1], EDGE), now[..., EDGE:]], -1)

    def check(a: Any) -> None:
        models, seen, _ = watch(a, 2)
        rows = models[0].reshape(-1, problem.stack.size)
        begins: dict[Any, Tensor] = {}
        for s in seen:
            if s.round == 1 and s.job.to not in begins:
                begins[s.job.to] = s.before
        # In a ring, only the first client begins with what is judged.
        for client in [0] if name == "sl" else range(CLIENTS):
            row = rows[client % len(rows)]
            assert torch.equal(begins[client][:EDGE], row[:EDGE])
        assert torch.equal(begins["server", 0], rows[0][EDGE:])

    check(algorithm)
    member = "models" if hasattr(algorithm, "models") else "evaluated"
    refuses(lambda: check(Defective(algorithm, **{member: stale})))


def check_missing(name: str, algorithm: Any) -> None:
    """With a client that never answers, a round ends, and both halves have moved."""
    fleet = uneven_fleet(CLIENTS)
    fleet = replace(fleet, devices=[replace(fleet.devices[0], dropout=1.0), *fleet.devices[1:]])
    models, _, simulator = watch(algorithm, 1, fleet)
    moved = models[0] - tiny_problem(CLIENTS).w
    assert math.isfinite(simulator.now)
    assert bool((moved[..., :EDGE] != 0).any())
    assert bool((moved[..., EDGE:] != 0).any())


@METHODS
def test_7_1_4_and_7_2_a_round_with_a_client_missing_is_a_round(name: str) -> None:
    algorithm = make(name, stack(), local_steps=STEPS)

    def for_all(state: Any, cohort: Any) -> Any:
        """Averages only when everybody is done."""
        program, answer, whole = algorithm.round(state, cohort), None, True
        while True:
            try:
                answer = yield program.send(answer)
            except StopIteration as stop:
                return stop.value if whole else state
            whole = whole and all(r.usable for r in answer or [])

    check_missing(name, algorithm)
    models = algorithm.evaluated  # of the state alone: what addresses hold has moved in any case
    refuses(lambda: check_missing(name, Defective(algorithm, round=for_all, models=lambda state, _: models(state))))


def check_average(algorithm: Any) -> None:
    """The clients' half is the mean of those handed in, weighted by samples, and what was handed in is as it was."""
    models, seen, _ = watch(algorithm)
    halves = {s.job.to: s for s in seen if isinstance(s.job.to, int) and "half" in s.out}
    weights = samples(tiny_problem(CLIENTS))
    mean = sum(weights[c] * s.out["half"][:EDGE] for c, s in halves.items()) / sum(weights[c] for c in halves)
    assert sorted(halves) == list(range(CLIENTS))
    assert torch.allclose(models[0][:EDGE], mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", AVERAGED)
def test_7_1_5_averages_are_weighted(name: str) -> None:
    check_average(make(name, stack(), local_steps=STEPS))
    refuses(lambda: check_average(make(name, stack(), local_steps=STEPS, weights="equal")))


@pytest.mark.parametrize("name", AVERAGED)
def test_7_2_averages_are_nobodys_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written into the dictionary of who came last, an average has its weights wrong."""

    def aliased(current: Tensor, updates: Any, factor: float = 1.0) -> Tensor:
        total = updates[-1].delta
        for u in updates:
            total += u.weight * u.delta
        out = current.clone()
        out[updates[-1].view.index] += total / sum(u.weight for u in updates)
        return out

    check_average(make(name, stack(), local_steps=STEPS))
    monkeypatch.setattr(f"lanterne.algorithms.{name}.coverage_mean", aliased)
    refuses(lambda: check_average(make(name, stack(), local_steps=STEPS)))


@pytest.mark.parametrize("name", ["splitfed_v1", "locsplitfed"])
def test_7_2_who_came_last_does_not_matter(name: str) -> None:
    fleet = uneven_fleet(CLIENTS)
    turned = replace(fleet, devices=list(fleet.devices)[::-1])
    a, b = (watch(make(name, stack(), local_steps=STEPS), 2, f)[0][-1] for f in (fleet, turned))
    assert torch.equal(a, b)


def test_7_1_6_all_methods_of_an_experiment_have_the_same_settings() -> None:
    def check(**own: Any) -> None:
        config = {
            "algorithms": {n: own.get(n, {}) for n in NAMES},
            "training": {"lr": 0.2, "local_steps": 2, "cohort": 3},
        }
        prepared = prepare(parse_config({**config, "data": {"clients": 4}, "model": {"name": "salf-mlp"}}))
        found = {(a.lr, a.local_steps, a.cohort, a.optimiser) for a in prepared.algorithms.values()}
        assert found == {(0.2, 2, 3, "sgd")}
        one, other = prepared.world(1), prepared.world(1)
        assert (one.streams.rows(2, range(3)) == other.streams.rows(2, range(3))).all()

    check()
    refuses(lambda: check(psl={"lr": 0.5}))


def check_in_turns(algorithm: Any) -> None:
    """Two simulators of one algorithm, a round of each in turn, are what each is alone."""
    problem, alone = tiny_problem(CLIENTS), watch(algorithm, 3)[0][-1]
    runs = []
    for _ in range(2):
        executor = Loop(problem.task, problem.data.x, problem.data.y)
        simulator = Simulator(algorithm, uneven_fleet(CLIENTS), executor, problem.streams, dtype=torch.float64)
        runs.append([simulator, algorithm.init(problem.w)])
    for _ in range(3):
        for run in runs:
            run[1] = run[0].round(algorithm, run[1])
    for simulator, state in runs:
        assert torch.equal(simulator.models(algorithm, state), alone)


@METHODS
def test_7_1_7_nothing_is_counted_outside_of_states(name: str) -> None:
    calls = [0]

    @wrapping("forward", "local")
    def counted(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        calls[0] += local.x.device.type != "meta"
        after, out = handler(task, state, inbox, local)
        return after, {n: t * (1 + 1e-3 * calls[0]) if n == "smashed" else t for n, t in out.items()}

    algorithm = make(name, stack(), local_steps=STEPS)
    check_in_turns(algorithm)
    refuses(lambda: check_in_turns(Defective(algorithm, counted)))


def test_7_1_8_the_gradient_is_of_what_came_wherever_it_lies() -> None:
    """A copy, other strides, a tensor of somebody's graph: the same gradient, and what came is as it was."""
    problem, algorithm = tiny_problem(CLIENTS), make("psl", stack())
    w, y = problem.w[EDGE:], problem.data.y[:4]
    smashed = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    local = Local(problem.data.x[None, :0], problem.data.y[None, :0], torch.tensor(0), Units(None))
    graph = torch.ones_like(smashed, requires_grad=True)
    found = []
    for came in (smashed, smashed.clone(), smashed.T.contiguous().T, smashed * graph):
        before = came.detach().clone()
        inbox = Inbox({"w": w, "smashed": came, "labels": y}, {"cut": (1, 0), "last": False})
        _, out = algorithm.handlers["serve"](problem.task, {}, inbox, local)
        assert torch.equal(came, before)
        assert not out["gradient"].requires_grad
        found.append(out["gradient"])
    assert graph.grad is None
    assert all(torch.allclose(g, found[0], rtol=0, atol=1e-15) for g in found)
    assert bool((found[0] != 0).any())
