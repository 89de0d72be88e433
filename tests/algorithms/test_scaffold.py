"""SCAFFOLD against FedAvg, against Algorithm 1 in plain loops, and on a line where FedAvg drifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from algorithms.by_hand import Line, gradient, mean, samples, walk
from algorithms.overheard import overhear
from lanterne.algorithms import FedAvg, Scaffold
from lanterne.fleet import Device, Fleet
from lanterne.runtime import Simulator
from lanterne.testing import STORMS, Problem, simulate, tiny_mlp, tiny_problem, uneven_fleet

LR, ROUNDS = 0.3, 5
VARIATES: list[Any] = ["path", "gradient"]


# ---------------------------------------------------------------------------------------------------- FedAvg
@pytest.mark.parametrize("variate", VARIATES)
@pytest.mark.parametrize("options", [{}, {"cohort": 3}, {"weights": "equal"}], ids=str)
def test_the_first_round_is_that_of_fedavg(variate: Any, options: Any) -> None:
    """All variates are zero: to the bit. The second is not."""
    problem, fleet = tiny_problem(), uneven_fleet(dropout=0.1)
    for rounds in (1, 2):
        make = lambda s: Scaffold(stack=s, lr=LR, local_steps=3, control=variate, **options)  # noqa: E731
        found, _ = simulate(make, problem, fleet, rounds)
        expected, _ = simulate(lambda s: FedAvg(stack=s, lr=LR, local_steps=3, **options), problem, fleet, rounds)
        assert torch.equal(found, expected) == (rounds == 1)


@pytest.mark.parametrize("variate", VARIATES)
@pytest.mark.parametrize("clients", [1, 6])
def test_without_differences_between_clients_it_is_fedavg(variate: Any, clients: int) -> None:
    """One client alone, or all with the same data: c_u = c but for rounding."""
    problem, fleet = tiny_problem(clients, same=clients > 1), uneven_fleet(clients)
    make = lambda s: Scaffold(stack=s, lr=LR, local_steps=3, control=variate)  # noqa: E731
    found, _ = simulate(make, problem, fleet, ROUNDS)
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=LR, local_steps=3), problem, fleet, ROUNDS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(found, problem.w)


# ---------------------------------------------------------------------------------------------------- Algorithm 1
class Algorithm1:
    """The paper's loop; the control variate of the path is taken from the gradients on it, not from where it ends."""

    def __init__(self, problem: Problem, k: int, variate: str, weights: str, server_lr: float, wrong: str = "") -> None:
        self.problem, self.k, self.variate, self.server_lr, self.wrong = problem, k, variate, server_lr, wrong
        self.x, self.c = problem.w, torch.zeros_like(problem.w)
        self.n = samples(problem) if weights == "samples" else dict.fromkeys(range(len(problem.rows)), 1.0)
        self.own = {u: torch.zeros_like(problem.w) for u in self.n}

    def round(self, t: int, heard: Sequence[int]) -> None:
        x, c, sign, moves, changes = self.x, self.c, -1.0 if self.wrong == "towards the drift" else 1.0, {}, {}
        for u in heard:
            steps = range(t * self.k, (t + 1) * self.k)
            shift = sign * (c - self.own[u])
            y, path = walk(self.problem, x, u, steps, LR, lambda _, shift=shift: shift)
            at_x = [gradient(self.problem, x, u, step) for step in steps]
            new = sum(at_x if self.variate == "gradient" else path) / self.k
            if self.wrong == "last gradient only":
                new = path[-1]
            moves[u], changes[u] = y - x, new - self.own[u]
            self.own[u] = self.own[u] if self.wrong == "a client forgets" else new
        if heard:
            whom = {u: self.n[u] for u in heard} if self.wrong == "c by those heard" else self.n
            self.x = x + self.server_lr * mean(moves, self.n)
            self.c = c + sum(self.n[u] * changes[u] for u in heard) / sum(whom.values())


@pytest.mark.parametrize("variate", VARIATES)
@pytest.mark.parametrize("weights", ["samples", "equal"])
@pytest.mark.parametrize(("cohort", "server_lr"), [(2, 1.0), (4, 0.5), (None, 1.5)])
def test_it_is_algorithm_1(variate: Any, weights: Any, cohort: int | None, server_lr: float) -> None:
    problem, k = tiny_problem(), 3
    rounds, simulator = overhear(
        lambda s: Scaffold(
            stack=s, lr=LR, local_steps=k, control=variate, weights=weights, cohort=cohort, server_lr=server_lr
        ),
        problem,
        uneven_fleet(),
        ROUNDS,
        seed=3,
    )
    wrong = {
        "towards the drift": True,
        "last gradient only": True,
        "a client forgets": True,
        "c by those heard": cohort is not None,
    }
    oracles = {name: Algorithm1(problem, k, variate, weights, server_lr, name) for name in ("", *wrong)}
    for t, heard in enumerate(rounds):
        for oracle in oracles.values():
            oracle.round(t, heard.invited)
        right = oracles[""]
        assert torch.allclose(heard.state.w, right.x, rtol=0, atol=1e-12)
        assert torch.allclose(heard.state.c, right.c, rtol=0, atol=1e-12)
    for u, state in simulator.numerics.states.items():
        assert torch.allclose(state["c"], right.own[u], rtol=0, atol=1e-12)
    for name, shows in wrong.items():
        assert torch.allclose(right.x, oracles[name].x, rtol=0, atol=1e-6) == (not shows), name


# ---------------------------------------------------------------------------------------------------- who is lost
def variates(simulator: Simulator, problem: Problem) -> dict[int, Tensor]:
    """c_u of everybody; zero for those who never answered."""
    nothing = torch.zeros_like(problem.w)
    return {u: simulator.numerics.states.get(u, {}).get("c", nothing) for u in range(len(problem.rows))}


