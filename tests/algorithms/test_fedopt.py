"""The server's optimisers: by hand, in NumPy over several rounds, and against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from algorithms.by_hand import mean, samples
from algorithms.overheard import Round, overhear
from lanterne.algorithms import FedAvg, FedOpt
from lanterne.testing import Problem, simulate, tiny_mlp, tiny_problem, uneven_fleet

LR, ROUNDS = 0.3, 6
ADAPTIVE = ["adagrad", "adam", "yogi"]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@pytest.mark.parametrize("options", [{"server": "sgd"}, {"server": "momentum", "beta_1": 0.0}], ids=str)
@pytest.mark.parametrize("client", [{}, {"momentum": 0.5, "keep_momentum": True, "local_steps": 2, "cohort": 4}])
def test_a_server_that_forgets_is_fedavg(options: Any, client: Any) -> None:
    problem, fleet = tiny_problem(), uneven_fleet(dropout=0.1)
    expected, waiting = simulate(lambda s: FedAvg(stack=s, lr=LR, **client), problem, fleet, ROUNDS)
    found, simulator = simulate(lambda s: FedOpt(stack=s, lr=LR, **options, **client), problem, fleet, ROUNDS)
    assert torch.equal(found, expected)
    assert simulator.ledger == waiting.ledger
    half, _ = simulate(lambda s: FedOpt(stack=s, lr=LR, server_lr=0.5, **options, **client), problem, fleet, 1)
    whole, _ = simulate(lambda s: FedAvg(stack=s, lr=LR, **client), problem, fleet, 1)
    assert torch.allclose(half - problem.w, 0.5 * (whole - problem.w), rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------------------- by hand
def steps_along(deltas: list[float], **options: Any) -> list[float]:
    """Where a server gets to from 0 along given mean updates."""
    fedopt = FedOpt(stack=tiny_mlp(), **options)
    state, found = fedopt.init(torch.zeros(1, dtype=torch.float64)), []
    for delta in deltas:
        state = fedopt._step(state, torch.tensor([delta], dtype=torch.float64))
        found.append(float(state.w))
    return found


def test_by_hand() -> None:
    """Two updates, 4 and then -1."""
    # m = 4, then 0.5 * 4 - 1 = 1; half of each is added.
    assert steps_along([4.0, -1.0], server="momentum", beta_1=0.5, server_lr=0.5) == [2.0, 2.5]
    # tau = 3 and v starts at 9: 9 + 16 = 25 and 26; m = 2, then 0.5 * 2 - 0.5 * 1 = 0.5.
    found = steps_along([4.0, -1.0], server="adagrad", beta_1=0.5, tau=3.0, server_lr=8.0)
    assert found == pytest.approx([8 * 2 / (5 + 3), 2 + 8 * 0.5 / (26**0.5 + 3)], rel=1e-15)
    # Adam, beta_2 = 0.75: v = 0.75 * 9 + 0.25 * 16 = 10.75, then 0.75 * 10.75 + 0.25 = 8.3125.
    found = steps_along([4.0, -1.0], server="adam", beta_1=0.5, beta_2=0.75, tau=3.0, server_lr=8.0)
    first = 16 / (10.75**0.5 + 3)
    assert found == pytest.approx([first, first + 4 / (8.3125**0.5 + 3)], rel=1e-15)
    # Yogi: 9 < 16, so v = 9 + 0.25 * 16 = 13; then 13 > 1, so v = 13 - 0.25 * 1 = 12.75.
    found = steps_along([4.0, -1.0], server="yogi", beta_1=0.5, beta_2=0.75, tau=3.0, server_lr=8.0)
    first = 16 / (13**0.5 + 3)
    assert found == pytest.approx([first, first + 4 / (12.75**0.5 + 3)], rel=1e-15)


@pytest.mark.parametrize(
    ("server", "beta_1", "server_lr"),
    [("sgd", 0.7, 1.0), ("momentum", 0.9, 1.0), ("adagrad", 0.0, 0.01), ("adam", 0.9, 0.01), ("yogi", 0.9, 0.01)],
)
def test_what_is_not_given_depends_on_the_optimiser(server: str, beta_1: float, server_lr: float) -> None:
    deltas = [0.3, -0.1, 0.2]
    given = steps_along(deltas, server=server, beta_1=beta_1, beta_2=0.99, server_lr=server_lr, accumulator=1e-6)
    assert steps_along(deltas, server=server) == given


# ---------------------------------------------------------------------------------------------------- NumPy, PyTorch
def mean_updates(problem: Problem, rounds: list[Round]) -> list[Numbers]:
    """Delta_t of each round, from what the clients sent."""
    n = samples(problem)
    return [mean({r.request.to: r["delta"] for r in h.replies if r.usable}, n).numpy() for h in rounds]


def in_numpy(w: Numbers, deltas: list[Numbers], server: str, tau: float, wrong: str = "") -> Numbers:
    """Algorithm 2 with eta = 0.05, beta_1 = 0.8, beta_2 = 0.9; some variants are wrong."""
    eta, b1, b2 = 0.05, 0.8, 0.9
    if wrong == "decays swapped":
        b1, b2 = b2, b1
    m, v = np.zeros_like(w), np.full_like(w, 0.0 if wrong == "v from 0" else tau * tau)
    for t, delta in enumerate(deltas, 1):
        m = b1 * m + (1 - b1) * delta
        before, square = v, delta * delta
        if server == "adagrad":
            v = v + square
        elif server == "adam":
            v = b2 * v + (1 - b2) * square
        else:
            nearer = np.where(v > square, -1.0, 1.0) * (-1.0 if wrong == "yogi goes away" else 1.0)
            v = v + (1 - b2) * square * nearer
        root = np.sqrt(np.abs(v) + tau) if wrong == "tau within the root" else np.sqrt(np.abs(v)) + tau
        root = np.sqrt(before) + tau if wrong == "v of the round before" else root
        step = m / (1 - b1**t) if wrong == "corrected for the bias" else m
        w = w + eta * step / root
    return w


@pytest.mark.parametrize("server", ADAPTIVE)
@pytest.mark.parametrize("tau", [1e-3, 0.05])
def test_it_is_algorithm_2(server: Any, tau: float) -> None:
    problem = tiny_problem()
    make = lambda s: FedOpt(  # noqa: E731
        stack=s, lr=LR, server=server, server_lr=0.05, beta_1=0.8, beta_2=0.9, tau=tau, local_steps=2
    )
    rounds, _ = overhear(make, problem, uneven_fleet(dropout=0.2), ROUNDS)
    deltas = mean_updates(problem, rounds)
    for t, heard in enumerate(rounds):
        expected = in_numpy(problem.w.numpy(), deltas[: t + 1], server, tau)
        assert np.allclose(heard.state.w.numpy(), expected, rtol=0, atol=1e-13)
    wrong = {
        "decays swapped": True,
        "v from 0": True,
        "tau within the root": True,
        "v of the round before": True,
        "corrected for the bias": True,
        "yogi goes away": server == "yogi",
    }
    for name, shows in wrong.items():
        other = in_numpy(problem.w.numpy(), deltas, server, tau, name)
        assert np.allclose(heard.state.w.numpy(), other, rtol=0, atol=1e-7) == (not shows), name
    others = [in_numpy(problem.w.numpy(), deltas, name, tau) for name in ADAPTIVE if name != server]
    assert not any(np.allclose(heard.state.w.numpy(), other, rtol=0, atol=1e-6) for other in others)


PYTORCH: dict[str, Callable[[Tensor], torch.optim.Optimizer]] = {
    "sgd": lambda w: torch.optim.SGD([w], 0.7),
    "momentum": lambda w: torch.optim.SGD([w], 0.7, momentum=0.8),
    "adagrad": lambda w: torch.optim.Adagrad([w], 0.7, eps=0.02, initial_accumulator_value=0.02**2),
}


@pytest.mark.parametrize("server", list(PYTORCH))
def test_it_is_pytorchs_optimiser_with_the_mean_update_for_a_gradient(server: Any) -> None:
    problem, beta_1 = tiny_problem(), {"momentum": 0.8}.get(server)
    make = lambda s: FedOpt(stack=s, lr=LR, server=server, server_lr=0.7, beta_1=beta_1, tau=0.02)  # noqa: E731
    rounds, _ = overhear(make, problem, uneven_fleet(), ROUNDS)
    w = problem.w.clone().requires_grad_()
    optimiser = PYTORCH[server](w)
    for delta, heard in zip(mean_updates(problem, rounds), rounds, strict=True):
        w.grad = -torch.from_numpy(delta)
        optimiser.step()
        assert torch.allclose(heard.state.w, w.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("server", ["momentum", *ADAPTIVE])
def test_a_round_without_replies_changes_nothing(server: Any) -> None:
    """Neither weights nor moments: a server that remembers does not drift on alone."""
    problem = tiny_problem()
    heard, _ = overhear(lambda s: _ThenAlone(stack=s, lr=LR, server=server), problem, uneven_fleet(), 2)
    before, after = heard[0].state, heard[1].state
    for name in ("w", "m", "v"):
        a, b = getattr(before, name), getattr(after, name)
        assert (a is None and b is None) or torch.equal(a, b)
    assert before.m is not None
    assert before.m.abs().max() > 0
    assert after.round == 2


class _ThenAlone(FedOpt):
    """Invites nobody in its second round."""

    def round(self, state: Any, cohort: Any) -> Any:
        if state.round:
            cohort.sample = lambda n, key: ()
        return super().round(state, cohort)


@pytest.mark.parametrize(
    "wrong",
    [{"server": "fedadam"}, {"beta_1": 1.0}, {"beta_2": 1.0}, {"tau": 0.0}, {"server_lr": 0.0}, {"accumulator": -1.0}],
)
def test_hyperparameters_are_checked(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        FedOpt(stack=tiny_mlp(), **wrong)
