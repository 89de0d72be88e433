"""CycleSL: the invariant of section 4.10 of the specification, and its cycle by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms.by_hand import samples
from algorithms.overheard import Overheard
from lanterne.algorithms import PSL, CycleSL
from lanterne.errors import ConfigError, ModelError
from lanterne.experiment.parameters import make_algorithm
from lanterne.models import LayerStack
from lanterne.models.zoo import build
from lanterne.testing import Problem, simulate, tiny_cnn, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

EDGE, CLIENTS, LR, BATCH = tiny_mlp().edges[1], 6, 0.3, 4


def run(rounds: int = 1, **options: Any) -> Tensor:
    found, _ = simulate(lambda s: CycleSL(stack=s, lr=LR, **options), tiny_problem(), uneven_fleet(), rounds)
    return found


@pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "local_steps": 2}, {"cut_gradient": "pooled", "optimiser": "adam", "cut": 2}]
)
def test_one_step_on_the_pool_and_gradients_of_before_are_psl(stack: LayerStack, options: dict[str, Any]) -> None:
    """Section 4.10, bit for bit; it takes as long and costs as much, too."""
    problem = tiny_problem(stack=stack)
    (psl, one), (cycle, other), (new, _) = (
        simulate(lambda s, k=kind, m=more: k(stack=s, lr=0.1, **options, **m), problem, uneven_fleet(), 3)
        for kind, more in (
            (PSL, {}),
            (CycleSL, {"resample": False, "gradients": "old"}),
            (CycleSL, {"resample": False, "gradients": "updated"}),
        )
    )
    assert torch.equal(psl, cycle)
    assert (one.now, one.ledger) == (other.now, other.ledger)
    assert not torch.allclose(psl, new, atol=1e-6)


def test_gradients_of_before_are_those_before_the_first_epoch() -> None:
    """However many follow: clients do in a batch what they do in parallel split learning, the server goes on."""
    psl, _ = simulate(lambda s: PSL(stack=s, lr=LR), tiny_problem(), uneven_fleet(), 1)
    for resample in (False, True):
        cycle = run(server_epochs=3, resample=resample, gradients="old")
        assert torch.equal(cycle[:, :EDGE], psl[:, :EDGE])
        assert not torch.allclose(cycle[:, EDGE:], psl[:, EDGE:], atol=1e-3)


def by_hand(problem: Problem, orders: Tensor, size: int, *, old: bool, pooled: bool) -> Tensor:
    """One cycle by the user's own modules and plain autograd, every client's model."""
    w, weights = problem.w, samples(problem)
    batches = [problem.streams.rows(c, range(1))[0] for c in range(CLIENTS)]
    y = torch.cat([problem.data.y[rows] for rows in batches])
    smashed, upper = [], w[EDGE:]
    for rows in batches:
        smashed.append(nn.Sequential(*list(problem.stack.load(w))[:2])(problem.data.x[rows]).detach())
    pool = torch.cat(smashed)

    def server(upper: Tensor) -> tuple[nn.Sequential, list[Tensor]]:
        net = nn.Sequential(*list(problem.stack.load(torch.cat([w[:EDGE], upper])))[2:])
        return net, list(net.parameters())

    for order in orders:
        for rows in torch.split(order, size):
            net, mine = server(upper)
            found = torch.autograd.grad(nn.functional.cross_entropy(net(pool[rows]), y[rows]), mine)
            upper = upper - LR * torch.cat([g.reshape(-1) for g in found])
    models = []
    for c, rows in enumerate(batches):
        net = nn.Sequential(*list(problem.stack.load(torch.cat([w[:EDGE], w[EDGE:] if old else upper]))))
        loss = nn.functional.cross_entropy(net(problem.data.x[rows]), problem.data.y[rows])
        low = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net[0].parameters()))])
        share = weights[c] / sum(weights.values()) if pooled else 1.0
        models.append(torch.cat([w[:EDGE] - LR * share * low, upper]))
    return torch.stack(models)


def heard(rounds: int = 1, **options: Any) -> tuple[list[Tensor], Tensor]:
    """The orders that the server drew, batch by batch, and every client's model at the end."""
    problem, cycle = tiny_problem(), CycleSL(stack=tiny_mlp(), lr=LR, **options)
    heard = Overheard(cycle)
    heard.models = cycle.models  # type: ignore[attr-defined]
    found, _ = simulate(lambda _: heard, problem, uneven_fleet(), rounds)
    requests = [q for r in heard.rounds for q in r.requests if q.handler == "serve_all"]
    return [q.arrays["order"] for q in requests], found


