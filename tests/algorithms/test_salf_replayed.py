"""SALF on the clock, replayed: each round's weights follow from what the server heard, by the rule's own formula.

Each test also replays what a plausible mistake would give, and sees the difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import gammaincc

from algorithms.overheard import Round, alike, moved, overhear, shares
from lanterne.algorithms import Salf
from lanterne.fleet import Fleet, preset
from lanterne.testing import tiny_problem

LAYERS, CLIENTS, ROUNDS = 3, 6, 12
MEAN, DEADLINE, DROPOUT = 0.5, 1.0, 0.2
PROBLEM = tiny_problem(CLIENTS)
STACK = PROBLEM.stack

#: P[a client reaches block b by the deadline and is heard]: that of Poisson(T/m), times that of not being lost.
Q = [(1 - float(gammaincc(LAYERS - b, DEADLINE / MEAN))) * (1 - DROPOUT) for b in range(LAYERS)]


def fleet() -> Fleet:
    """Devices that reach any depth, and are sometimes lost."""
    return preset("exponential-layers", mean=MEAN, dropout=DROPOUT).build(CLIENTS, 3, LAYERS)


def rounds_of(**options: Any) -> list[Round]:
    """What was said in a few rounds to which three of the six are invited."""
    make = lambda s: Salf(stack=s, lr=0.3, deadline=DEADLINE, **{"cohort": 3, **options})  # noqa: E731
    return overhear(make, PROBLEM, fleet(), ROUNDS)[0]


def replays(heard: list[Round], scale: Callable[[int, int, int, list[int]], float]) -> list[bool]:
    """For each round, whether its weights are `w_l + sum_u scale(round, l, u, S_l) delta_u,l`."""
    return [
        alike(h.state.w, moved(STACK, h, lambda b, u, there, t=t: scale(t, b, u, there))) for t, h in enumerate(heard)
    ]


# ------------------------------------------------------------------------------------------- p and q from the rounds
def test_empirical_p_follows_the_rounds_in_which_nobody_came() -> None:
    heard = rounds_of(p="empirical", factor_cap=1e9)
    empty = [[not there for there in h.deltas(STACK)] for h in heard]

    def p(t: int, b: int) -> float:
        return (sum(e[b] for e in empty[:t]) + 1) / (t + 2)

    assert all(replays(heard, lambda t, b, u, there: shares(PROBLEM, there)[u] / (1 - p(t, b))))
    assert [sum(e[b] for e in empty) for b in range(LAYERS)] == list(heard[-1].state.empty)
    assert 1 < heard[-1].state.empty[0] < ROUNDS - 1  # so that the count counts
    never = replays(heard, lambda t, b, u, there: shares(PROBLEM, there)[u] / (1 - 1 / (t + 2)))
    assert not all(never)


def test_empirical_q_follows_the_rounds_in_which_a_client_came() -> None:
    """`q_u,l = (times that u reached l + 1) / (times that u was invited + 2)`, of every client its own."""
    heard = rounds_of(rule="ht", p="empirical", factor_cap=1e9)
    invited = [Counter(c for h in heard[:t] for c in h.invited) for t in range(ROUNDS)]
    came = [[Counter(c for h in heard[:t] for c in h.deltas(STACK)[b]) for b in range(LAYERS)] for t in range(ROUNDS)]

    def rule(q: Callable[[int, int, int], float]) -> list[bool]:
        return replays(heard, lambda t, b, u, there: shares(PROBLEM, heard[t].invited)[u] / q(t, b, u))

    assert all(rule(lambda t, b, u: (came[t][b][u] + 1) / (invited[t][u] + 2)))
    assert not all(rule(lambda t, b, u: 1 / 2))  # nothing remembered
    assert not all(rule(lambda t, b, u: (came[t][b][u] + 1) / (t + 2)))  # rounds instead of invitations
    assert not all(rule(lambda t, b, u: (sum(came[t][b].values()) + 1) / (sum(invited[t].values()) + 2)))  # in common


@pytest.mark.parametrize("rule", ["paper", "cond", "code", "ht"])
@pytest.mark.parametrize("p", ["auto", "clock", "empirical", "zero"])
def test_a_history_is_kept_where_q_is_learned_from_it(rule: Any, p: Any) -> None:
    heard = rounds_of(rule=rule, p=p)
    invited = Counter(c for h in heard for c in h.invited)
    came = [Counter(c for h in heard for c in h.deltas(STACK)[b]) for b in range(LAYERS)]
    full = {c: (n, *(came[b][c] for b in range(LAYERS))) for c, n in invited.items()}
    assert heard[-1].state.history == (full if (rule, p) == ("ht", "empirical") else {})


# ------------------------------------------------------------------------------------------- knobs of the rules
@pytest.mark.parametrize("cap", [1.3, 2.0, 1e9])
def test_the_cap_bounds_the_factors_of_horvitz_thompson(cap: float) -> None:
    heard = rounds_of(rule="ht", factor_cap=cap)
    alpha = [shares(PROBLEM, h.invited) for h in heard]
    assert all(replays(heard, lambda t, b, u, there: alpha[t][u] * min(1 / Q[b], cap)))
    assert all(replays(heard, lambda t, b, u, there: alpha[t][u] / Q[b])) == (cap == 1e9)
    capped = sum(1 / Q[b] > cap for h in heard for b, there in enumerate(h.deltas(STACK)) for _ in there)
    assert heard[-1].state.capped == capped
    assert (capped > 0) == (cap < 1e9)


@pytest.mark.parametrize("cap", [1.05, 1.5, 1e9])
@pytest.mark.parametrize("shrinkage", [0.0, 0.4, 1.0])
def test_cap_and_shrinkage_of_the_paper_s_rule(cap: float, shrinkage: float) -> None:
    """`1/(1 - p) * ((1 - s) + s * share that came)` of the mean: s = 1 divides by all, as `code` does, and corrects."""
    heard = rounds_of(shrinkage=shrinkage, factor_cap=cap)

    def rule(s: float, c: float) -> list[bool]:
        def scale(t: int, b: int, u: int, there: list[int]) -> float:
            everybody = shares(PROBLEM, heard[t].invited)
            part = (1 - s) + s * sum(everybody[v] for v in there)
            return min(1 / (1 - (1 - Q[b]) ** 3), c) * part * shares(PROBLEM, there)[u]

        return replays(heard, scale)

    assert all(rule(shrinkage, cap))
    assert all(rule(0.0, cap)) == (shrinkage == 0.0)
    assert all(rule(shrinkage, 1e9)) == (cap == 1e9)


@pytest.mark.parametrize("p", ["auto", "clock", "zero"])
def test_with_p_zero_the_paper_s_rule_is_the_mean_over_contributors(p: Any) -> None:
    found, mean = rounds_of(p=p), rounds_of(rule="cond")
    assert torch.equal(found[-1].state.w, mean[-1].state.w) == (p == "zero")


@pytest.mark.parametrize("rule", ["code", "ht"])
def test_all_are_those_who_were_invited(rule: Any) -> None:
    """What `code` and `ht` divide by: the invited, lost ones included, not the arrivals and not the population."""
    heard = rounds_of(rule=rule, p="zero")
    assert any(len(h.invited) > len([r for r in h.replies if r.usable]) for h in heard)
    assert all(replays(heard, lambda t, b, u, there: shares(PROBLEM, heard[t].invited)[u]))
    assert not all(replays(heard, lambda t, b, u, there: shares(PROBLEM, there)[u]))
    assert not any(replays(heard, lambda t, b, u, there: shares(PROBLEM, list(range(CLIENTS)))[u]))


# ------------------------------------------------------------------------------------------- velocity
def velocities(heard: list[Round], momentum: float, kept: str) -> list[bool]:
    """For each reply, whether its delta is `-lr m'`, `m' = momentum m + g` on the blocks reached, with the kept `m`."""
    m: dict[int, torch.Tensor] = {}
    found = []
    for t, h in enumerate(heard):
        for r in h.replies:
            u, start = r.request.to, STACK.size - len(r["delta"])
            rows = torch.from_numpy(PROBLEM.streams.rows(u, range(t, t + 1)))[0]
            everything = STACK.span(0, LAYERS)
            g = PROBLEM.task.gradient(everything, h.w, PROBLEM.data.x[rows], PROBLEM.data.y[rows])
            now = m.get(u, torch.zeros_like(h.w)).clone()
            now[start:] = momentum * now[start:] + g[start:]
            found.append(alike(r["delta"], -0.3 * now[start:]))
            if kept == "always" or (kept == "if complete" and r.outcome == "complete"):
                m[u] = now
            else:
                m.pop(u, None)
    return found


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("fleet", ["exponential-layers", "uniform-depth"])
def test_a_straggler_keeps_its_velocity(fleet: str, keep: bool) -> None:
    devices = preset(fleet).build(CLIENTS, 5, LAYERS)
    make = lambda s: Salf(stack=s, lr=0.3, deadline=1.0, momentum=0.5, keep_momentum=keep)  # noqa: E731
    heard, _ = overhear(make, PROBLEM, devices, 6)
    outcomes = Counter(r.outcome for h in heard for r in h.replies)
    assert set(outcomes) == {"complete", "partial"}
    for kept in ("always", "if complete", "never"):
        assert all(velocities(heard, 0.5, kept)) == (kept == ("always" if keep else "never")), kept
