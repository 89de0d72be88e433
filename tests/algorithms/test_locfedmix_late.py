"""LocFedMix-SL beside stragglers, its books, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from algorithms.by_hand import samples
from algorithms.test_locfedmix import CLIENTS, DEVICE, EDGE, make, run
from lanterne.algorithms import LocFedMixSL
from lanterne.errors import ModelError
from lanterne.fleet import Fleet
from lanterne.runtime import Simulator
from lanterne.testing import simulate, tiny_cnn, tiny_problem
from lanterne.testing.problems import tiny_mlp

SLOW = [DEVICE] * (CLIENTS - 1) + [replace(DEVICE, flops=DEVICE.flops / 10)]
LATE = pytest.mark.parametrize("late", ["drop", "mix", "serve"])


def handlers(simulator: Simulator, client: int | str) -> list[str]:
    return [r["handler"] for r in sorted(simulator.timeline, key=lambda r: r["start"]) if r["client"] == client]


@LATE
def test_20_a_quorum_of_all_and_no_deadline_is_the_synchronous_mode(late: str) -> None:
    plain, _ = run(2, SLOW, local_steps=2)
    found, _ = run(2, SLOW, local_steps=2, quorum=CLIENTS, late=late)
    assert torch.equal(plain, found)


def test_20_who_always_misses_the_deadline_might_as_well_not_be_there() -> None:
    """Its steps alone are in no average: they carry no signal of the task."""
    slow = [*SLOW[:-1], replace(DEVICE, flops=1e-3)]
    found, _ = run(3, slow, local_steps=2, cut_deadline=1.0)
    three = replace(tiny_problem(CLIENTS), rows=tiny_problem(CLIENTS).rows[:-1])
    expected, _ = run(3, slow[:-1], problem=three, local_steps=2)
    assert torch.equal(found, expected)


def test_late_smashed_data_are_partners_of_the_next_batch() -> None:
    """The server alone learns from them; nobody is owed a gradient."""
    (dropped, _), (mixed, simulator) = (
        run(1, SLOW, local_steps=8, cut_deadline=0.12, late=late) for late in ("drop", "mix")
    )
    assert "forward" in handlers(simulator, CLIENTS - 1)
    assert "backward" not in handlers(simulator, CLIENTS - 1)
    assert not torch.allclose(dropped, mixed, atol=1e-9)


def test_late_smashed_data_are_served_without_a_step_of_the_server() -> None:
    (dropped, _), (served, simulator) = (
        run(1, SLOW, local_steps=16, cut_deadline=0.12, late=late, alone=0, partners=0, average_every=0)
        for late in ("drop", "serve")
    )
    assert handlers(simulator, CLIENTS - 1)[:3] == ["forward", "reconstruct", "backward"]
    assert "serve_late" in handlers(simulator, "server:0")
    assert torch.equal(dropped[0, EDGE:], served[0, EDGE:])
    assert torch.equal(dropped[:-1], served[:-1])
    assert not torch.equal(dropped[-1], served[-1])


def test_who_was_served_and_then_failed_is_in_the_average() -> None:
    """It has its half still, with the steps of the batches before, and is asked for that; who has none is not."""
    failing = [DEVICE] * (CLIENTS - 1) + [replace(DEVICE, failure=0.6)]
    _, simulator = run(12, failing, local_steps=4, average_every=4, gamma=0.0)
    mine = [r for r in simulator.timeline if r["client"] == CLIENTS - 1]
    rounds = [[r for r in mine if r["round"] == round] for round in range(1, 13)]
    asked = [any(r["handler"] == "hand_in" for r in records) for records in rounds]
    there = [records[-1]["handler"] == "backward" for records in rounds]
    answered = [any(r["handler"] == "backward" for r in records) for records in rounds]
    assert asked == [a and not t for a, t in zip(answered, there, strict=True)]
    assert any(asked)


def test_an_average_waits_for_nobody_who_is_at_work() -> None:
    """A slow client that was served late, and is in the middle of its next batch, is not asked for its half."""
    _, simulator = run(4, SLOW, local_steps=16, cut_deadline=0.12, late="serve", average_every=16, gamma=0.0)
    found = handlers(simulator, CLIENTS - 1)
    assert "backward" in found
    mine = [r for r in simulator.timeline if r["client"] == CLIENTS - 1]
    assert all(r["start"] == r["sent"] for r in mine if r["handler"] == "hand_in")


def test_what_somebody_late_gets_of_a_pooled_loss_is_as_long_as_in_time() -> None:
    """Its share among all whom the round invites: the same step of SGD as `per_client` with one so much shorter."""
    problem = tiny_problem(CLIENTS)
    shares, deadline = samples(problem), {"local_steps": 16, "cut_deadline": 0.12, "late": "serve"}
    bare: dict[str, Any] = {**deadline, "partners": 0, "average_every": 0, "gamma": 0.0, "server_lr": 1e-30}
    share = shares[CLIENTS - 1] / sum(shares.values())
    (pooled, simulator), (scaled, _) = run(1, SLOW, cut_gradient="pooled", **bare), run(1, SLOW, lr=0.1 * share, **bare)
    assert handlers(simulator, CLIENTS - 1)[:2] == ["forward", "backward"]
    assert not torch.allclose(pooled[-1], problem.w, atol=1e-4)
    assert torch.allclose(pooled[-1], scaled[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("late", ["drop", "mix"])
@pytest.mark.parametrize(("rounds", "steps", "every"), [(16, 1, 1), (8, 4, 3)], ids=["every batch", "every third"])
def test_who_was_late_over_an_average_begins_with_it(late: str, rounds: int, steps: int, every: int) -> None:
    """Wherever the round ends: its half is of before that average, and nothing of it is worth an average."""
    _, simulator = run(rounds, SLOW, local_steps=steps, cut_deadline=0.12, late=late, average_every=every, gamma=0.0)
    averages = sorted(r["start"] for r in simulator.timeline if r["client"] == 0 and r["handler"] == "forward")[::every]
    mine = sorted((r for r in simulator.timeline if r["client"] == CLIENTS - 1), key=lambda r: r["start"])
    forwards = [r for r in mine if r["handler"] == "forward"]
    for before, after in pairwise(forwards):
        crossed = any(before["start"] < at <= after["start"] for at in averages)
        assert (after["downloaded"] - after["sent"] > 8 * EDGE / DEVICE.down) is crossed
    assert len(forwards) > 2


@pytest.mark.parametrize("most", [0, 1, 3])
def test_steps_alone_are_bounded(most: int) -> None:
    """As many in a row as `alone` says, and they are in the timeline."""
    _, simulator = run(24, SLOW, local_steps=2, cut_deadline=0.12, alone=most, average_every=0)
    found = handlers(simulator, CLIENTS - 1)
    assert found.count("alone") == most < found.count("reconstruct")
    assert "alone" not in handlers(simulator, 0)


def test_late_smashed_data_are_partners_once() -> None:
    """They mix in the batch after they came, and in none after that."""
    problem, seen = tiny_problem(CLIENTS), []

    class Watched(LocFedMixSL):
        def serve(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            if inbox["smashed_0"].device.type != "meta":
                seen.append(inbox.config["late"])
            return super().serve(task, state, inbox, local)

    _, simulator = simulate(
        lambda s: Watched(stack=s, lr=0.1, local_steps=16, cut_deadline=0.12, late="mix", alone=0, gamma=0.0),
        problem,
        Fleet(SLOW),
        2,
    )
    assert sum(seen) == handlers(simulator, CLIENTS - 1).count("forward")
    assert max(seen) == 1


def test_nobody_is_mixed_with_what_it_sent_late_itself() -> None:
    """A client whose first batch came late, when the round was at its end, and whose second comes in time."""
    problem, seen = tiny_problem(CLIENTS), []

    class Watched(LocFedMixSL):
        def serve(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            if inbox["smashed_0"].device.type != "meta":
                seen.append((len(inbox.config["shares"]), inbox.config["late"]))
            return super().serve(task, state, inbox, local)

    # The first batch has to fetch the half as well.
    options: dict[str, Any] = {"cut_deadline": 0.155, "late": "mix", "alone": 0, "average_every": 0, "gamma": 0.0}
    slow = [*SLOW[:-1], replace(DEVICE, flops=DEVICE.flops / 12)]
    simulate(lambda s: Watched(stack=s, lr=0.1, **options), problem, Fleet(slow), 3)
    assert seen[0] == (CLIENTS - 1, 0)
    assert (CLIENTS, 0) in seen
    assert (CLIENTS, 1) not in seen


def test_who_is_served_late_takes_no_steps_alone() -> None:
    _, simulator = run(2, SLOW, local_steps=16, cut_deadline=0.12, late="serve", average_every=0)
    found = handlers(simulator, CLIENTS - 1)
    assert "backward" in found
    assert "alone" not in found


def test_a_client_that_was_served_may_step_alone_again() -> None:
    """`alone` bounds steps in a row: a client that comes in time now and then has as many again."""
    problem = tiny_problem(CLIENTS)
    loaded = [DEVICE] * (CLIENTS - 1) + [replace(DEVICE, flops=DEVICE.flops / 2.5)]
    _, simulator = run(12, loaded, problem=problem, local_steps=8, cut_deadline=0.13, alone=1, average_every=0)
    found = [h for h in handlers(simulator, CLIENTS - 1) if h in ("alone", "backward")]
    assert found.count("alone") > 1
    assert not any(a == b == "alone" for a, b in pairwise(found))


def test_where_all_are_at_work_the_server_waits_for_the_first_of_them() -> None:
    """Batches do not run off while nobody is free."""
    everybody = [replace(DEVICE, flops=DEVICE.flops / 10)] * CLIENTS
    _, simulator = run(1, everybody, local_steps=6, cut_deadline=0.05, alone=0, average_every=0, gamma=0.0)
    assert len([h for h in handlers(simulator, 0) if h == "forward"]) > 2


def test_averages_in_rounds_are_at_the_end_of_every_so_many() -> None:
    _, simulator = run(4, average_every=2, average_unit="rounds", local_steps=2)
    down = [r["round"] for r in simulator.timeline if r["client"] == 0 and r["handler"] == "forward"]
    assert down == [1, 1, 2, 2, 3, 3, 4, 4]
    assert simulator.ledger.total.bytes["model_up"] == 2 * CLIENTS * 8 * EDGE
    assert simulator.ledger.total.bytes["model_down"] == 2 * CLIENTS * 8 * EDGE


def test_one_arrival_mixes_with_nobody_and_none_changes_nothing() -> None:
    crowd = [DEVICE] + [replace(DEVICE, flops=1e-3)] * (CLIENTS - 1)
    (one, _), (plain, _) = (run(1, crowd, cut_deadline=1.0, partners=n) for n in (1, 0))
    assert torch.equal(one, plain)
    none, _ = run(1, crowd[1:] + crowd[-1:], cut_deadline=1.0)
    assert torch.equal(none, tiny_problem(CLIENTS).w)


def test_decoders_stay_at_home_if_they_are_told_to() -> None:
    _, simulator = run(3, average_decoders=False)
    books, decoder = simulator.ledger.total.bytes, make(tiny_mlp()).networks["decoder"]
    assert books["aux_down"] == CLIENTS * 8 * decoder.size
    assert "aux_up" not in books


@pytest.mark.parametrize("name", ["alpha", "mix_weight", "gamma"])
def test_numbers_are_finite(name: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        make(tiny_mlp(), **{name: math.inf})


def test_the_timeline_says_of_which_version_a_gradient_is() -> None:
    """Each of the server's steps is one more; who is served late gets what there is then."""
    _, simulator = run(2, SLOW, local_steps=16, cut_deadline=0.12, late="serve", average_every=0, gamma=0.0)
    served = [r["version"] for r in simulator.timeline if r["handler"] == "serve"]
    assert served == list(range(len(served)))
    late = [r for r in simulator.timeline if r["handler"] == "serve_late"]
    assert late
    for r in late:
        before = [q["version"] for q in simulator.timeline if q["handler"] == "serve" and q["sent"] <= r["sent"]]
        assert max(before) <= r["version"] <= max(before) + 1
    assert {r["version"] for r in simulator.timeline if r["handler"] == "backward"} <= {*served, len(served)}