@pytest.mark.parametrize("gradients", ["updated", "old"])
@pytest.mark.parametrize("cut_gradient", ["per_client", "pooled"])
@pytest.mark.parametrize("server_batch", [None, 5, 24])
def test_a_cycle_by_hand(gradients: Any, cut_gradient: Any, server_batch: int | None) -> None:
    """The server's epochs on mini-batches first, of 5 rows and 4 left over for one; then the cut gradients."""
    (orders,), found = heard(server_epochs=2, server_batch=server_batch, gradients=gradients, cut_gradient=cut_gradient)
    expected = by_hand(
        tiny_problem(), orders, server_batch or BATCH, old=gradients == "old", pooled=cut_gradient == "pooled"
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_orders_are_permutations_across_clients_new_for_every_epoch_and_batch() -> None:
    orders, found = heard(2, server_epochs=3, local_steps=2)
    again, same = heard(2, server_epochs=3, local_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(orders, again, strict=True))
    assert torch.equal(found, same)
    each = [tuple(order.tolist()) for batch in orders for order in batch]
    assert len(each) == len(set(each)) == 3 * 4
    assert all(sorted(order) == list(range(CLIENTS * BATCH)) for order in each)
    owners = [{row // BATCH for row in order[:BATCH]} for order in each]
    assert all(len(found) > 1 for found in owners)


def test_a_mini_batch_of_all_rows_is_the_pool_where_clients_count_alike() -> None:
    """Which order they are in does not matter then, but for rounding."""
    options: dict[str, Any] = {"weights": "equal", "server_epochs": 3}
    whole, pool = run(2, server_batch=CLIENTS * BATCH, **options), run(2, resample=False, **options)
    assert torch.allclose(whole, pool, rtol=0, atol=1e-12)
    assert not torch.allclose(whole, run(2, server_batch=BATCH, **options), atol=1e-6)


def moved(found: Tensor) -> Tensor:
    return (found - tiny_problem().w)[:, :EDGE]


@pytest.mark.parametrize("gradients", ["updated", "old"])
def test_gradients_of_resampled_batches_differ_in_scale_alone(gradients: Any) -> None:
    """Where no layer looks at a batch as a whole, a row's gradient is 1/|B| of what it is by itself."""
    options: dict[str, Any] = {"server_epochs": 2, "server_batch": 8, "gradients": gradients}
    original, resampled = (run(gradient_batches=b, **options) for b in ("original", "resampled"))
    assert torch.allclose(original, resampled, rtol=0, atol=1e-12)
    pooled = run(gradient_batches="resampled", cut_gradient="pooled", **options)
    assert torch.allclose(moved(pooled), BATCH / 8 * moved(original), rtol=0, atol=1e-12)
    assert moved(original).abs().max() > 1e-3


def test_gradients_of_resampled_batches_are_normalised_with_others_rows() -> None:
    """With BatchNorm behind the cut it matters with whom a row goes through."""
    net = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)]
    problem = tiny_problem(stack=LayerStack(nn.Sequential(*net), (6,)))
    found = [
        simulate(lambda s, b=b: CycleSL(stack=s, lr=LR, gradient_batches=b), problem, uneven_fleet(), 1)[0]
        for b in ("original", "resampled")
    ]
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "rows", "expected"),
    [
        (None, [4, 4, 4], [(0, 4), (4, 8), (8, 12)]),
        (5, [4, 4, 4], [(0, 5), (5, 10), (10, 12)]),
        (11, [4, 4, 4], [(0, 12)]),
        (50, [4], [(0, 4)]),
        (1, [2, 2], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (None, [1], [(0, 1)]),
    ],
)
def test_no_row_is_left_alone(size: int | None, rows: Sequence[int], expected: list[tuple[int, int]]) -> None:
    """Every row is in one mini-batch; a single one that is left over joins the last."""
    assert CycleSL(stack=tiny_mlp(), server_batch=size).mini_batches(rows) == expected


def test_mistakes_are_said() -> None:
    for wrong in ({"server_batch": 8}, {"gradient_batches": "resampled"}):
        with pytest.raises(ConfigError, match="resample = false every step is on all rows at once"):
            make_algorithm("cyclesl", tiny_mlp(), resample=False, **wrong)
    with pytest.raises(ConfigError, match="server_batch is 0, but has to be at least 1"):
        make_algorithm("cyclesl", tiny_mlp(), server_batch=0)
    with pytest.raises(ModelError, match="cannot normalise a batch of one row"):
        CycleSL(stack=build("resnet-small:norm=batch", (1, 8, 8), 10), server_batch=1)
