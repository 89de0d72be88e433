"""LocFedMix-SL, by the numbers of section 9 of the specification, and the defects of its ports (section 2.11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms.by_hand import gradient, samples
from lanterne.algorithms import PSL, LocFedMixSL
from lanterne.budget import Units
from lanterne.fleet import Device, Fleet
from lanterne.learn import Mix, SoftLoss, cross_entropy, draw_mix, mixtures, mixup_gradient
from lanterne.models import LayerStack, prefix, suffix
from lanterne.protocol import Inbox, Local
from lanterne.rng import fold, generator
from lanterne.runtime import Simulator
from lanterne.testing import Problem, simulate, tiny_problem, uneven_fleet
from lanterne.testing.problems import tiny_mlp

EDGE = tiny_mlp().edges[1]
CLIENTS, LR = 4, 0.1
DEVICE = Device(flops=2e4, down=5e4, up=3e4, latency=0.002)


def make(stack: LayerStack, **options: Any) -> LocFedMixSL:
    return LocFedMixSL(**{"stack": stack, "lr": LR, **options})


def run(
    rounds: int = 2, devices: list[Device] | None = None, problem: Problem | None = None, **options: Any
) -> tuple[Tensor, Simulator]:
    problem = problem or tiny_problem(CLIENTS)
    fleet = Fleet(devices or [DEVICE] * len(problem.rows))
    return simulate(lambda s: make(s, **options), problem, fleet, rounds)


class ByHand:
    """The equations by the user's modules and plain autograd, for the cut behind the first layer."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        self.problem, self.method = problem, make(problem.stack, **options)
        self.weights = samples(problem)
        self.low = dict.fromkeys(self.weights, problem.w[:EDGE])
        self.high = problem.w[EDGE:]
        phi = self.method.first_decoder(problem.w)
        self.phi = dict.fromkeys(self.weights, phi)

    def batch(self, step: int, mix: Mix | None) -> None:
        """One batch of everybody."""
        method, total = self.method, sum(self.weights.values())
        net = self.problem.stack.load(torch.cat([self.low[0], self.high]))
        upper = nn.Sequential(*list(net)[2:])
        theirs = [p for p in upper.parameters() if p.requires_grad]
        smashed, labels, graphs = {}, {}, {}
        for c in self.weights:
            rows = self.problem.streams.rows(c, range(step, step + 1))[0]
            x, labels[c] = self.problem.data.x[rows], self.problem.data.y[rows]
            lower = self.problem.stack.load(torch.cat([self.low[c], self.high]))[:2]
            graphs[c] = (x, lower, lower(x))
            smashed[c] = graphs[c][2].detach().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        pulled = {}
        for c, weight in self.weights.items():
            own = nn.functional.cross_entropy(upper(smashed[c]), labels[c])
            pulled[c] = torch.autograd.grad(own, smashed[c], retain_graph=True)[0]
            loss = loss + weight / total * own
            for k in range(0 if mix is None else mix.partners.shape[1]):
                j = int(mix.partners[c, k])
                (mine, other), lam = mix.rows[c, k], mix.share[c, k]
                together = lam[:, None] * smashed[c].detach()[mine] + (1 - lam)[:, None] * smashed[j].detach()[other]
                one_hot = [nn.functional.one_hot(y, 3).double() for y in (labels[c][mine], labels[j][other])]
                soft = lam[:, None] * one_hot[0] + (1 - lam)[:, None] * one_hot[1]
                mixed = nn.functional.cross_entropy(upper(together), soft)
                loss = loss + method.mix_weight * weight / total * mixed / mix.partners.shape[1]
        step_of = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, theirs)])
        self.high = self.high - LR * step_of
        for c, (x, lower, s) in graphs.items():
            whole = (s * pulled[c]).sum()
            mine = list(lower.parameters())
            if method.gamma:
                decoder = method.networks["decoder"].load(self.phi[c])
                error = ((decoder(s) - x) ** 2).mean()
                found = torch.autograd.grad(error, list(decoder.parameters()), retain_graph=True)
                self.phi[c] = self.phi[c] - LR * torch.cat([g.reshape(-1) for g in found])
                whole = whole + method.gamma * error
            self.low[c] = self.low[c] - LR * torch.cat([g.reshape(-1) for g in torch.autograd.grad(whole, mine)])

    def average(self) -> None:
        """The fed server's part."""
        total = sum(self.weights.values())
        for each in (self.low, self.phi) if self.method.gamma else (self.low,):
            mean = sum(w * each[c] for c, w in self.weights.items()) / total
            each.update(dict.fromkeys(each, mean))

    @property
    def w(self) -> Tensor:
        """The model."""
        return torch.cat([self.low[0], self.high])


