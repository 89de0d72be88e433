"""A cut for each class of devices: where the method allows it, what it computes, and who refuses it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from algorithms.by_hand import gradient, samples
from lanterne.algorithms import ALGORITHMS, PSL, FedAvg, SplitFedV1
from lanterne.errors import ConfigError, ModelError
from lanterne.experiment import parse_config, prepare
from lanterne.experiment.config import to_toml
from lanterne.experiment.tables import with_overrides
from lanterne.fleet import Device, Fleet
from lanterne.models import LayerStack
from lanterne.runtime import Batched, Loop
from lanterne.testing import Problem, simulate, tiny_cnn, tiny_problem, uneven_fleet
from lanterne.testing.conformance import Audit
from lanterne.testing.problems import tiny_mlp

STACKS = pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
CUTS = {"default": 2, "slow": 1}
REFUSING = ["sl", "sglr", "splitfed_v2", "locsplitfed", "cse_fsl"]


def at(client: int) -> int:
    """Every third client is slow."""
    return CUTS["slow" if client % 3 == 0 else "default"]


def mixed_fleet(clients: int = 6) -> Fleet:
    fleet = uneven_fleet(clients)
    tiers = ["slow" if at(c) == CUTS["slow"] else f"fast{c % 2}" for c in range(clients)]
    return replace(fleet, devices=[replace(d, tier=t) for d, t in zip(fleet.devices, tiers, strict=True)])


def four_blocks() -> LayerStack:
    """Room for two heads in front of a body and a tail."""
    with torch.device("meta"):
        widths = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)]
        return LayerStack(nn.Sequential(*widths), (6,))


@pytest.mark.parametrize("options", [{"lr": 0.3}, {"lr": 0.1, "momentum": 0.9}], ids=["sgd", "momentum"])
@pytest.mark.parametrize(
    ("stack", "tail"), [(tiny_mlp(), None), (tiny_cnn(), None), (four_blocks(), 3)], ids=["mlp", "cnn", "U"]
)
def test_4_and_5_v1_is_fedavg_with_a_cut_for_each_class(
    stack: LayerStack, options: dict[str, Any], tail: int | None
) -> None:
    problem, fleet = tiny_problem(stack=stack), mixed_fleet()
    expected, _ = simulate(lambda s: FedAvg(stack=s, local_steps=3, **options), problem, fleet, 3)
    found, simulator = simulate(
        lambda s: SplitFedV1(stack=s, local_steps=3, cut=CUTS, tail=tail, **options), problem, fleet, 3
    )
    assert torch.equal(found, expected)
    if not tail:  # what is sent is that of each client's own cut
        costs, books = simulator.pricing.costs(), simulator.ledger
        for client in range(6):
            assert books[client].bytes["act_up"] == 9 * problem.batch * costs[at(client) - 1].output


def by_hand(problem: Problem, rounds: int, lr: float, server_lr: float) -> Tensor:
    """One server half from the shallowest cut on, which steps on the gradient of `sum_i delta_i L_i`."""
    edges, n = problem.stack.edges, samples(problem)
    first = edges[CUTS["slow"]]
    halves, server = {c: problem.w[: edges[at(c)]] for c in n}, problem.w[first:]
    for step in range(rounds):
        total = torch.zeros_like(server)
        for c in n:
            edge = edges[at(c)]
            g = gradient(problem, torch.cat([halves[c], server[edge - first :]]), c, step)
            halves[c] = halves[c] - lr * g[:edge]
            total += n[c] / sum(n.values()) * pad(g[edge:], (edge - first, 0))
        server = server - server_lr * total
    return torch.stack([torch.cat([halves[c], server[edges[at(c)] - first :]]) for c in n])


@STACKS
def test_psl_with_a_cut_for_each_class_by_hand(stack: LayerStack) -> None:
    problem = tiny_problem(stack=stack)
    found, simulator = simulate(
        lambda s: PSL(stack=s, lr=0.3, server_lr=0.2, local_steps=2, cut=CUTS), problem, mixed_fleet(), 2
    )
    assert torch.allclose(found, by_hand(problem, 4, 0.3, 0.2), rtol=0, atol=1e-12)
    costs = simulator.pricing.costs()
    for client in range(6):
        assert simulator.ledger[client].bytes["act_up"] == 4 * problem.batch * costs[at(client) - 1].output


@pytest.mark.parametrize("kind", [PSL, SplitFedV1])
def test_the_same_cut_for_each_class_is_that_cut(kind: type[Any]) -> None:
    problem, fleet = tiny_problem(), mixed_fleet()
    one, other = (
        simulate(lambda s, c=c: kind(stack=s, lr=0.3, local_steps=2, cut=c), problem, fleet, 2)
        for c in (1, {"default": 1, "slow": "0", "fast1": "flops:0"})
    )
    assert torch.equal(one[0], other[0])
    assert one[1].now == other[1].now


@pytest.mark.parametrize("kind", [PSL, SplitFedV1])
@pytest.mark.parametrize("stack", [tiny_mlp(), tiny_cnn()], ids=["mlp", "cnn"])
def test_mixed_cuts_do_what_they_declare_on_every_executor(kind: type[Any], stack: LayerStack) -> None:
    """FLOPs, bytes and purity are audited; the batched executor agrees."""
    problem, fleet = tiny_problem(stack=stack), mixed_fleet()
    options = {"lr": 0.1, "local_steps": 2, "momentum": 0.5, "cut": CUTS}
    plain, audited, batched = (
        simulate(lambda s: kind(stack=s, **options), problem, fleet, 2, executor)[0]
        for executor in (Loop, Audit, Batched)
    )
    assert torch.equal(plain, audited)
    assert torch.allclose(plain, batched, rtol=0, atol=1e-10)
    if kind is PSL:
        late = simulate(lambda s: PSL(stack=s, quorum=2, late="serve", **options), problem, fleet, 4, Audit)[1]
        assert "serve_late" in {r["handler"] for r in late.timeline}


@pytest.mark.parametrize("name", REFUSING)
def test_who_needs_one_cut_for_all_refuses_several_and_says_why(name: str) -> None:
    with pytest.raises(ModelError, match=r"\(default, slow\).*same place: \w.*Give one cut") as said:
        ALGORITHMS[name](stack=tiny_mlp(), cut=CUTS)
    assert ALGORITHMS[name].one_cut in str(said.value)


def test_every_split_method_allows_or_refuses() -> None:
    allowing = {name for name, kind in ALGORITHMS.items() if getattr(kind, "one_cut", None) == ""}
    assert allowing == {"psl", "splitfed_v1"}


def test_cuts_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="none for all others"):
        PSL(stack=tiny_mlp(), cut={"slow": 1})
    with pytest.raises(ModelError, match="Legal cuts"):
        PSL(stack=tiny_mlp(), cut={"default": 1, "slow": 3})


EXPERIMENT = {"data": {"clients": 4}, "model": {"name": "salf-mlp"}, "algorithms": ["psl"]}


def test_cuts_are_set_by_class_on_the_command_line_and_stand_in_the_configuration() -> None:
    for settings in (["psl.cut={default=2,straggler=1}"], ["psl.cut.default=2", "psl.cut.straggler=1"]):
        config = parse_config(with_overrides(EXPERIMENT, settings))
        assert config.algorithms["psl"].parameters["cut"] == {"default": 2, "straggler": 1}
        prepared = prepare(config)
        assert {name: place.at for name, place in prepared.algorithms["psl"].places.items()} == {  # type: ignore[attr-defined]
            "default": 2,
            "straggler": 1,
        }
        assert "[algorithms.psl.cut]\ndefault = 2\nstraggler = 1" in to_toml(prepared.config)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("{default=2,stragler=1}", r"algorithms\.psl\.cut .*'stragler'.*Did you mean 'straggler'"),
        ("{default=2,slow=1}", r"algorithms\.psl\.cut .*'slow'.*fast, straggler"),
        ("{default=2,straggler=true}", r"algorithms\.psl\.cut\.straggler is true"),
        ("1.5", r"algorithms\.psl\.cut is 1\.5, but has to be a whole number or text or table"),
    ],
)
def test_a_cut_that_means_nothing_is_refused_before_the_run(cut: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(parse_config(with_overrides(EXPERIMENT, [f"psl.cut={cut}"])))


def test_a_class_of_which_nobody_is_there_may_be_named() -> None:
    """Which devices are drawn is a matter of the seed."""
    fleet = Fleet([Device(tier="a"), Device(tier="b")])
    assert fleet.classes == ("a", "b")
    phones = {**EXPERIMENT, "fleet": {"kind": "phones"}, "data": {"clients": 1}}
    config = parse_config(phones)
    every = prepare(config).world(1).fleet
    assert len(every.members) == 1 < len(every.classes)
    for name in every.classes:
        prepare(parse_config(with_overrides(phones, [f"psl.cut={{default=2,{name}=1}}"])))
