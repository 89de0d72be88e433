"""Weights come back exactly, updates follow from a key and numbers, and a pass holds nothing but itself."""

from __future__ import annotations

import json
import weakref
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lanterne.errors import ConfigError
from lanterne.learn import Optimiser, Task
from lanterne.learn.noise import derived
from lanterne.learn.zeroth_order import (
    STABLE,
    Group,
    Perturbed,
    Probes,
    directions,
    estimate,
    gauge,
    group_of,
    largest_steps,
    replay,
    slope,
    too_large,
)
from lanterne.models import LayerStack, full
from lanterne.models.zoo import build
from learn.zeroth_order.tools import KINDS, key, numbers
from models.nets import residual_net

OPTIMISERS = (Optimiser(lr=0.1), Optimiser(lr=0.1, momentum=0.9), Optimiser("adam", lr=0.1))


def problem(dtype: torch.dtype = torch.float32) -> tuple[Group, Tensor, Tensor, Tensor]:
    stack = build("resnet-small", (1, 8, 8), 10)
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(stack.size, generator=g) / 10, torch.randn(5, 1, 8, 8, generator=g)
    return group_of(Task(stack), full(stack)), w.to(dtype), x.to(dtype), torch.arange(5)


@pytest.mark.parametrize(("kind", "difference"), list(product(KINDS, ("forward", "central"))))
def test_functional_and_snapshot_give_the_same_bits_and_leave_the_weights(kind: Any, difference: Any) -> None:
    group, w, x, y = problem()
    before = w.clone()
    found = [
        estimate(group, w, x, y, key(1), Probes(kind, difference, 2, restore=restore)).scalars
        for restore in ("functional", "snapshot")
    ]
    assert torch.equal(*found)
    assert torch.equal(w, before)


def test_arithmetic_comes_back_but_for_rounding() -> None:
    group, w, x, y = problem()
    before, probes = w.clone(), Probes("gaussian", "central", 2, restore="arithmetic")
    found = estimate(group, w, x, y, key(1), probes)
    exact = estimate(group, before, x, y, key(1), Probes("gaussian", "central", 2))
    assert torch.allclose(found.scalars, exact.scalars, rtol=0.05, atol=0.05)
    assert not torch.equal(w, before)
    assert torch.allclose(w, before, atol=1e-6)


