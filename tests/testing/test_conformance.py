"""The conformance suite over the table of algorithms, and over broken algorithms that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass

from lanterne.algorithms import ALGORITHMS, FedAvg
from lanterne.errors import ProtocolError
from lanterne.learn import Update, coverage_mean
from lanterne.models import full
from lanterne.protocol import Request, exchange, usable
from lanterne.testing import check_algorithm, check_runtimes_match, tiny_cnn, tiny_problem
from testing.variants import PER_CLIENT, QUICK, VARIANTS


def test_every_algorithm_is_here() -> None:
    assert set(ALGORITHMS) <= {name.split(",")[0].split(" ")[0] for name in VARIANTS}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_algorithms_conform(name: str) -> None:
    check_algorithm(VARIANTS[name], renormalises=name not in PER_CLIENT)


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_executors_and_runtimes_agree_to_1e_10(name: str, net: str) -> None:
    problem = tiny_problem(stack=tiny_cnn()) if net == "cnn" else tiny_problem()
    check_runtimes_match(VARIANTS[name], problem=problem, in_process=name not in QUICK)


# ---------------------------------------------------------------------------------------------------- broken algorithms
@dataclass(frozen=True, kw_only=True, config={"arbitrary_types_allowed": True})
class DividesByAll(FedAvg):
    """Averages over the invited instead of the arrivals."""

    def round(self, state: Any, cohort: Any) -> Any:
        invited = [Request(c, "train", {"w": state.w}, batches=range(1), passes=PASSES) for c in cohort.clients]
        replies = usable((yield from exchange(invited)))
        updates = [Update(full(self.stack), r["delta"], 1.0) for r in replies]
        return replace(state, w=coverage_mean(state.w, updates, len(replies) / len(invited)))


class Broken(FedAvg):
    """A place for single faults."""


def _handler(fault: Callable[[Any, Any, Any], Any]) -> type[Any]:
    @dataclass(frozen=True, kw_only=True, config={"arbitrary_types_allowed": True})
    class Faulty(FedAvg):
        def train(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            return fault(task, inbox, local) or super().train(task, state, inbox, local)

    return Faulty


from lanterne.protocol import Pass  # noqa: E402

PASSES = [Pass("forward", 0, 3), Pass("backward", 0, 3)]


def _more_work(task: Any, inbox: Any, local: Any) -> None:
    task.gradient(full(task.stack), inbox["w"], local.x[0], local.y[0])


def _in_place(task: Any, inbox: Any, local: Any) -> None:
    inbox["w"].mul_(1.0 + 1e-3)


def _ambient(task: Any, inbox: Any, local: Any) -> None:
    torch.rand(1, device=inbox["w"].device if not inbox["w"].is_meta else "cpu")


def _value(task: Any, inbox: Any, local: Any) -> None:
    inbox["w"].sum().item()


def _not_finite(task: Any, inbox: Any, local: Any) -> Any:
    w = full(task.stack)
    task.gradient(w, inbox["w"], local.x[0], local.y[0])
    return {}, {"delta": inbox["w"] * float("nan")}


def _renamed(task: Any, inbox: Any, local: Any) -> Any:
    g = task.gradient(full(task.stack), inbox["w"], local.x[0], local.y[0])
    return {}, {"delta": -g, "extra": g[:2]}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (_more_work, AssertionError, "FLOPs in products and convolutions, but its passes declare"),
        (_in_place, AssertionError, "changed its inputs"),
        (_ambient, AssertionError, "touched the global random generator"),
        (_value, ProtocolError, "cannot run on shapes alone"),
        (_not_finite, AssertionError, "not finite"),
        (_renamed, AssertionError, "Bytes without a category"),
    ],
    ids=["more work", "in place", "ambient", "reads values", "not finite", "no category"],
)
def test_a_broken_handler_is_refused(fault: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_algorithm(lambda s: _handler(fault)(stack=s, lr=0.3))


def test_dividing_by_all_is_refused() -> None:
    with pytest.raises(AssertionError, match="not renormalised over arrivals"):
        check_algorithm(lambda s: DividesByAll(stack=s, lr=0.3))


def test_doing_nothing_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, config={"arbitrary_types_allowed": True})
    class Idle(FedAvg):
        def round(self, state: Any, cohort: Any) -> Any:
            yield from exchange(
                [Request(c, "train", {"w": state.w}, batches=range(1), passes=PASSES) for c in cohort.clients]
            )
            return state

    with pytest.raises(AssertionError, match="Nothing was learned"):
        check_algorithm(lambda s: Idle(stack=s, lr=0.3))


def test_moving_in_an_empty_round_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, config={"arbitrary_types_allowed": True})
    class Decays(FedAvg):
        def round(self, state: Any, cohort: Any) -> Any:
            state = yield from super().round(state, cohort)
            return replace(state, w=state.w * 0.99)

    with pytest.raises(AssertionError, match="changed the weights"):
        check_algorithm(lambda s: Decays(stack=s, lr=0.3))


def test_asking_for_ever_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, config={"arbitrary_types_allowed": True})
    class Stubborn(FedAvg):
        def round(self, state: Any, cohort: Any) -> Any:
            replies: list[Any] = []
            while not replies:
                asked = [Request(c, "train", {"w": state.w}, batches=range(1), passes=PASSES) for c in cohort.clients]
                replies = usable((yield from exchange(asked)))
            return replace(
                state, w=coverage_mean(state.w, [Update(full(self.stack), r["delta"], 1.0) for r in replies])
            )

    with pytest.raises(AssertionError, match="does not end"):
        check_algorithm(lambda s: Stubborn(stack=s, lr=0.3))


def test_a_runtime_that_differs_is_noticed() -> None:
    class Unsteady(FedAvg):
        def train(self, task: Any, state: Any, inbox: Any, local: Any) -> Any:
            state, out = super().train(task, state, inbox, local)
            return state, {"delta": out["delta"] * (1.0 + 1e-6 * task.functional)}

    with pytest.raises(AssertionError, match="batched executor differs"):
        check_runtimes_match(lambda s: Unsteady(stack=s, lr=0.3))
