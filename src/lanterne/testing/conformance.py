"""The price of admission: what every algorithm has to do right, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lanterne.fleet import Fleet
from lanterne.models import LayerStack
from lanterne.models.flops import FlopCounter
from lanterne.protocol import CATEGORIES, Algorithm, Effect, Reply
from lanterne.runtime import Loop, Simulator
from lanterne.runtime.job import Job, Result
from lanterne.testing.problems import Problem, tiny_problem, uneven_fleet
from lanterne.tree import digest, nbytes, spec_of

Make = Callable[[LayerStack], Algorithm[Any]]

#: More effects than any round of a tiny problem has.
MOST_EFFECTS = 10_000

#: Fleets on which everything that can happen to a client happens.
STORMS: dict[str, dict[str, Any]] = {
    "drop-outs in the middle of the work": {"dropout": 0.4},
    "errors": {"failure": 0.4},
    "availability": {"available": ((0.0, 0.03), (0.05, 0.2)), "period": 0.21},
    "all of it": {"dropout": 0.3, "failure": 0.2, "available": ((0.0, 0.1), (0.12, 0.3)), "period": 0.31},
}


class Audit(Loop):
    """An executor that holds every call to its word: FLOPs, bytes, purity, and no ambient randomness."""

    def run(self, nodes: Sequence[Any], job: Callable[[Any], Job], done: Callable[[Any, Result], None]) -> None:
        """Compute each call in turn, under the FLOP counter."""
        for node in nodes:
            j, name = job(node), f"The handler {node.request.handler!r}"
            before = _inputs(j)
            ambient = torch.get_rng_state()
            with FlopCounter() as counter:
                state, out = self.one(j)
            assert before == _inputs(j), f"{name} changed its inputs. Work on a clone."
            same = torch.equal(ambient, torch.get_rng_state())
            assert same, f"{name} touched the global random generator. Draw from local.key."
            declared, useful = self.declared(node)
            measured = counter.total
            assert measured in (declared, useful), (
                f"{name} did {measured} FLOPs in products and convolutions, but its passes declare {declared:.0f}."
            )
            real = sum(t.detach().contiguous().reshape(-1).view(torch.uint8).numel() for t in out.values())
            promised = nbytes(node.spec)
            assert real == promised == nbytes(spec_of(out)), f"{name} sent {real} bytes, but promised {promised}."
            done(node, (state, out))

    def declared(self, node: Any) -> tuple[float, float]:  # noqa: ANN401
        """FLOPs of the units that a call was to finish, and without a forward pass at their end that was cut off.

        A device does not know that nothing will come of that pass; a simulator may leave it out.
        """
        work = self.simulator.pricing.work(node.request.passes)
        units = useful = len(work) if node.units is None else node.units
        while node.units is not None and useful and not work.backward[useful - 1]:
            useful -= 1
        spent = (0.0, *map(float, work.cumulative))
        return spent[units], spent[useful]

    simulator: Simulator


class Watched(Simulator):
    """A simulator that notices a round without end."""

    effects = 0

    def round(self, algorithm: Algorithm[Any], state: Any) -> Any:  # noqa: ANN401
        """One round, its effects counted."""
        self.effects = 0
        return super().round(algorithm, state)

    def perform(self, effect: Effect) -> list[Reply] | None:
        """Perform one effect, if it is not one too many."""
        self.effects += 1
        assert self.effects <= MOST_EFFECTS, (
            f"A round has had {MOST_EFFECTS} effects and does not end. End it when no reply is usable any more."
        )
        return super().perform(effect)


def simulate(
    make: Make,
    problem: Problem,
    fleet: Fleet,
    rounds: int,
    executor: type[Loop] = Loop,
    threads: int = 1,
    **options: object,
) -> tuple[torch.Tensor, Simulator]:
    """Run a few rounds and give the evaluated weights and the simulator.

    Args:
        make: makes the algorithm of a model.
        problem: what is trained.
        fleet: on which devices.
        rounds: how many.
        executor: which one.
        threads: its threads.
        options: of the simulator.
    """
    algorithm = make(problem.stack)
    runner = executor(problem.task, problem.data.x, problem.data.y, threads)
    try:
        simulator = Watched(algorithm, fleet, runner, problem.streams, dtype=problem.w.dtype, **options)  # type: ignore[arg-type]
        if isinstance(runner, Audit):
            runner.simulator = simulator
        state = algorithm.init(problem.w)
        for _ in range(rounds):
            state = simulator.round(algorithm, state)
        return simulator.models(algorithm, state), simulator
    finally:
        runner.close()


def check_algorithm(make: Make, *, rounds: int = 4, renormalises: bool = True) -> None:
    """Run an algorithm under everything that can happen, and hold its handlers to their word.

    Checked are: the state stays finite; every round ends, also when everybody is lost; an empty round changes nothing;
    weights are renormalised over those who arrived; runs repeat to the bit; handlers are pure and do the FLOPs and send
    the bytes that were declared, truncated passes included; every array that crosses a link has a category.

    Args:
        make: makes the algorithm of a model, `lambda stack: FedAvg(stack=stack, lr=0.1)`.
        rounds: how many rounds each run has.
        renormalises: False for a rule that divides by all on purpose.

    Raises:
        AssertionError: saying what is wrong.
    """
    problem, fleet = tiny_problem(), uneven_fleet()
    calm, simulator = simulate(make, problem, fleet, rounds, Audit)
    assert bool(torch.isfinite(calm).all()), "The weights are not finite after a few calm rounds."
    assert not torch.equal(calm, problem.w.expand_as(calm)), "Nothing was learned: the weights are those of the start."
    unknown = set(simulator.ledger.total.bytes) - set(CATEGORIES)
    assert not unknown, (
        f"Bytes without a category: {sorted(unknown)}. Name every array that crosses a link in the table 'traffic'."
    )
    again, _ = simulate(make, problem, fleet, rounds)
    assert torch.equal(calm, again), "Two equal runs gave different weights: something is drawn from no key."
    for what, changes in STORMS.items():
        w, _ = simulate(make, problem, uneven_fleet(**changes), rounds, Audit)
        assert bool(torch.isfinite(w).all()), f"The weights are not finite after {what}."
    _check_empty(make, problem, rounds)
    if renormalises:
        _check_renormalised(make)


def _check_empty(make: Make, problem: Problem, rounds: int) -> None:
    storms = {"everybody is lost": "dropout", "everybody fails": "failure", "nobody has the memory": "memory"}
    for what, number in storms.items():
        changes: dict[str, Any] = {number: 1.0}
        w, _ = simulate(make, problem, uneven_fleet(**changes), rounds)
        assert torch.equal(w, problem.w.expand_as(w)), f"A round in which {what} changed the weights."


def _check_renormalised(make: Make) -> None:
    """Where all clients compute the same update, any of them alone must move the model as far as all of them."""
    problem = tiny_problem(same=True)
    fleet = uneven_fleet()
    everybody, _ = simulate(make, problem, fleet, 1)
    moved = float((everybody - problem.w).norm())
    assert moved > 0, "Nothing was learned in the first round."
    gone = replace(fleet, devices=[d if c in (1, 4) else replace(d, dropout=1.0) for c, d in enumerate(fleet.devices)])
    some, _ = simulate(make, problem, gone, 1)
    if torch.equal(some, problem.w):
        return  # A method that needs more arrivals than there are has not stepped yet.
    error, share = float((everybody - some).norm()) / moved, float((some - problem.w).norm()) / moved
    assert error < 1e-9, (
        f"With most clients lost the step is {share:.3f} of the full one: weights are not renormalised over arrivals."
    )


def _inputs(j: Job) -> str:
    return digest({f"state {n}": t for n, t in j.state.items()} | {f"inbox {n}": t for n, t in j.arrays.items()})


def finite(values: Sequence[float]) -> bool:
    """Whether all numbers are finite."""
    return all(map(math.isfinite, values))
