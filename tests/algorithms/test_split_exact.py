"""Exact split learning, by the numbers of section 9 of the specification: cut models train as uncut ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.by_hand import gradient, samples
from algorithms.overheard import Overheard
from lanterne.algorithms import PSL, FedAvg, SequentialSL, SplitFedV1, SplitFedV2
from lanterne.budget import Units
from lanterne.errors import ModelError
from lanterne.learn import Optimiser
from lanterne.models import LayerStack, suffix
from lanterne.protocol import Inbox, Local
from lanterne.split import Halves
from lanterne.testing import Problem, simulate, tiny_cnn, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

STACKS = pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.3},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "adam": {"lr": 0.02, "optimiser": "adam"},
}
KINDS = pytest.mark.parametrize("kind", list(OPTIMISERS))


def places(stack: LayerStack) -> list[dict[str, int]]:
    """All cuts, and all U-shaped ones."""
    n = len(stack)
    plain = [{"cut": at} for at in range(1, n)]
    return plain + [{"cut": at, "tail": end} for at in range(1, n) for end in range(at + 1, n)]


def run(make: Callable[[LayerStack], Any], problem: Problem, rounds: int = 3) -> Tensor:
    return simulate(make, problem, uneven_fleet(len(problem.rows)), rounds)[0]


def optimiser(problem: Problem, kind: str, w: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
    """PyTorch's own, on a copy of the weights."""
    options = OPTIMISERS[kind]
    p = w.clone().requires_grad_()
    if kind == "adam":
        return p, torch.optim.Adam([p], lr=options["lr"])
    return p, torch.optim.SGD([p], lr=options["lr"], momentum=options.get("momentum", 0.0))


def descend(problem: Problem, kind: str, w: Tensor, client: int, steps: range) -> Tensor:
    """Local training of the whole model by PyTorch's own optimiser."""
    p, step_of = optimiser(problem, kind, w)
    for step in steps:
        p.grad = gradient(problem, p.detach(), client, step)
        step_of.step()
    return p.detach()


def averaged(problem: Problem, kind: str, rounds: int, steps: int, kept: bool) -> Tensor:
    """Federated averaging by hand, each client with PyTorch's own optimiser: kept between rounds, or made anew."""
    weights, w = samples(problem), problem.w
    clients = {c: optimiser(problem, kind, w) for c in weights}
    for round in range(rounds):
        total = torch.zeros_like(w)
        for c, weight in weights.items():
            p, step_of = clients[c] = clients[c] if kept else optimiser(problem, kind, w)
            p.data.copy_(w)
            for step in range(round * steps, (round + 1) * steps):
                p.grad = gradient(problem, p.detach(), c, step)
                step_of.step()
            total += weight * (p.detach() - w)
        w = w + total / sum(weights.values())
    return w


@STACKS
@KINDS
def test_2_sl_with_one_client_is_centralised_training(stack: LayerStack, kind: str) -> None:
    problem = tiny_problem(1, stack=stack)
    expected = descend(problem, kind, problem.w, 0, range(6))
    for place in places(stack):
        found = run(
            lambda s, place=place: SequentialSL(
                stack=s, local_steps=2, handoff="optimiser", **OPTIMISERS[kind], **place
            ),
            problem,
        )
        assert torch.allclose(found, expected, rtol=0, atol=1e-12), place


def test_2_without_its_optimiser_the_next_visit_begins_anew() -> None:
    problem = tiny_problem(1)
    one, other = (
        run(lambda s, h=h: SequentialSL(stack=s, lr=0.1, momentum=0.9, handoff=h), problem)
        for h in ("weights", "optimiser")
    )
    assert not torch.allclose(one, other, atol=1e-3)


