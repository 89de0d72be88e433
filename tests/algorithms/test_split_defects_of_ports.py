"""The defects of sections 7.2 to 7.4 of the specification, as those before them are in `test_split_defects.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import gradient, samples
from algorithms.defective import (
    CLIENTS,
    EDGE,
    LR,
    METHODS,
    STEPS,
    Defective,
    forgetful,
    refuses,
    stack,
    watch,
    wrapping,
)
from algorithms.overheard import Overheard
from algorithms.split_methods import make
from lanterne.algorithms import PSL
from lanterne.split import SLOTS
from lanterne.testing import simulate, tiny_problem, uneven_fleet


# ------------------------------------------------- 7.2, 7.3, 7.4: whose gradient, and whose memory: PSL step by step
def by_hand(rounds: int, momentum: float, present: Iterable[int] = range(CLIENTS)) -> Tensor:
    """PSL by plain autograd, each client and the server with a velocity of its own, `[clients present, size]`."""
    problem, clients = tiny_problem(CLIENTS), list(present)
    weights = samples(problem)
    whole = sum(weights[c] for c in clients)
    halves, server = dict.fromkeys(clients, problem.w[:EDGE]), problem.w[EDGE:]
    velocity = {c: torch.zeros(EDGE, dtype=torch.float64) for c in clients}
    drive = torch.zeros_like(server)
    for step in range(rounds * STEPS):
        g = {c: gradient(problem, torch.cat([halves[c], server]), c, step) for c in clients}
        drive = momentum * drive + sum(weights[c] / whole * g[c][EDGE:] for c in clients)
        for c in clients:
            velocity[c] = momentum * velocity[c] + g[c][:EDGE]
            halves[c] = halves[c] - LR * velocity[c]
        server = server - LR * drive
    return torch.stack([torch.cat([halves[c], server]) for c in clients])


def check_psl(algorithm: Any, momentum: float = 0.0, missing: int | None = None) -> None:
    fleet = uneven_fleet(CLIENTS)
    lost = [replace(d, dropout=1.0) if c == missing else d for c, d in enumerate(fleet.devices)]
    models, _, _ = watch(algorithm, 2, replace(fleet, devices=lost))
    expected = by_hand(2, momentum, [c for c in range(CLIENTS) if c != missing])
    assert models[1].shape == expected.shape
    assert torch.allclose(models[1], expected, rtol=0, atol=1e-12)


ALIKE = pytest.mark.parametrize(
    ("name", "options"), [("psl", {}), ("sglr", {"alpha": 0.0, "phi": 0.0, "cut_gradient": "per_client"})]
)


@wrapping("serve_all")
def accumulating(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
    """The server's gradients are never set to zero."""
    after, out = handler(task, state, inbox, local)
    moved = after["w"] - inbox.arrays.get("w", state["w"]) + state.get("moved", 0.0)
    return {**after, "w": inbox.arrays.get("w", state["w"]) + moved, "moved": moved}, out


@ALIKE
def test_7_2_gradients_do_not_accumulate_over_batches(name: str, options: dict[str, Any]) -> None:
    algorithm = make(name, stack(), local_steps=STEPS, **options)
    check_psl(algorithm)
    refuses(lambda: check_psl(Defective(algorithm, accumulating)))


