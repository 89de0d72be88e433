"""Recorded gradients are autograd's to the bit, and what cannot be recorded is computed as ever."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from lanterne.data import Streams
from lanterne.learn import Graphs, Recordings, Task, cross_entropy
from lanterne.learn import recorded as recorded_module
from lanterne.learn.operators import NotRecordableError, program_text
from lanterne.models import LayerStack, full, initial_weights, prefix, reached, suffix
from lanterne.models.zoo import MODELS, build
from lanterne.runtime import Loop, Simulator
from lanterne.testing import tiny_problem, uneven_fleet
from runtime.laboratory import METHODS

as_ever = recorded_module._program

#: Without the deeper ones of a family, which have the same operators.
WORDS = [name for name in MODELS if name not in ("resnet34", "vgg13", "vgg16", "vgg19")] + ["resnet8:norm=batch"]


def batch(shape: tuple[int, ...], seed: int = 0, rows: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=g), torch.randint(3, (rows,), generator=g)


def recorded(task: Task, x: Tensor, y: Tensor, w: Tensor, view=None) -> Task:
    """The same task after one call and its recording."""
    task = replace(task, recordings=Recordings(calls=1))
    task.gradient(view or full(task.stack), w, x, y)
    task.recordings.record()
    return task


def programs(task: Task) -> list:
    return [program.replay for program in task.recordings._programs.values()]


@pytest.mark.parametrize("word", WORDS)
def test_every_model_of_the_zoo_is_recorded_to_the_bit(word: str) -> None:
    shape = (3, 32, 32) if word in ("vgg11", "alexnet") else (3, 16, 16)
    stack = build(word, shape, 3)
    w, (x, y) = initial_weights(stack, 0), batch(shape)
    plain = Task(stack, channels_last=True)
    task = recorded(plain, x, y, w)
    assert all(programs(task))
    for seed in (1, 2):  # not the numbers that it was recorded with
        x, y = batch(shape, seed)
        other = w + 0.01 * seed
        assert torch.equal(task.gradient(full(stack), other, x, y), plain.gradient(full(stack), other, x, y))
    one, two = (t.descend_(full(stack), w.clone(), [x, x], [y, y], 0.1) for t in (task, plain))
    assert torch.equal(one, two)
    assert not torch.equal(one, w)


def net(*layers: nn.Module) -> LayerStack:
    return LayerStack(nn.Sequential(nn.Linear(6, 5), *layers, nn.Linear(5, 3)), (6,))


class Noise(nn.Module):
    """Draws from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branch(nn.Module):
    """Goes one way or the other by the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x * 3


class Remembers(nn.Module):
    """Is another function at every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Remembers.calls += 1
        return x * Remembers.calls


class Twice(nn.Module):
    """Takes lists of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(torch.split(x, 2, dim=1)), dim=1)


class ByList(nn.Module):
    """Divides by a number that Python has read."""

    def forward(self, x: Tensor) -> Tensor:
        return x / max(x.abs().amax(0).tolist())


class ByArray(nn.Module):
    """The same by way of NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return x / float(x.detach().abs().numpy().max())