def test_arithmetic_comes_back_when_a_loss_raises() -> None:
    group, w, x, _ = problem(torch.float64)
    before = w.clone()
    with pytest.raises(IndexError):
        estimate(group, w, x, torch.full((5,), 77), key(1), Probes(restore="arithmetic", difference="central"))
    assert torch.allclose(w, before, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_below_float32_are_refused(dtype: torch.dtype) -> None:
    group, w, x, y = problem(dtype)
    with pytest.raises(ConfigError, match=r"do not come back.*functional"):
        estimate(group, w, x, y, key(1), Probes(restore="arithmetic"))
    for restore in ("functional", "snapshot"):
        with pytest.raises(ConfigError, match="Keep them in float32"):
            estimate(group, w, x, y, key(1), Probes(restore=restore))


def test_arithmetic_is_refused_inside_a_transform() -> None:
    group, w, x, y = problem()
    task = Task(group.segments[0].task.stack, functional=True)
    with pytest.raises(ConfigError, match="loop"):
        estimate(group_of(task, full(task.stack)), w, x, y, key(1), Probes(restore="arithmetic"))


@pytest.mark.parametrize(("kind", "optimiser"), list(product(KINDS, OPTIMISERS)))
def test_updates_follow_to_the_bit_from_keys_and_scalars(
    kind: Any, optimiser: Optimiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal of (key, scalars) that has been through text makes the same weights."""
    monkeypatch.setitem(directions.PIECE, "rademacher", 8)
    monkeypatch.setitem(directions.PIECE, "normal", 256)
    group, w, x, y = problem()
    probes = Probes(kind, "forward", 2)
    start, slots, journal = w, {}, []
    for step in range(3):
        k = derived(key(2), step)
        scalars = estimate(group, w, x, y, k, probes).scalars
        w, slots = replay(group, w, k, scalars, probes, optimiser, slots)
        journal.append((int(k), scalars.tolist()))
    assert not torch.equal(w, start)
    again, slots = start.clone(), {}
    for k, scalars in json.loads(json.dumps(journal)):
        at = torch.tensor(k)
        again, slots = replay(group, again, at, torch.tensor(scalars), probes, optimiser, slots, consume=True)
    assert torch.equal(again, w)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_step_in_pieces_is_the_step_of_the_whole_vector(
    optimiser: Optimiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(directions.PIECE, "rademacher", 2)
    group, w, x, y = problem(torch.float64)
    before, probes = w.clone(), Probes("rademacher", "forward", 3)
    scalars = estimate(group, w, x, y, key(3), probes).scalars
    g = slope(group, key(3), scalars, probes, w.dtype)
    ours, theirs, slots, memory = w, w, {}, {}
    for _ in range(3):
        ours, slots = replay(group, ours, key(3), scalars, probes, optimiser, slots)
        theirs, memory = optimiser.step(theirs, memory, g)
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-15)
    assert set(slots) == set(memory)
    for name, value in memory.items():
        assert torch.allclose(slots[name], value, rtol=1e-13, atol=1e-15)
    assert torch.equal(w, before)


def test_what_belongs_to_the_caller_is_stepped_in_place_when_it_is_given() -> None:
    group, w, x, y = problem()
    probes = Probes("rademacher")
    scalars = estimate(group, w, x, y, key(3), probes).scalars
    expected, _ = replay(group, w, key(3), scalars, probes, Optimiser())
    assert not torch.equal(expected, w)
    found, _ = replay(group, w, key(3), scalars, probes, Optimiser(), consume=True)
    assert found is w
    assert torch.equal(w, expected)


def test_scalars_of_another_number_of_probes_are_refused() -> None:
    group, w, _, _ = problem()
    with pytest.raises(ConfigError, match=r"2 probes.*\(2,\)"):
        replay(group, w, key(3), torch.ones(3), Probes(count=2), Optimiser())


@pytest.mark.parametrize("restore", ["functional", "snapshot", "arithmetic"])
def test_h5_t10_nothing_is_saved_for_a_backward_pass(restore: Any) -> None:
    group, w, x, y = problem()
    w.requires_grad_()
    if restore == "arithmetic":
        w = w.detach()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = estimate(group, w, x, y, key(4), Probes("sphere", count=2, restore=restore))
        assert saved == []
        group.segments[0].task.gradient(full(group.segments[0].task.stack), w, x, y)
    assert sum(saved) > 0
    assert found.output is not None
    for value in (found.scalars, found.loss, found.output):
        assert not value.requires_grad
        assert not value.is_inference()
    found.output.requires_grad_()


def test_e7_a_pass_holds_one_perturbed_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """E7, T10: each tensor is made when its layer runs and is gone when the next is asked for."""
    group, w, x, y = problem()
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    original = Perturbed.__getitem__

    def watched(self: Perturbed, index: int) -> Tensor:
        tensor = original(self, index)
        if self.direction is not None:
            base = tensor if tensor._base is None else tensor._base
            alive.append(sum(ref() is not None for ref in made))
            made.append(weakref.ref(base))
        return tensor

    monkeypatch.setattr(Perturbed, "__getitem__", watched)
    estimate(group, w, x, y, key(4), Probes("rademacher", "central"))
    assert len(made) == 2 * len(group.trained)
    # A layer's weight and bias, both of which it needs.
    assert max(alive) == 1
    assert all(ref() is None for ref in made)
    assert Probes().held(group, w.dtype) == 4 * max(held.size for held in group.trained)
    assert Probes(restore="snapshot").held(group, w.dtype) == w.nbytes


def test_tensors_that_are_made_when_asked_for_give_the_same_output() -> None:
    stack = LayerStack(residual_net(), (6,))
    w, x, view = numbers(stack.size), numbers(4, 6), full(stack)
    group = group_of(Task(stack), view)
    expected = stack.forward(view.leaves(w), x)
    assert torch.equal(stack.forward(Perturbed(group, 0, w, None, 0.0), x), expected)
    assert torch.equal(stack.forward(view.leaves(w), x), expected)
    assert len(Perturbed(group, 0, w, None, 0.0)[1:3]) == 2


def test_an_estimate_descends() -> None:
    """A convex problem is solved with forward passes alone."""
    stack = LayerStack(nn.Sequential(nn.Linear(4, 3)), (4,))
    x, y = numbers(60, 4), (numbers(60, 4) @ numbers(4, 3)).argmax(1)
    group, w, probes = group_of(Task(stack), full(stack)), torch.zeros(stack.size).double(), Probes("rademacher")
    losses = []
    for step in range(300):
        found = estimate(group, w, x, y, derived(key(5), step), probes)
        losses.append(float(found.loss))
        w, _ = replay(group, w, derived(key(5), step), found.scalars, probes, Optimiser(lr=0.05), consume=True)
    assert losses[-1] < 0.8 * min(losses[0], 1.098)


def test_the_gauge_warns_with_the_number() -> None:
    assert gauge(0.01, 3_868_746) == pytest.approx(19.67, abs=0.01)
    assert too_large(STABLE / 100, 10_000) is None
    said = too_large(1.5 / 100, 10_000, "lr_client")
    assert said is not None
    assert "lr_client = 0.015" in said
    assert "1.5;" in said
    assert "0.014 or less" in said


def test_the_theorems_caps() -> None:
    assert largest_steps(2.0, 4, 100, 50) == pytest.approx((1 / (128 * 204), 4 / (128 * 204)))
    assert largest_steps(2.0, 400, 100, 5000).server == pytest.approx(1 / (32 * 400 * 5000))
    assert largest_steps(1.0, 4, 100, 50, clients=5).server == pytest.approx(1 / (120 * 204))
    assert largest_steps(1.0, 400, 100, 5000, clients=5).server == pytest.approx(5 / (12 * 400 * 5000))
