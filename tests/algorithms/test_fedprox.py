"""FedProx against FedAvg, and against its Algorithm 2 in plain loops: invariant 19 of the specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from algorithms.by_hand import mean, samples, walk, whole_steps
from algorithms.overheard import alike, overhear
from lanterne.algorithms import FedAvg, FedProx
from lanterne.fleet import Device, Fleet
from lanterne.testing import Problem, run_in_process, simulate, tiny_mlp, tiny_problem, uneven_fleet

BLOCKS, ROUNDS, LR = 3, 4, 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"local_steps": 3},
        {"local_steps": 3, "weights": "equal", "cohort": 4},
        {"local_steps": 2, "momentum": 0.5},
        {"local_steps": 2, "momentum": 0.5, "keep_momentum": True},
    ],
    ids=str,
)
def test_19_fedprox_with_mu_0_is_fedavg(options: Any) -> None:
    """Weights, clock and books, to the bit; with mu > 0 it is not, unless there is one step only."""
    problem, fleet = tiny_problem(), uneven_fleet(dropout=0.1)
    expected, waiting = simulate(lambda s: FedAvg(stack=s, lr=LR, **options), problem, fleet, ROUNDS)
    found, simulator = simulate(lambda s: FedProx(stack=s, lr=LR, mu=0.0, **options), problem, fleet, ROUNDS)
    assert torch.equal(found, expected)
    assert simulator.timeline == waiting.timeline
    assert simulator.ledger == waiting.ledger
    pulled, _ = simulate(lambda s: FedProx(stack=s, lr=LR, mu=0.1, **options), problem, fleet, ROUNDS)
    assert not torch.allclose(pulled, expected, rtol=0, atol=1e-5)


def test_one_step_is_not_pulled() -> None:
    """The pull is zero where training starts."""
    problem, fleet = tiny_problem(), uneven_fleet()
    expected, _ = simulate(lambda s: FedAvg(stack=s, lr=LR), problem, fleet, ROUNDS)
    found, _ = simulate(lambda s: FedProx(stack=s, lr=LR, mu=10.0), problem, fleet, ROUNDS)
    assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------------------- Algorithm 2
def algorithm_2(
    problem: Problem, steps: list[Mapping[int, int]], k: int, mu: float, variant: str = "right"
) -> list[Tensor]:
    """The global weights round by round, when u takes `steps[t][u]` steps in round t; some variants are wrong."""
    w, n, found = problem.w, samples(problem), []
    for t, taken in enumerate(steps):
        locals_ = {}
        for u, count in taken.items():
            if count == 0 and variant != "nothing counts as a step":
                continue
            if count < k and variant == "stragglers are dropped":
                continue
            span = range(t * k, t * k + (k if variant == "stragglers do all" else count))

            def pull(v: Tensor, w: Tensor = w) -> Tensor:
                if variant == "a norm that is not squared":
                    return mu * (v - w) / max(float((v - w).norm()), 1e-12)
                return (-1.0 if variant == "pushed away" else 1.0) * mu * (v - w)

            locals_[u] = walk(problem, w, u, span, LR, pull)[0]
        w = mean(locals_, n if variant != "equal weights" else dict.fromkeys(n, 1.0)) if locals_ else w
        found.append(w)
    return found


@pytest.mark.parametrize("deadline", [0.02, 0.025, 0.035, float("inf")])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_it_is_algorithm_2_with_the_steps_that_the_clock_allows(deadline: float, mu: float) -> None:
    problem, fleet, k = tiny_problem(), uneven_fleet(), 3
    rounds, simulator = overhear(
        lambda s: FedProx(stack=s, lr=LR, mu=mu, local_steps=k, deadline=deadline), problem, fleet, ROUNDS
    )
    steps = [whole_steps(simulator, t + 1, BLOCKS) for t in range(ROUNDS)]
    counts = {count for taken in steps for count in taken.values()}
    w = [heard.state.w for heard in rounds]
    assert all(map(alike, w, algorithm_2(problem, steps, k, mu)))
    wrong = {
        "stragglers are dropped": counts - {0, k},
        "stragglers do all": counts - {k},
        "nothing counts as a step": 0 in counts,
        "equal weights": True,
        "pushed away": mu and counts - {0, 1},
        "a norm that is not squared": mu and counts - {0, 1},
    }
    for variant, shows in wrong.items():
        assert alike(w[-1], algorithm_2(problem, steps, k, mu, variant)[-1]) == (not shows), variant


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_device_asks_its_own_clock(momentum: float) -> None:
    """With time enough it does what the simulator does, with none nothing."""
    problem = tiny_problem()
    make = lambda s, d: FedProx(stack=s, lr=LR, mu=0.5, local_steps=3, momentum=momentum, deadline=d)  # noqa: E731
    expected, _ = simulate(lambda s: make(s, float("inf")), problem, uneven_fleet(), 3)
    assert torch.allclose(run_in_process(lambda s: make(s, 100.0), problem, 3), expected, rtol=0, atol=1e-14)
    assert torch.equal(run_in_process(lambda s: make(s, 1e-9), problem, 3), problem.w)


# ---------------------------------------------------------------------------------------------------- the books
@pytest.mark.parametrize(("deadline", "some"), [(0.02, {0, 1, 2}), (0.025, {0, 1, 2, 3}), (0.035, {1, 3})])
def test_an_interrupted_step_is_wasted_and_nothing_is_sent_for_no_step(deadline: float, some: set[int]) -> None:
    problem, k = tiny_problem(), 3
    _, simulator = simulate(
        lambda s: FedProx(stack=s, lr=LR, local_steps=k, deadline=deadline), problem, uneven_fleet(), 1
    )
    pricing, seen = simulator.pricing, set()
    step = sum(c.forward + c.weight_gradient + c.input_gradient for c in pricing.costs()) * problem.batch
    step -= pricing.costs()[0].input_gradient * problem.batch
    for r in simulator.timeline:
        account = simulator.ledger[r["client"]]
        steps = r["units"] // (2 * BLOCKS)
        assert r["units"] % (2 * BLOCKS) == 0
        assert account.flops == steps * step
        assert account.bytes["model_up"] == (8 * problem.stack.size if steps else 0)
        if steps < k:
            assert r["arrived"] == deadline
            whole = r["downloaded"] + steps * step / uneven_fleet().devices[r["client"]].flops
            assert account.wasted == pytest.approx(r["computed"] - whole, abs=1e-12)
            assert account.wasted > 0
        seen.add(steps)
    assert seen == some


def test_memory_holds_the_anchor_and_the_velocity() -> None:
    problem, size = tiny_problem(), 8 * tiny_mlp().size
    found = {}
    for mu in (0.0, 0.1):
        for momentum in (0.0, 0.5):
            make = lambda s, a=mu, b=momentum: FedProx(stack=s, mu=a, momentum=b)  # noqa: E731
            found[mu, momentum] = simulate(make, problem, uneven_fleet(), 1)[1].ledger.total.static
    base = found[0.0, 0.0]
    assert found == {(0.0, 0.0): base, (0.1, 0.0): base + size, (0.0, 0.5): base + size, (0.1, 0.5): base + 2 * size}


def test_a_velocity_survives_a_round_without_a_step() -> None:
    """A client that is cut off before its first step's end keeps what it had."""
    problem = tiny_problem()
    fleet = Fleet([Device(flops=1e5) for _ in range(6)])
    options: dict[str, Any] = {"lr": LR, "momentum": 0.5, "keep_momentum": True, "local_steps": 2}
    _, first = simulate(lambda s: FedProx(stack=s, **options), problem, fleet, 1)
    _, both = simulate(lambda s: _ThenNothing(stack=s, **options), problem, fleet, 2)
    assert [r["units"] for r in both.timeline] == [12] * 6 + [0] * 6
    for c in range(6):
        assert torch.equal(first.numerics.states[c]["m"], both.numerics.states[c]["m"])


class _ThenNothing(FedProx):
    """Has no time for a step in its second round."""

    def round(self, state: Any, cohort: Any) -> Any:
        if state.round == 1:
            return FedProx.round(replace(self, deadline=1e-6), state, cohort)
        return super().round(state, cohort)


@pytest.mark.parametrize("wrong", [{"mu": -0.1}, {"deadline": 0.0}, {"local_steps": 0}, {"mu": "much"}, {"rho": 1.0}])
def test_hyperparameters_are_checked(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        FedProx(stack=tiny_mlp(), **wrong)