def test_2_visits_follow_one_another_and_hand_on() -> None:
    """Client after client from the weights of the one before, the server never starting anew."""
    problem = tiny_problem(3)
    w = problem.w
    for client in range(3):
        for step in range(2):
            w = w - 0.3 * gradient(problem, w, client, step)
    found = run(lambda s: SequentialSL(stack=s, lr=0.3, local_steps=2, order="ascending"), problem, 1)
    assert torch.allclose(found, w, rtol=0, atol=1e-12)


def test_3_one_step_of_v1_is_one_step_on_the_pooled_batch() -> None:
    problem = tiny_problem()
    whole = torch.stack([gradient(problem, problem.w, c, 0) for c in range(6)]).mean(0)
    found = run(lambda s: SplitFedV1(stack=s, lr=0.3, weights="equal"), problem, 1)
    assert torch.allclose(found, problem.w - 0.3 * whole, rtol=0, atol=1e-12)


@STACKS
@pytest.mark.parametrize("kept", [False, True])
@KINDS
def test_4_and_5_v1_is_fedavg_wherever_the_model_is_cut(stack: LayerStack, kind: str, kept: bool) -> None:
    """Exactly, for three local steps of any optimiser; so it does not depend on the cut."""
    problem, options = tiny_problem(stack=stack), OPTIMISERS[kind]
    if kind == "adam":
        expected = averaged(problem, kind, rounds=3, steps=3, kept=kept)
    else:
        expected = run(lambda s: FedAvg(stack=s, local_steps=3, keep_momentum=kept, **options), problem)
    first = None
    for place in places(stack):
        found = run(lambda s, p=place: SplitFedV1(stack=s, local_steps=3, keep_optimiser=kept, **options, **p), problem)
        if kind == "adam":
            assert torch.allclose(found, expected, rtol=0, atol=1e-12), place
        else:
            assert torch.equal(found, expected), place
        first = found if first is None else first
        assert torch.equal(found, first), place


class Forgetful(Halves):
    """The authors' server, whose optimiser is made anew for every batch."""

    def _served(self, state: Any, inbox: Any, g: Tensor, gradient: Tensor) -> Any:
        w, _ = self.server.step(state["w"], {}, g)
        return {"w": w}, {"gradient": gradient, **({"half": w} if inbox.config["last"] else {})}


class ForgetfulV1(SplitFedV1):
    @property
    def halves(self) -> Halves:  # type: ignore[override]
        here = super().halves
        return Forgetful(here.stack, here.client, here.server, here.keep, here.keep_server)


def test_4_a_server_optimiser_made_anew_for_every_batch_breaks_it() -> None:
    """The first defect of the reference code that section 7.1 lists."""
    problem, options = tiny_problem(), {"lr": 0.02, "optimiser": "adam", "local_steps": 3}
    good, bad = (run(lambda s, k=k: k(stack=s, **options), problem) for k in (SplitFedV1, ForgetfulV1))
    assert not torch.allclose(good, bad, atol=1e-3)


