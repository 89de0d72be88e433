"""What LocFedMix-SL's options of the server's step and of the reconstruction say, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from algorithms.test_locfedmix import CLIENTS, DEVICE, EDGE, LR, make, mixes, server_gradient
from lanterne.budget import Units
from lanterne.fleet import Fleet, Server
from lanterne.models import prefix
from lanterne.protocol import Inbox, Local
from lanterne.testing import simulate, tiny_problem


@pytest.mark.parametrize("loss", ["added", "convex"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_mixtures_are_summed_or_averaged_and_added_or_weighed(reduce: str, loss: str) -> None:
    """Convex is divided by the sum of all weights: 1 + mu of a mean, 1 + mu n of a sum of n."""
    problem, mu = tiny_problem(CLIENTS), 0.7
    (mix,) = mixes(problem, 1, 1, partners=3)
    (plain, _), (mean, _) = server_gradient(problem, None), server_gradient(problem, mix)
    weight = mu * (3 if reduce == "sum" else 1)
    expected = (plain + weight * (mean - plain)) / (1 + weight if loss == "convex" else 1)
    found, _ = server_gradient(problem, mix, mix_weight=mu, mix_reduce=reduce, mix_loss=loss)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["added", "convex"])
def test_a_convex_loss_is_convex_for_the_clients_as_well(loss: str) -> None:
    problem, mu = tiny_problem(CLIENTS), 0.7
    (mix,) = mixes(problem, 1, 1, partners=2)
    (_, own), (_, both) = server_gradient(problem, None), server_gradient(problem, mix, mix_to_clients=True)
    _, found = server_gradient(problem, mix, mix_weight=mu, mix_loss=loss, mix_to_clients=True)
    for a, b, ups in zip(own, both, found, strict=True):
        expected = (a + mu * (b - a)) / (1 + mu if loss == "convex" else 1)
        assert torch.allclose(ups, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cut_gradient", "times"), [("per_client", 1.0), ("pooled", 1 / CLIENTS), ("sum", None)])
@pytest.mark.parametrize("cut_weights", ["before", "after"])
def test_what_clients_are_sent(cut_gradient: str, times: float | None, cut_weights: str) -> None:
    """Of one's own loss, of that of all samples, or of a sum over rows; at the weights before the step or after it."""
    problem = tiny_problem(CLIENTS)
    (mix,) = mixes(problem, 1, 1)
    g, own = server_gradient(problem, mix)
    if cut_weights == "after":
        before = own
        _, own = server_gradient(problem, None, torch.cat([problem.w[:EDGE], problem.w[EDGE:] - LR * g]))
        assert not torch.allclose(own[0], before[0], atol=1e-6)
    same, found = server_gradient(problem, mix, cut_gradient=cut_gradient, cut_weights=cut_weights)
    assert torch.allclose(same, g, rtol=0, atol=1e-12)
    factor = problem.batch if times is None else times
    assert all(torch.allclose(a, factor * b, rtol=0, atol=1e-12) for a, b in zip(found, own, strict=True))


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"partners": 0}, 1),
        ({"partners": 2}, 3),
        ({"partners": 9}, CLIENTS),
        ({"partners": 2, "cut_weights": "after"}, 4),
        ({"partners": 2, "choice": "replacement"}, 3),
    ],
    ids=str,
)
def test_19_the_servers_time_is_that_of_its_products(options: dict[str, Any], passes: int) -> None:
    """A mixture costs what a client's batch costs, and gradients after the step cost another pass."""
    flops, problem = 1e6, tiny_problem(CLIENTS)
    fleet = replace(Fleet([DEVICE] * CLIENTS), server=Server(flops=flops))
    _, simulator = simulate(lambda s: make(s, **options), problem, fleet, 1)
    upper = simulator.pricing.costs()[1:]
    one = problem.batch * sum(c.forward + c.weight_gradient + c.input_gradient for c in upper)
    (served,) = [r for r in simulator.timeline if r["handler"] == "serve"]
    assert served["arrived"] - served["start"] == pytest.approx(passes * CLIENTS * one / flops, rel=1e-9)


@pytest.mark.parametrize("error", ["mse", "bce"])
def test_12_a_unit_target_is_cut_off_and_its_error_is_what_it_is_called(error: str) -> None:
    problem, between = tiny_problem(CLIENTS), (-0.4, 0.6)
    client = make(problem.stack, decoder="decoder:output=sigmoid", target="unit", between=between, error=error).client
    phi = make(problem.stack, decoder="decoder:output=sigmoid", target="unit").first_decoder(problem.w)
    x = problem.data.x[problem.streams.rows(0, range(1))]
    assert bool((x < between[0]).any())
    assert bool((x > between[1]).any())
    smashed = problem.task.predict(prefix(problem.stack, 1), problem.w[:EDGE], x[0])
    local = Local(x, problem.data.y[None, :0], torch.tensor(0), Units(None))
    found, _ = client.reconstruct(problem.task, {"phi": phi, "smashed": smashed}, Inbox({}, {}), local)

    assert client.decoder is not None
    decoder, s = client.decoder.load(phi), smashed.clone().requires_grad_()
    target = ((x[0] - between[0]) / (between[1] - between[0])).clamp(0, 1)
    loss = (nn.functional.mse_loss if error == "mse" else nn.functional.binary_cross_entropy)(decoder(s), target)
    *g, pull = torch.autograd.grad(loss, [*decoder.parameters(), s])
    assert torch.allclose(found["pull"], pull, rtol=0, atol=1e-12)
    assert torch.allclose(found["decoder_gradient"], torch.cat([one.reshape(-1) for one in g]), rtol=0, atol=1e-12)


def test_a_round_deadline_ends_the_wait_for_an_average() -> None:
    """Who cannot hand in by it is in no average; the others' is taken then."""
    slow_up = [DEVICE] * (CLIENTS - 1) + [replace(DEVICE, up=DEVICE.up / 200)]
    problem = tiny_problem(CLIENTS)

    def end(rows: Any, devices: Any, **options: Any) -> tuple[torch.Tensor, float]:
        w, simulator = simulate(
            lambda s: make(s, partners=0, gamma=0.0, average_unit="rounds", **options),
            replace(problem, rows=rows), Fleet(devices), 1,
        )  # fmt: skip
        return w, simulator.now

    w, now = end(problem.rows, slow_up, round_deadline=0.5)
    everybody, later = end(problem.rows, slow_up)
    three, _ = end(problem.rows[:-1], slow_up[:-1])
    assert now < later
    assert not torch.allclose(w[:EDGE], everybody[:EDGE], atol=1e-9)
    assert torch.allclose(w[:EDGE], three[:EDGE], rtol=0, atol=1e-12)
