"""What is recorded of the two sides of a cut is autograd's to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lanterne.learn import Graphs, Recordings, Task
from lanterne.learn import recorded as recorded_module
from lanterne.models import full, initial_weights, prefix, suffix
from lanterne.models.zoo import build
from learn.test_recorded import batch, net, programs, recorded


def cut_calls(task: Task, at: int, w: Tensor, x: Tensor, y: Tensor, *, mixed_up: bool = False) -> list[Tensor]:
    """All that the two sides of a cut ask for; the gradient comes back in the order of memory it happens to have."""
    low, high = prefix(task.stack, at), suffix(task.stack, at)
    smashed = task.smash(low, low.take(w), x)
    g, up = task.gradient_with_input(high, high.take(w), smashed, y)
    if mixed_up:
        up = up.clone(memory_format=torch.contiguous_format).transpose(0, -1).contiguous().transpose(0, -1)
    found = [smashed, g, up, task.pullback(low, low.take(w), x, up, smashed)]
    if at > 1:  # the body of a U
        body = task.stack.span(1, at)
        inside = task.predict(prefix(task.stack, 1), w[: task.stack.edges[1]], x)
        smashed = task.smash(body, body.take(w), inside, to_input=True)
        found += task.pullback_with_input(body, body.take(w), inside, up, smashed)
    return found


@pytest.mark.parametrize("mixed_up", [False, True])
@pytest.mark.parametrize("word", ["mlp", "cnn", "lenet", "resnet8", "resnet8:norm=batch"])
def test_both_sides_of_a_cut_are_recorded_to_the_bit(word: str, mixed_up: bool) -> None:
    stack = build(word, (3, 16, 16), 3)
    w, (x, y) = initial_weights(stack, 0), batch((3, 16, 16))
    plain = Task(stack, channels_last=True, graphs=Graphs())
    for at in (1, len(stack) - 1):
        task = replace(plain, recordings=Recordings(calls=1), graphs=Graphs())
        cut_calls(task, at, w, x, y)
        task.recordings.record()
        assert len(programs(task)) == (3 if at > 1 else 2)
        assert all(programs(task))
        for seed in (1, 2):  # not the numbers that it was recorded with
            x, y = batch((3, 16, 16), seed)
            other = w + 0.01 * seed
            found = cut_calls(task, at, other, x, y, mixed_up=mixed_up)
            wanted = cut_calls(plain, at, other, x, y, mixed_up=mixed_up)
            assert all(map(torch.equal, found, wanted))
            assert len(task.graphs) == 0
        low = prefix(stack, at)  # without a graph, as after a restart: forward again
        _, _, up, down = found[:4]
        assert torch.equal(plain.pullback(low, low.take(other), x, up), down)


def test_a_gradient_comes_back_in_the_order_in_which_the_smashed_data_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which operators run must not depend on whom it comes from."""
    stack = build("cnn", (3, 16, 16), 3)
    w, (x, _) = initial_weights(stack, 0), batch((3, 16, 16))
    low, seen = prefix(stack, 1), []
    given, backward = recorded_module._interpreted, torch.autograd.grad
    task = replace(Task(stack, channels_last=True), recordings=Recordings(calls=1), graphs=Graphs())
    for _ in range(2):
        with monkeypatch.context() as spy:
            spy.setattr(recorded_module, "_interpreted", lambda p, *i: seen.append(i[-1].stride()) or given(p, *i))
            spy.setattr(torch.autograd, "grad", lambda o, i, up: seen.append(up.stride()) or backward(o, i, up))
            smashed = task.smash(low, low.take(w), x)
            up = torch.randn(smashed.shape)
            assert up.stride() != smashed.stride()
            task.pullback(low, low.take(w), x, up, smashed)
            assert seen[-1] == smashed.stride()
        task.recordings.record()
    assert all(programs(task))
    assert len(seen) == 3  # back by autograd; forth and back by the recording


def test_a_gradient_with_that_of_the_input_is_another_recording() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack), x, y, w)
    g, dx = task.gradient_with_input(full(stack), w, x, y)
    task.recordings.record()
    again, same = task.gradient_with_input(full(stack), w, x, y)
    assert torch.equal(g, again)
    assert torch.equal(dx, same)
    assert torch.equal(task.gradient(full(stack), w, x, y), g)
    assert len(programs(task)) == 2


def test_a_recorded_pass_at_a_cut_does_not_outlive_what_it_sent() -> None:
    stack = net(nn.ReLU())  # whose backward pass wants its output
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = replace(Task(stack), recordings=Recordings(calls=1), graphs=Graphs())
    cut_calls(task, 1, w, x, y)
    task.recordings.record()
    smashed = task.smash(prefix(stack, 1), w[: stack.edges[1]], x)
    assert all(programs(task))
    assert len(task.graphs) == 1
    del smashed
    assert len(task.graphs) == 0


@pytest.mark.parametrize("word", ["cnn", "resnet8:norm=batch"])
def test_what_the_server_does_for_many_clients_is_recorded_to_the_bit(word: str) -> None:
    """Partial sums are the same whoever computes them, and each client's part is what it would be alone."""
    stack, n = build(word, (3, 16, 16), 3), 19
    high = suffix(stack, 1)
    w = high.take(initial_weights(stack, 0))
    batches = [batch(tuple(stack.output_shapes[0]), seed) for seed in range(n)]
    x, y = zip(*batches, strict=True)
    weights = [(i + 1) / 190 for i in range(n)]
    plain = Task(stack, channels_last=True)
    task = replace(plain, recordings=Recordings(calls=n), spread=lambda f, items: [f(i) for i in items[::-1]][::-1])
    for _ in range(2):
        g, ups = task.gradient_with_inputs(high, w, x, y, weights)
        wanted, others = plain.gradient_with_inputs(high, w, x, y, weights)
        assert torch.equal(g, wanted)
        assert all(map(torch.equal, ups, others))
        task.recordings.record()
    assert all(programs(task))
    alone = [plain.gradient_with_input(high, w, *one) for one in batches]
    assert all(torch.equal(up, dx) for up, (_, dx) in zip(ups, alone, strict=True))
    total = sum(weight * one.double() for weight, (one, _) in zip(weights, alone, strict=True))
    assert torch.allclose(g.double(), total, rtol=0, atol=1e-6)
    assert not torch.allclose(g.double(), sum(one.double() for one, _ in alone) / n, rtol=0, atol=1e-4)