@pytest.mark.parametrize("order", ["batches", "epochs"])
def test_v2_by_hand(order: str) -> None:
    """One client is centralised; the server steps once for every batch of every client, at the weights of the last."""
    problem = tiny_problem(1)
    expected = descend(problem, "sgd", problem.w, 0, range(4))
    found = run(lambda s: SplitFedV2(stack=s, lr=0.3, local_steps=4, order=order), problem, 1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_5_v2_depends_on_the_order_of_the_clients_and_the_batches() -> None:
    """Interleaved as the paper says, or epoch by epoch as its code does: against a server and two clients by hand."""
    problem, at, lr = tiny_problem(2), 1, 0.3
    edge = problem.stack.edges[at]
    weights = samples(problem)

    def by_hand(visits: list[tuple[int, int]]) -> Tensor:
        server, halves = problem.w[edge:], dict.fromkeys(range(2), problem.w[:edge])
        for client, step in visits:
            g = gradient(problem, torch.cat([halves[client], server]), client, step)
            halves[client], server = halves[client] - lr * g[:edge], server - lr * g[edge:]
        mean = sum(weights[c] * half for c, half in halves.items()) / sum(weights.values())
        return torch.cat([mean, server])

    batches = [[(a, 0), (1 - a, 0), (b, 1), (1 - b, 1)] for a in (0, 1) for b in (0, 1)]
    epochs = [[(a, 0), (a, 1), (1 - a, 0), (1 - a, 1)] for a in (0, 1)]
    for order, mine, others in (("batches", batches, epochs), ("epochs", epochs, batches)):
        found = run(lambda s, o=order: SplitFedV2(stack=s, lr=lr, local_steps=2, order=o), problem, 1)
        assert any(torch.allclose(found, by_hand(v), rtol=0, atol=1e-12) for v in mine), order
        assert not any(torch.allclose(found, by_hand(v), rtol=0, atol=1e-9) for v in others), order
        assert not torch.allclose(by_hand(mine[0]), by_hand(mine[-1]), rtol=0, atol=1e-9)


def test_v2_serves_every_batch_in_an_order_of_its_own() -> None:
    problem, steps = tiny_problem(), 6
    heard = Overheard(SplitFedV2(stack=problem.stack, lr=0.3, local_steps=steps))
    simulate(lambda _: heard, problem, uneven_fleet(), 1)
    served = [q.arrays["smashed"].request for q in heard.rounds[0].requests if q.handler == "serve"]
    orders = [[q.to for q in served if q.batches.start == step] for step in range(steps)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert [q.batches.start for q in served] == sorted(q.batches.start for q in served)


def test_what_a_cut_off_client_remembers_does_not_outlive_its_half() -> None:
    """The optimiser of a client that did not hand in is not used on the half that it is given next."""
    problem, edge = tiny_problem(2), tiny_mlp().edges[1]
    halves = Halves(problem.stack, Optimiser(lr=0.1, momentum=0.9), Optimiser(lr=0.1))
    inbox = Inbox({"w": problem.w[:edge]}, {"cut": (1, 0)})
    local = Local(problem.data.x[None, :4], problem.data.y[None, :4], torch.tensor(0), Units(None))
    state = {"w": problem.w[:edge] + 1.0, "m": torch.ones(edge, dtype=torch.float64)}
    fresh, _ = halves.forward(problem.task, dict(state), inbox, local)
    kept, _ = replace(halves, keep=True).forward(problem.task, dict(state), inbox, local)
    assert "m" not in fresh
    assert torch.equal(kept["m"], state["m"])
    assert torch.equal(fresh["w"], problem.w[:edge])


def test_6_a_pooled_loss_scales_what_a_client_gets() -> None:
    """`delta_i g_i`: a client's step is shorter by its share; the server's is the same."""
    problem, edge = tiny_problem(), tiny_mlp().edges[1]
    weights = samples(problem)
    whole, pooled = (
        run(lambda s, c=c: PSL(stack=s, lr=0.3, cut_gradient=c), problem, 1) for c in ("per_client", "pooled")
    )
    for client in range(6):
        share = weights[client] / sum(weights.values())
        a, b = ((found[client] - problem.w)[:edge] for found in (whole, pooled))
        assert torch.allclose(share * a, b, rtol=0, atol=1e-12)
        assert not torch.allclose(a, b, atol=1e-4)
        expected = gradient(problem, problem.w, client, 0)[:edge]
        assert torch.allclose(a, -0.3 * expected, rtol=0, atol=1e-12)
    assert torch.equal(whole[:, edge:], pooled[:, edge:])


def test_7_one_step_of_psl_is_the_average_of_v1s_replicas() -> None:
    problem, edge = tiny_problem(), tiny_mlp().edges[1]
    one = run(lambda s: SplitFedV1(stack=s, lr=0.3), problem, 1)
    many = run(lambda s: PSL(stack=s, lr=0.3), problem, 1)
    for model in many:
        assert torch.allclose(model[edge:], one[edge:], rtol=0, atol=1e-12)
    assert not torch.allclose(many[0], many[1], atol=1e-4)


@STACKS
def test_gradients_of_several_inputs_are_those_of_each(stack: LayerStack) -> None:
    """One pass over everybody's smashed data, of unlike batches too, in both forms."""
    problem = tiny_problem(stack=stack)
    view = suffix(stack, 1)
    w = problem.w[stack.edges[1] :]
    smashed = torch.randn(9, *stack.output_shapes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, y, weights = smashed.split([4, 2, 3]), problem.data.y[:9].split([4, 2, 3]), [0.5, 0.2, 0.3]
    for functional in (False, True):
        task = replace(problem.task, functional=functional)
        g, ups = task.gradient_with_inputs(view, w, x, y, weights)
        each = [problem.task.gradient_with_input(view, w, a, b) for a, b in zip(x, y, strict=True)]
        assert torch.allclose(g, sum(k * e[0] for k, e in zip(weights, each, strict=True)), rtol=0, atol=1e-12)
        for up, (_, expected) in zip(ups, each, strict=True):
            assert torch.allclose(up, expected, rtol=0, atol=1e-12)


@KINDS
def test_the_optimiser_is_pytorchs(kind: str) -> None:
    """And acts on every number for itself: two halves step as the whole does, to the bit."""
    options = OPTIMISERS[kind]
    mine = Optimiser(options.get("optimiser", "sgd"), options["lr"], options.get("momentum", 0.0))
    g = torch.Generator().manual_seed(0)
    w = torch.randn(50, dtype=torch.float64, generator=g)
    p, theirs = optimiser(tiny_problem(1), kind, w)
    slots: dict[str, Tensor] = {}
    parts, part_slots = [w[:13], w[13:]], [dict[str, Tensor](), dict[str, Tensor]()]
    for _ in range(5):
        gradient = torch.randn(50, dtype=torch.float64, generator=g)
        w, slots = mine.step(w, slots, gradient)
        p.grad = gradient
        theirs.step()
        assert torch.allclose(w, p, rtol=0, atol=1e-14)
        for i, piece in enumerate((gradient[:13], gradient[13:])):
            parts[i], part_slots[i] = mine.step(parts[i], part_slots[i], piece)
        assert torch.equal(torch.cat(parts), w)
    assert mine.slots == tuple(slots)
    assert mine.remembered(w) == sum(t.nbytes for t in slots.values())


def test_an_illegal_cut_names_the_legal_ones() -> None:
    with pytest.raises(ModelError, match=r"Legal cuts: 1 '0'.*2 '2'"):
        SplitFedV1(stack=tiny_mlp(), cut=3)
    with pytest.raises(ModelError, match="no block is left for the server"):
        SplitFedV1(stack=tiny_mlp(), cut=2, tail=1)


def test_the_graph_is_kept_across_the_cut_and_used_once() -> None:
    """The client does not run forward again; where the graph is gone it does, and the bits are the same."""
    from lanterne.learn import Graphs, Task
    from lanterne.models import prefix
    from lanterne.models.flops import FlopCounter

    problem = tiny_problem(stack=tiny_cnn())
    view, x = prefix(problem.stack, 2), problem.data.x[:4]
    task, w = Task(problem.stack, graphs=Graphs()), problem.w[: view.size]
    smashed = task.smash(view, w, x)
    assert torch.equal(smashed, task.predict(view, w, x))
    up = torch.ones_like(smashed)
    with FlopCounter() as once:
        first = task.pullback(view, w, x, up, smashed)
    with FlopCounter() as again:
        second = task.pullback(view, w, x, up, smashed)
    assert torch.equal(first, second)
    assert once.total < again.total
    other = task.smash(view, w, x)
    assert task.graphs is not None
    assert len(task.graphs) == 1
    del other
    assert len(task.graphs) == 0