def mixes(problem: Problem, rounds: int, steps: int, **options: Any) -> list[Mix]:
    """What the method draws for each batch."""
    method = make(problem.stack, **options)
    how: Any = {"alpha": method.alpha, "share": method.share, "choice": method.choice}
    keys = [fold(fold(0, "cohort", r), "mix", r * steps + s) for r in range(rounds) for s in range(steps)]
    n = len(problem.rows)
    return [draw_mix(generator(key), n, n, method.partners, problem.batch, **how) for key in keys]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partners": 2, "share": "sample", "alpha": 0.4, "mix_weight": 0.5},
        {"partners": 3, "choice": "rotation", "share": "constant", "gamma": 0.3},
        {"partners": 0, "gamma": 2.0},
        {"partners": 2, "choice": "replacement", "gamma": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("every", [1, 2])
def test_the_whole_method_by_hand(options: dict[str, Any], every: int) -> None:
    problem, rounds, steps = tiny_problem(CLIENTS), 2, 2
    hand = ByHand(problem, **options)
    drawn = mixes(problem, rounds, steps, **options)
    for step in range(rounds * steps):
        hand.batch(step, drawn[step] if hand.method.partners else None)
        if (step + 1) % every == 0:
            hand.average()
    found, _ = run(rounds, problem=problem, local_steps=steps, average_every=every, **options)
    assert torch.allclose(found, hand.w, rtol=0, atol=1e-12)


def test_an_average_brings_new_optimisers_only_if_it_is_told_to() -> None:
    """Kept, momentum goes on over an average; reset, every batch is a first one."""
    problem = tiny_problem(CLIENTS)
    options: dict[str, Any] = {"problem": problem, "partners": 0, "gamma": 0.0, "momentum": 0.9, "local_steps": 2}
    (kept, _), (reset, _) = (run(2, reset_optimiser=reset, **options) for reset in (False, True))
    shares, expected = samples(problem), {}
    for resets in (False, True):
        w, velocity, own = problem.w, 0 * problem.w, dict.fromkeys(shares, 0 * problem.w[:EDGE])
        for step in range(4):
            g = {c: gradient(problem, w, c, step) for c in shares}
            mean = {c: n / sum(shares.values()) for c, n in shares.items()}
            velocity = 0.9 * velocity + sum(mean[c] * g[c] for c in shares)
            own = {c: (0 if resets else 0.9) * own[c] + g[c][:EDGE] for c in shares}
            low = sum(mean[c] * (w[:EDGE] - LR * own[c]) for c in shares)
            w = torch.cat([low, w[EDGE:] - LR * velocity[EDGE:]])
        expected[resets] = w
    assert torch.allclose(kept, expected[False], rtol=0, atol=1e-12)
    assert torch.allclose(reset, expected[True], rtol=0, atol=1e-12)
    assert not torch.allclose(kept, reset, atol=1e-3)


def server_gradient(
    problem: Problem, mix: Mix | None, w: Tensor | None = None, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """What the server's step is along, and what the clients are sent, for one batch of everybody."""
    w = problem.w if w is None else w
    arrays: dict[str, Tensor] = {}
    for c in samples(problem):
        rows = problem.streams.rows(c, range(1))[0]
        arrays[f"smashed_{c}"] = problem.task.predict(prefix(problem.stack, 1), w[:EDGE], problem.data.x[rows])
        arrays[f"labels_{c}"] = problem.data.y[rows]
    if mix is not None:
        arrays |= mix._asdict()
    n = len(problem.rows)
    inbox = Inbox(arrays, {"shares": (1 / n,) * n, "late": 0})
    nothing = Local(problem.data.x[None, :0], problem.data.y[None, :0], torch.tensor(0), Units(None))
    after, sent = make(problem.stack, **options).serve(problem.task, {"w": w[EDGE:]}, inbox, nothing)
    return (w[EDGE:] - after["w"]) / LR, [sent[f"gradient_{c}"] for c in range(n)]


def oneself(n: int, batch: int, lam: float) -> Mix:
    """Everybody with itself, or with the next where lambda is 1; no row moves."""
    rows = torch.arange(batch).expand(n, 1, 2, batch)
    partners = torch.arange(n)[:, None] if lam != 1.0 else (torch.arange(n)[:, None] + 1) % n
    return Mix(partners, rows, torch.full((n, 1, batch), lam, dtype=torch.float64))


@pytest.mark.parametrize("lam", [1.0, 0.3], ids=["lambda is 1", "the partner is oneself"])
@pytest.mark.parametrize(("mode", "times"), [("added", 1.7), ("convex", 1.0)])
def test_8_a_mixture_that_mixes_nothing(lam: float, mode: str, times: float) -> None:
    """An additive term scales the server's gradient by 1 + mu; only a convex one is a no-op."""
    problem = tiny_problem(CLIENTS)
    plain, ups = server_gradient(problem, None)
    mixed, same = server_gradient(problem, oneself(CLIENTS, problem.batch, lam), mix_weight=0.7, mix_loss=mode)
    assert torch.allclose(mixed, times * plain, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(ups, same, strict=True))


def test_9_lambda_and_the_rest_of_it_with_swapped_partners_are_one_mixture() -> None:
    problem = tiny_problem(2)
    g = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in range(2)]
    rows = torch.stack([torch.randperm(4, generator=g) for _ in range(2)])[None, None]
    lam = torch.full((1, 1, 4), 0.3, dtype=torch.float64)
    one, other = Mix(torch.tensor([[1]]), rows, lam), Mix(torch.tensor([[1]]), rows.flip(2), 1 - lam)

    assert torch.allclose(mixtures(values, one), mixtures(values[::-1], other), rtol=0, atol=1e-15)
    del problem


@pytest.mark.parametrize("loss", [cross_entropy, lambda output, y: cross_entropy(output, y)], ids=["known", "any"])
def test_9_the_loss_of_soft_labels_is_the_mixture_of_losses(loss: Any) -> None:

    g = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, dtype=torch.float64, generator=g)
    one, other = torch.randint(3, (2, 5), generator=g)
    lam = torch.rand(5, dtype=torch.float64, generator=g)
    hot = lam[:, None] * nn.functional.one_hot(one, 3) + (1 - lam)[:, None] * nn.functional.one_hot(other, 3)
    found = SoftLoss(loss)(output, torch.stack([one.double(), other.double(), lam], 1))
    assert torch.allclose(found, nn.functional.cross_entropy(output, hot), rtol=0, atol=1e-15)