@wrapping("backward")
def anew(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
    """A client's optimiser is made anew for every batch."""
    return handler(task, {n: t for n, t in state.items() if n not in SLOTS}, inbox, local)


@ALIKE
def test_7_2_and_7_4_clients_keep_their_own_momentum(name: str, options: dict[str, Any]) -> None:
    """Neither is it forgotten between batches and rounds, nor does it leak to whoever is next (GAS, 4.7.12)."""
    algorithm = make(name, stack(), local_steps=STEPS, momentum=0.5, **options)
    latest: dict[str, Tensor] = {}

    @wrapping("backward")
    def leaking(handler: Any, task: Any, state: Any, inbox: Any, local: Any) -> Any:
        if local.x.device.type != "meta" and latest:
            state = {**state, **latest}
        after, out = handler(task, state, inbox, local)
        if local.x.device.type != "meta":
            latest["m"] = after["m"]
        return after, out

    check_psl(algorithm, 0.5)
    refuses(lambda: check_psl(Defective(algorithm, anew), 0.5))
    refuses(lambda: check_psl(Defective(algorithm, forgetful), 0.5))
    refuses(lambda: check_psl(Defective(algorithm, leaking), 0.5))


class Crossed(PSL):
    """The gradients go back in the order in which features were not."""

    def _serve(self, arrived: Any, *others: Any) -> Any:
        return super()._serve(arrived[::-1], *others)


@pytest.mark.parametrize("missing", [None, 0, 2])
def test_7_3_and_7_4_everybody_gets_the_gradient_of_its_own_upload(missing: int | None) -> None:
    """Also where the places of those who are there are not their numbers."""
    check_psl(make("psl", stack(), local_steps=STEPS), missing=missing)
    crossed = Crossed(stack=stack(), cut=1, lr=LR, local_steps=STEPS)
    refuses(lambda: check_psl(crossed, missing=missing))


@pytest.mark.parametrize("options", [{}, {"quorum": 2}, {"cut_deadline": 0.02}], ids=str)
@pytest.mark.parametrize("name", ["psl", "sglr", "splitfed_v2"])
def test_7_4_an_upload_is_used_once_and_in_the_batch_to_which_it_belongs(name: str, options: dict[str, Any]) -> None:
    """What comes too late is not what the next batch is served with."""
    heard = Overheard(make(name, stack(), local_steps=STEPS, **options))
    simulate(lambda _: heard, tiny_problem(CLIENTS), uneven_fleet(CLIENTS), 2)
    for round, said in enumerate(heard.rounds):
        used: list[Any] = []
        for q in said.requests:
            ups = [a.request for n, a in q.arrays.items() if n.startswith("smashed")]
            used += ups
            assert len({up.batches for up in ups}) <= 1
            assert all(up.batches.start // STEPS == round for up in ups)
            if q.handler == "backward":
                served = q.arrays["gradient"].request
                mine = [a.request for n, a in served.arrays.items() if n.startswith("smashed")]
                place = int(q.arrays["gradient"].name.removeprefix("gradient_") or 0) if name != "splitfed_v2" else 0
                assert (mine[place].to, mine[place].batches) == (q.to, q.batches)
        assert used
        assert len(used) == len(set(map(id, used)))


# -------------------------------------------------------------------------------------------- 7.3: FedML's split_nn
def check_rates(build: Callable[..., Any]) -> None:
    """Twice the rate of a half is twice its first step, and the other half's is what it was."""
    problem = tiny_problem(1)

    def first(**rates: float) -> Tensor:
        models, _, _ = watch(build(**rates), 1, uneven_fleet(1), problem)
        return (models[0] - problem.w).reshape(-1)

    plain, client, server = first(lr=0.1, server_lr=0.1), first(lr=0.2, server_lr=0.1), first(lr=0.1, server_lr=0.2)
    assert torch.allclose(client[:EDGE], 2 * plain[:EDGE], rtol=1e-10, atol=0)
    assert torch.equal(client[EDGE:], plain[EDGE:])
    assert torch.equal(server[:EDGE], plain[:EDGE])
    assert torch.allclose(server[EDGE:], 2 * plain[EDGE:], rtol=1e-10, atol=0)


@METHODS
def test_7_3_the_rates_are_those_that_were_set(name: str) -> None:
    check_rates(lambda **rates: make(name, stack(), **rates))
    refuses(lambda: check_rates(lambda **_: make(name, stack(), lr=0.1)))


def check_stream(algorithm: Any) -> None:
    """Over three rounds every client reads its batches one after the other, each once, and judging reads none."""
    _, seen, _ = watch(algorithm, 3)
    streams = tiny_problem(CLIENTS).streams
    for client in range(CLIENTS):
        read = [s.job.rows() for s in seen if s.job.to == client and s.job.handler in ("forward", "local")]
        assert len(read) == 3 * STEPS
        for step, rows in enumerate(read):
            assert (rows == streams.rows(client, range(step, step + 1))).all()


@METHODS
def test_7_3_each_batch_is_read_once_and_a_round_counts_once(name: str) -> None:
    algorithm = make(name, stack(), local_steps=STEPS)

    def twice(state: Any, cohort: Any) -> Any:
        after = yield from algorithm.round(state, cohort)
        return replace(after, round=after.round + 1)

    check_stream(algorithm)
    refuses(lambda: check_stream(Defective(algorithm, round=twice)))