class ByCount(nn.Module):
    """Divides by how many numbers are above 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x / len(torch.nonzero(x > 0))


@pytest.mark.parametrize(
    "layer",
    [Noise(), Branch(), Remembers(), Twice(), ByList(), ByArray(), ByCount()],
    ids=lambda layer: type(layer).__name__,
)
def test_what_cannot_be_recorded_is_computed_as_ever(layer: nn.Module) -> None:
    stack = net(layer)
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack), x, y, w)
    assert programs(task) == [None]
    low = prefix(stack, 1)  # the layer stands in the client's block
    waiting = replace(task, recordings=Recordings(calls=1), graphs=Graphs())
    waiting.smash(low, low.take(w), x)
    waiting.recordings.record()
    assert programs(waiting) == [None]
    Remembers.calls = 0
    torch.manual_seed(0)
    have = task.gradient(full(stack), w, x, y)
    Remembers.calls = 0
    torch.manual_seed(0)
    assert torch.equal(have, Task(stack).gradient(full(stack), w, x, y))


def by_kinds(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output, y) / len(torch.unique(y))


def by_labels(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output, y) / (1 + max(y.tolist()))


@pytest.mark.parametrize("loss", [by_kinds, by_labels])
def test_a_loss_that_reads_labels_is_computed_as_ever(loss) -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack, loss), x, y, w)
    assert programs(task) == [None]
    other = torch.zeros_like(y)
    assert torch.equal(task.gradient(full(stack), w, x, other), Task(stack, loss).gradient(full(stack), w, x, other))


@dataclass
class Scaled:
    """A loss that has no hash."""

    by: float = 2.0

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        return self.by * cross_entropy(output, y)


def test_a_loss_without_a_hash_is_not_recorded() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack, Scaled()), x, y, w)
    assert programs(task) == []
    assert torch.equal(task.gradient(full(stack), w, x, y), Task(stack, Scaled()).gradient(full(stack), w, x, y))


def test_signatures_that_come_and_go_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lanterne.learn.recorded.SIGNATURES", 5)
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = replace(Task(stack), recordings=Recordings(calls=2))
    for _ in range(2):
        task.gradient(full(stack), w, x, y)
    task.recordings.record()
    for _ in range(20):
        replace(task, loss=lambda output, y: cross_entropy(output, y)).gradient(full(stack), w, x, y)
    assert len(programs(task)) == 5
    assert programs(task)[0] is not None  # what was recorded stays


def test_an_input_that_wants_a_gradient_is_none_of_its_business() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack), x, y, w)
    x.requires_grad_()
    assert not task.gradient(full(stack), w, x, y).requires_grad
    one, two = (t.descend_(full(stack), w.clone(), [x], [y], 0.1) for t in (task, Task(stack)))
    assert torch.equal(one, two)


def test_a_copy_of_a_task_begins_anew() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack), x, y, w)
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert programs(other) == []
        assert other.recordings.calls == 1
        assert torch.equal(other.gradient(full(stack), w, x, y), task.gradient(full(stack), w, x, y))


def test_random_numbers_and_other_things_are_refused() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def text(function) -> str:
        return program_text(make_fx(function)(torch.ones(4)).graph)

    with pytest.raises(NotRecordableError, match="rand_like draws random numbers"):
        text(lambda x: [torch.rand_like(x)])
    with pytest.raises(NotRecordableError, match="split gives more than tensors"):
        text(lambda x: [torch.split(x, 2)[0]])
    with pytest.raises(NotRecordableError, match="the number inf"):
        text(lambda x: [torch.clamp(x, max=float("inf"))])
    with pytest.raises(NotRecordableError, match="get_attr"):
        text(lambda x: [x + torch.tensor([1.0, 2.0, 3.0, 4.0])])
    assert "aten::ones" in text(lambda x: [x + torch.ones(4)])


def test_each_signature_has_its_own_recording() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    plain = Task(stack)
    task = replace(plain, recordings=Recordings(calls=1))
    calls = [
        (full(stack), w, x, y),
        (full(stack), w, x[:2], y[:2]),
        (full(stack), w.double(), x.double(), y),
        (suffix(stack, 1), suffix(stack, 1).take(w), torch.tanh(batch((5,))[0]), y),
    ]
    for _ in range(2):
        for view, v, a, b in calls:
            assert torch.equal(task.gradient(view, v, a, b), plain.gradient(view, v, a, b))
        task.recordings.record()
    assert len(programs(task)) == len(calls)
    assert all(programs(task))
    other = replace(task.on(net(nn.ReLU())))
    assert torch.equal(other.gradient(full(stack), w, x, y), Task(other.stack).gradient(full(stack), w, x, y))
    assert reached(stack, 2).index == full(stack).index  # the same blocks are the same signature
    assert len(programs(task)) == len(calls) + 1


def test_recording_waits_for_its_number_of_calls() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = replace(Task(stack), recordings=Recordings(calls=3))
    for pending in (False, False, True, True):
        task.gradient(full(stack), w, x, y)
        assert task.recordings.pending is pending
    task.recordings.record()
    assert not task.recordings.pending


def test_a_bad_batch_has_the_message_of_the_plain_way() -> None:
    stack = net(nn.Tanh())
    w, (x, y) = initial_weights(stack, 0), batch((6,))
    task = recorded(Task(stack), x, y, w)
    said = []
    for t in (task, Task(stack)):
        with pytest.raises(IndexError) as raised:
            t.gradient(full(stack), w, x, y + 7)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_the_interpreters_optimisations_are_off_and_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimised, it adds a bias after the product, and rounds twice: then this recording is not autograd's."""
    stack, made = build("mlp", (1, 28, 28), 10), []
    monkeypatch.setattr(recorded_module, "_program", lambda graph: made.append(as_ever(graph)) or made[-1])
    w, (x, y) = initial_weights(stack, 0), batch((1, 28, 28), rows=32)
    task = recorded(Task(stack), x, y, w)
    before = torch._C._get_graph_executor_optimize()
    want = Task(stack).gradient(full(stack), w, x, y)
    assert torch.equal(task.gradient(full(stack), w, x, y), want)
    assert torch._C._get_graph_executor_optimize() == before
    [program] = made
    for _ in range(4):
        optimised = program(x, y, *full(stack).leaves(w))
    assert not torch.equal(torch.cat([g.reshape(-1) for g in optimised]), want)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_to_the_bit(method: str, threads: int) -> None:
    problem = tiny_problem(dtype=torch.float32)
    ends = []
    for calls in (1, 10**9):
        task = replace(problem.task, recordings=Recordings(calls))
        executor = Loop(task, problem.data.x, problem.data.y, threads)
        algorithm = METHODS[method](problem.stack)
        streams = Streams(problem.rows, problem.batch, problem.seed)
        simulator = Simulator(algorithm, uneven_fleet(), executor, streams, dtype=torch.float32)
        state = algorithm.init(problem.w)
        for _ in range(8):
            state = simulator.round(algorithm, state)
        executor.close()
        ends.append(algorithm.evaluated(state))
        recordings = [p.replay for p in task.recordings._programs.values()]
        assert any(recordings) is (calls == 1 and method != "overlap")
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], problem.w)