def test_10_detached_mixup_leaves_the_clients_alone() -> None:
    """The gradients that clients are sent are the same bits with mixup and without; so are clients after a batch."""
    problem = tiny_problem(CLIENTS)
    (mix,) = mixes(problem, 1, 1)
    (plain, ups), (mixed, same) = server_gradient(problem, None), server_gradient(problem, mix)
    assert not torch.allclose(plain, mixed, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(ups, same, strict=True))
    (on, _), (off, _) = (run(1, partners=n) for n in (1, 0))
    assert torch.equal(on[:EDGE], off[:EDGE])
    assert not torch.equal(on[EDGE:], off[EDGE:])
    reached, _ = run(1, mix_to_clients=True)
    assert not torch.allclose(reached[:EDGE], off[:EDGE], atol=1e-4)


def test_10_what_reaches_clients_that_are_sent_the_mixtures_gradient() -> None:
    problem = tiny_problem(CLIENTS)
    (mix,) = mixes(problem, 1, 1, partners=2)
    w, high = problem.w, suffix(problem.stack, 1)
    inputs = []
    for c in range(CLIENTS):
        rows = problem.streams.rows(c, range(1))[0]
        inputs.append(
            (problem.task.predict(prefix(problem.stack, 1), w[:EDGE], problem.data.x[rows]), problem.data.y[rows])
        )
    smashed, labels = [x.clone().requires_grad_() for x, _ in inputs], [y for _, y in inputs]
    upper = nn.Sequential(*list(problem.stack.load(w))[2:])
    losses = []
    for i in range(CLIENTS):
        losses.append(nn.functional.cross_entropy(upper(smashed[i]), labels[i]))
        for k in range(2):
            j, (mine, other), lam = int(mix.partners[i, k]), mix.rows[i, k], mix.share[i, k][:, None]
            one, two = (nn.functional.one_hot(y, 3) for y in (labels[i][mine], labels[j][other]))
            out = upper(lam * smashed[i][mine] + (1 - lam) * smashed[j][other])
            losses.append(nn.functional.cross_entropy(out, lam * one + (1 - lam) * two) / 2)
    expected = torch.autograd.grad(torch.stack(losses).sum(), smashed)
    _, sent = server_gradient(problem, mix, mix_to_clients=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(sent, expected, strict=True))
    assert mixup_gradient(problem.task, high, w[EDGE:], smashed, labels, mix, [0.25] * 4)[0].shape == (high.size,)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"optimiser": "adam"}, {"cut_deadline": 1.0}], ids=str)
def test_11_without_its_three_ingredients_it_is_psl(options: dict[str, Any]) -> None:
    problem, fleet = tiny_problem(), uneven_fleet()
    bare = {"partners": 0, "gamma": 0.0, "average_every": 0}
    options = {"stack": problem.stack, "lr": LR, "local_steps": 3, **options}
    if "cut_deadline" in options:
        fleet = Fleet([DEVICE] * 5 + [replace(DEVICE, flops=1e-3)])
    mine, _ = simulate(lambda s: LocFedMixSL(**{**options, **bare, "stack": s}), problem, fleet, 2)
    psl, _ = simulate(lambda s: PSL(**{**options, "stack": s}), problem, fleet, 2)
    assert torch.equal(mine, psl)