def test_23_bytes_are_those_of_the_closed_form() -> None:
    problem = tiny_problem(CLIENTS)
    _, simulator = run(2, problem=problem, local_steps=2)
    decoder, batches = make(problem.stack).networks["decoder"].size, 2 * 2 * CLIENTS
    smashed = batches * problem.batch * simulator.pricing.costs()[0].output
    assert dict(simulator.ledger.total.bytes) == {
        "model_down": batches * 8 * EDGE,
        "aux_down": batches * 8 * decoder,
        "act_up": smashed,
        "labels_up": batches * problem.batch * 8,
        "grad_down": smashed,
        "model_up": batches * 8 * EDGE,
        "aux_up": batches * 8 * decoder,
    }


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decoder": "pooled"}, "does not reconstruct"),
        ({"target": "unit"}, "output=sigmoid"),
        ({"decoder": "decoder:output=sigmoid"}, "output=sigmoid"),
        ({"error": "bce"}, "target = 'unit'"),
        ({"between": (1.0, 0.0)}, "smaller number first"),
        ({"between": (0.0, math.inf)}, "finite"),
        ({"cut": 9}, "Legal cuts"),
        ({"mix_to_clients": True, "cut_weights": "after"}, "Leave one of the two out"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        make(tiny_mlp(), **options)


def test_a_network_that_looks_at_images_is_decoded_to_images() -> None:
    assert make(tiny_cnn(), cut=2).networks["decoder"].output_shape == (1, 6, 6)
