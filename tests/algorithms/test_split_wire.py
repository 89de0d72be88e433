"""Smashed data and gradients in 16 bits: number 26 of section 9 of the specification."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lanterne.algorithms import ALGORITHMS, PSL, SequentialSL, SplitFedV1
from lanterne.budget import Units
from lanterne.errors import ConfigError
from lanterne.experiment.parameters import make_algorithm
from lanterne.fleet import Device, Fleet
from lanterne.learn import Task
from lanterne.models import LayerStack
from lanterne.protocol import Inbox, Local
from lanterne.runtime import Batched, Simulator
from lanterne.split import SplitMethod
from lanterne.split.wire import narrowed
from lanterne.testing import check_algorithm, simulate, tiny_problem
from lanterne.testing.problems import tiny_mlp

METHODS = pytest.mark.parametrize("name", sorted(n for n, kind in ALGORITHMS.items() if issubclass(kind, SplitMethod)))
WIRES = pytest.mark.parametrize("wire", ["float16", "bfloat16"])
#: Of what crosses the cut: half of the distance between 1 and the next number.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
#: Links so quick that the order of arrivals does not depend on what is sent.
FLEET = Fleet([Device(flops=1e5 * (1 + c), down=1e12, up=1e12, latency=0.001) for c in range(6)], seed=1)


def run(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Tensor, Simulator]:
    make = lambda s: ALGORITHMS[name](stack=s, lr=0.1, local_steps=3, **options)  # noqa: E731
    return simulate(make, tiny_problem(dtype=dtype), FLEET, 2)


@WIRES
def test_26_a_number_is_off_by_its_rounding_alone(wire: str) -> None:
    """By half of the distance to the next one; what fits in 16 bits arrives as it was."""
    dtype: torch.dtype = getattr(torch, wire)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, generator=g, dtype=torch.float64) * torch.logspace(-3, 4, 10_000, dtype=torch.float64)
    back = narrowed(x, dtype).to(torch.float64)
    off = (back - x).abs() / x.abs()
    floor = 2.0**-14 if wire == "float16" else 0.0
    assert float(off[x.abs() >= floor].max()) <= ROUNDOFF[wire]
    assert float(off[x.abs() >= floor].max()) > 0.9 * ROUNDOFF[wire]
    assert float((back - x).abs()[x.abs() < 2.0**-14].max()) <= max(2.0**-25, ROUNDOFF[wire] * 2.0**-14)
    assert torch.equal(narrowed(back, dtype).to(torch.float64), back)


@WIRES
def test_26_what_is_too_large_arrives_as_the_largest(wire: str) -> None:
    dtype: torch.dtype = getattr(torch, wire)
    largest = torch.finfo(dtype).max
    x = torch.tensor([1e300, -1e300, float("inf"), -float("inf"), float("nan"), 0.0], dtype=torch.float64)
    found = narrowed(x, dtype)
    assert found.dtype == dtype
    assert found[:4].tolist() == [largest, -largest, largest, -largest]
    assert bool(found[4].isnan())
    assert float(found[5]) == 0.0


def test_26_a_client_keeps_what_it_has_not_rounded() -> None:
    """And goes backward from that: only what crosses the cut is cut off at the largest number."""
    stack = LayerStack(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (2,))
    method, w = PSL(stack=stack, wire="float16"), torch.full((6,), 1e6)
    local = Local(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), torch.tensor(0), Units(None))
    kept, sent = method.handlers["forward"](Task(stack), {}, Inbox({"w": w}, {"cut": (1, 0)}), local)
    assert bool((kept["smashed"] == 3e6).all())
    assert kept["smashed"].dtype == torch.float32
    assert bool((sent["smashed"] == 65504).all())
    assert sent["smashed"].dtype == torch.float16
    assert sent["labels"].dtype == torch.int64


@METHODS
def test_26_exact_is_the_bits_of_before(name: str) -> None:
    """The default wraps nothing, so it cannot change anything."""
    method = ALGORITHMS[name](stack=tiny_mlp())
    assert method.wire == "exact"
    assert all(inspect.ismethod(handler) for handler in method.handlers.values())
    assert torch.equal(run(name)[0], run(name, wire="exact")[0])


@METHODS
@WIRES
def test_26_the_error_is_bounded_and_the_bytes_halve(name: str, wire: str) -> None:
    """Two rounds of three batches are off by less than one rounding of how far they have moved."""
    start = tiny_problem().w
    (exact, _), (found, _) = run(name), run(name, wire=wire)
    off, moved = float((found - exact).abs().max()), float((exact - start).abs().max())
    assert 0 < off <= ROUNDOFF[wire] * moved
    books, fewer = (run(name, torch.float32, wire=w)[1].ledger.total.bytes for w in ("exact", wire))
    halved = {"act_up", "grad_down"} & set(books)
    assert halved
    assert dict(fewer) == {n: size / 2 if n in halved else size for n, size in books.items()}


@METHODS
def test_26_handlers_stay_pure_and_executors_agree(name: str) -> None:
    """Under everything that can happen; stacked clients may round another way where they differ in the last bit."""
    make = lambda s: ALGORITHMS[name](stack=s, lr=0.1, wire="bfloat16")  # noqa: E731
    check_algorithm(make, rounds=2, renormalises=False)
    (one, _), (other, _) = (simulate(make, tiny_problem(), FLEET, 2, **e) for e in ({}, {"executor": Batched}))
    assert torch.allclose(one, other, rtol=0, atol=ROUNDOFF["bfloat16"] * float((one - tiny_problem().w).abs().max()))


@pytest.mark.parametrize("kind", [SequentialSL, SplitFedV1])
def test_26_a_u_sends_both_of_its_tensors_in_16_bits(kind: type[Any]) -> None:
    problem = tiny_problem(dtype=torch.float32)
    books = [
        simulate(lambda s, w=wire: kind(stack=s, lr=0.1, tail=2, wire=w), problem, FLEET, 1)[1].ledger.total.bytes
        for wire in ("exact", "bfloat16")
    ]
    for name in ("act_up", "act_down", "grad_up", "grad_down"):
        assert books[1][name] == books[0][name] / 2 > 0


def test_fewer_bytes_take_less_time() -> None:
    slow = Fleet([Device(flops=1e9, down=1e3, up=1e3, latency=0.0) for _ in range(6)])
    times = [
        simulate(lambda s, w=wire: PSL(stack=s, wire=w), tiny_problem(dtype=torch.float32), slow, 1)[1].now
        for wire in ("exact", "float16")
    ]
    assert times[1] < times[0]


def test_a_wire_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="wire is 'float8'"):
        make_algorithm("psl", tiny_mlp(), wire="float8")