def test_11_averaged_in_every_batch_it_is_gradient_descent_on_the_pooled_batch() -> None:
    problem = tiny_problem()
    w = problem.w
    for step in range(6):
        w = w - LR * torch.stack([gradient(problem, w, c, step) for c in range(6)]).mean(0)
    found, _ = run(3, problem=problem, partners=0, gamma=0.0, weights="equal", local_steps=2)
    assert torch.allclose(found, w, rtol=0, atol=1e-12)
    once, _ = run(3, problem=problem, partners=0, gamma=0.0, weights="equal", local_steps=2, average_unit="rounds")
    assert not torch.allclose(once, w, rtol=0, atol=1e-6)


def test_11_without_gamma_nothing_of_the_decoder_reaches_anybody() -> None:
    (one, simulator), (other, _) = (run(2, gamma=0.0, decoder_lr=lr) for lr in (0.1, 5.0))
    assert torch.equal(one, other)
    assert not [c for c in simulator.ledger.total.bytes if c.startswith("aux")]


def test_12_one_backward_pass_takes_both_parts() -> None:
    """What reaches the encoder is the gradient of the joint loss, by a graph that was never cut."""
    problem = tiny_problem(1)
    found, _ = run(1, problem=problem, gamma=0.7)
    hand = ByHand(problem, gamma=0.7, partners=0)
    hand.batch(0, None)
    assert torch.allclose(found, hand.w, rtol=0, atol=1e-12)


def test_12_the_target_alone_moves_the_encoder() -> None:
    """The defect of a port: the embedding is detached, and only the decoder trains."""
    problem = tiny_problem(CLIENTS)
    unit: dict[str, Any] = {"decoder": "decoder:output=sigmoid", "target": "unit"}
    (near, _), (far, _), (off, _) = (
        run(1, problem=problem, **options)
        for options in ({**unit, "between": (-2.0, 2.0)}, {**unit, "between": (-9.0, 2.0)}, {"gamma": 0.0})
    )
    assert not torch.allclose(near[:EDGE], far[:EDGE], atol=1e-6)
    assert not torch.allclose(near[:EDGE], off[:EDGE], atol=1e-6)
    assert torch.equal(near[EDGE:], off[EDGE:])


def test_the_server_steps_once_for_every_batch_and_never_sees_a_decoder() -> None:
    """Two defects of ports: a step for each round or for each mixture; and the decoder would invert smashed data."""
    problem = tiny_problem(CLIENTS)
    seen: list[set[str]] = []

    class Watched(LocFedMixSL):
        def serve(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            seen.append(set(state) | set(inbox.arrays))
            return super().serve(task, state, inbox, local)

    _, simulator = simulate(
        lambda s: Watched(stack=s, lr=LR, local_steps=3, partners=2), problem, Fleet([DEVICE] * CLIENTS), 2
    )
    served = [r for r in simulator.timeline if r["handler"] == "serve"]
    assert len(served) == 6
    assert seen
    assert not {name for names in seen for name in names if "phi" in name or "aux" in name}


def test_partners_are_others_and_of_the_same_batch() -> None:
    """Never oneself, none twice, every row once; fewer where fewer are there."""
    for seed in range(50):
        mix = draw_mix(generator(seed), 4, 6, 5, 3)
        for i, partners in enumerate(mix.partners.tolist()):
            assert len({i, *partners}) == 6
        assert torch.equal(mix.rows.sort(-1).values, torch.arange(3).expand(4, 5, 2, 3))
    assert draw_mix(generator(0), 3, 3, 7, 2).partners.shape == (3, 2)
    assert draw_mix(generator(0), 1, 1, 7, 2).partners.shape == (1, 0)
    assert {int(p) for s in range(50) for p in draw_mix(generator(s), 1, 4, 1, 2).partners} == {1, 2, 3}
    itself = [draw_mix(generator(s), 2, 2, 1, 2, choice="replacement").partners[0, 0] == 0 for s in range(50)]
    assert any(itself)
    assert not all(itself)


def test_lambda_is_drawn_as_it_says() -> None:
    def drawn(**options: Any) -> Tensor:
        return torch.cat([draw_mix(generator(s), 8, 8, 4, 16, **options).share for s in range(40)])

    for alpha in (0.3, 1.0, 4.0):
        lam = drawn(alpha=alpha)[..., 0]
        assert abs(float(lam.mean()) - 0.5) < 0.05
        assert abs(float(lam.var()) - 1 / (4 * (2 * alpha + 1))) < 0.02
    assert torch.equal(drawn()[..., :1].expand(320, 4, 16), drawn())
    assert float(drawn(share="sample").var(-1).min()) > 0
    assert torch.equal(drawn(share="constant").unique(), torch.tensor([0.5], dtype=torch.float64))