@pytest.mark.parametrize("storm", list(STORMS))
@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_c_stays_the_mean_of_the_clients_variates_whoever_is_lost(storm: str, weights: Any) -> None:
    """A client whose reply does not arrive keeps its old variate, so both sides agree."""
    problem, fleet = tiny_problem(), uneven_fleet(**STORMS[storm])
    make = lambda s: Scaffold(stack=s, lr=LR, local_steps=2, weights=weights, cohort=4)  # noqa: E731
    for rounds in (1, 3, 8):
        heard, simulator = overhear(make, problem, fleet, rounds, seed=1)
        n = samples(problem) if weights == "samples" else dict.fromkeys(range(6), 1.0)
        expected = mean(variates(simulator, problem), n)
        assert torch.allclose(heard[-1].state.c, expected, rtol=0, atol=1e-14)
    assert {r["outcome"] for r in simulator.timeline} - {"complete"}


class _Reachable(Scaffold):
    """Divides c by the weight of those who can be reached in the first round."""

    def _everybody(self, cohort: Any) -> float:
        return float(sum(cohort.facts(c).samples for c in cohort.clients))


@pytest.mark.parametrize("kind", [Scaffold, _Reachable])
def test_n_counts_those_who_cannot_be_reached_yet(kind: Any) -> None:
    """Two come later: their variates are zero until then, and count. The wrong variant leaves them out for ever."""
    problem, fleet = tiny_problem(), uneven_fleet()
    later = [replace(d, available=((0.2, 99.0),)) if c < 2 else d for c, d in enumerate(fleet.devices)]
    make = lambda s: kind(stack=s, lr=LR, cohort=4)  # noqa: E731
    heard, simulator = overhear(make, problem, replace(fleet, devices=later), 20)
    assert heard[0].invited == [2, 3, 4, 5]
    assert {0, 1} < set(simulator.numerics.states)
    agree = torch.allclose(heard[-1].state.c, mean(variates(simulator, problem), samples(problem)), rtol=0, atol=1e-14)
    assert agree == (kind is Scaffold)
    assert [h.state.everybody for h in heard] == [heard[0].state.everybody] * 20  # asked once


def test_a_round_in_which_everybody_is_lost_changes_nothing() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    heard, simulator = overhear(lambda s: _ThenAlone(stack=s, lr=LR), problem, fleet, 2)
    assert torch.equal(heard[0].state.w, heard[1].state.w)
    assert torch.equal(heard[0].state.c, heard[1].state.c)
    assert heard[0].state.c.abs().max() > 0
    assert set(simulator.numerics.states) == set(range(6))


class _ThenAlone(Scaffold):
    """Invites nobody in its second round."""

    def round(self, state: Any, cohort: Any) -> Any:
        if state.round:
            cohort.sample = lambda n, key: ()
        return super().round(state, cohort)


# ---------------------------------------------------------------------------------------------------- drift
@pytest.mark.parametrize("variate", VARIATES)
@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_fedavg_drifts_and_scaffold_ends_at_the_optimum(variate: Any, weights: Any) -> None:
    line = Line(curvatures=[0.5, 4.0, 1.0], minima=[-3.0, 1.0, 2.0], sizes=[1, 2, 5])
    fleet, n = Fleet([Device() for _ in range(3)]), [1.0, 2.0, 5.0] if weights == "samples" else [1.0] * 3
    options: dict[str, Any] = {"lr": 0.05, "local_steps": 8, "weights": weights}
    drifted = line.limit(lambda s: FedAvg(stack=s, **options), fleet, 100)
    assert abs(drifted - line.optimum(n)) > 0.03
    found = line.limit(lambda s: Scaffold(stack=s, control=variate, **options), fleet, 100)
    assert found == pytest.approx(line.optimum(n), abs=1e-9)
    # With two of three at a time it still gets there: at the optimum all corrected gradients are zero.
    found = line.limit(lambda s: Scaffold(stack=s, control=variate, cohort=2, **options), fleet, 200)
    assert found == pytest.approx(line.optimum(n), abs=1e-9)
    drifted = line.limit(lambda s: FedAvg(stack=s, cohort=2, **options), fleet, 200)
    assert abs(drifted - line.optimum(n)) > 1e-3


# ---------------------------------------------------------------------------------------------------- the books
def test_it_costs_twice_the_bytes_and_with_option_i_twice_the_work() -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    total = {}
    for name, make in {
        "fedavg": lambda s: FedAvg(stack=s, local_steps=2),
        "path": lambda s: Scaffold(stack=s, local_steps=2),
        "gradient": lambda s: Scaffold(stack=s, local_steps=2, control="gradient"),
    }.items():
        _, simulator = simulate(make, problem, fleet, 3)
        total[name] = simulator.ledger.total
    size = 8 * problem.stack.size
    for name, work, vectors in (("path", 1, 2), ("gradient", 2, 3)):
        assert total[name].flops == work * total["fedavg"].flops
        assert total[name].bytes["aux_down"] == total[name].bytes["model_down"] == total["fedavg"].bytes["model_down"]
        assert total[name].bytes["aux_up"] == total[name].bytes["model_up"] == total["fedavg"].bytes["model_up"]
        # The client's variate, the correction, and the mean gradient while it grows.
        assert total[name].static == total["fedavg"].static + vectors * size
        assert total[name].working == total["fedavg"].working


@pytest.mark.parametrize("wrong", [{"server_lr": 0.0}, {"control": "I"}, {"local_steps": 0}, {"momentum": 0.5}])
def test_hyperparameters_are_checked(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Scaffold(stack=tiny_mlp(), **wrong)
