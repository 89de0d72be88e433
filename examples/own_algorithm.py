"""An algorithm of one's own: the coordinate-wise median of the clients' updates.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498, with several local steps.

python examples/own_algorithm.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

import lanterne
from lanterne.learn import Task, local_sgd
from lanterne.models import LayerStack, full
from lanterne.protocol import Cohort, Handler, Inbox, Local, Pass, Program, Request, exchange, usable
from lanterne.testing import check_algorithm, check_runtimes_match


@dataclass(frozen=True)
class State:
    """What the server keeps between rounds: plain data, tensors and frozen dataclasses."""

    w: Tensor
    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Median:
    """The fields are the hyperparameters; `stack`, the model, is always among them."""

    stack: LayerStack
    lr: float = 0.1
    local_steps: int = 1

    #: What the bytes of each array are counted as.
    traffic: ClassVar[Mapping[str, str]] = {"w": "model_down", "delta": "model_up"}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Who answers which request."""
        return {"train": self.train}

    def train(
        self, task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The client's half: one step per batch. It returns the client's next state and its reply."""
        w, _ = local_sgd(task, full(task.stack), inbox["w"], local.x, local.y, self.lr)
        return state, {"delta": w - inbox["w"]}

    def init(self, w: Tensor) -> State:
        """The state before the first round."""
        return State(w)

    def round(self, state: State, cohort: Cohort) -> Program[State]:
        """The server's half: invite everybody, wait for all, move by the median of what arrived."""
        n, k = len(self.stack), self.local_steps
        requests = [
            Request(
                client,
                "train",
                {"w": state.w},
                batches=range(state.round * k, (state.round + 1) * k),
                passes=[Pass("forward", 0, n), Pass("backward", 0, n)] * k,
            )
            for client in cohort.sample(None, cohort.key)
        ]
        arrived = usable((yield from exchange(requests)))
        if not arrived:
            return replace(state, round=state.round + 1)
        middle = torch.stack([reply["delta"] for reply in arrived]).median(dim=0).values
        return replace(state, w=state.w + middle, round=state.round + 1)

    def evaluated(self, state: State) -> Tensor:
        """The weights that are judged."""
        return state.w


if __name__ == "__main__":
    check_algorithm(lambda stack: Median(stack=stack))
    check_runtimes_match(lambda stack: Median(stack=stack))
    print(lanterne.run(["fedavg", Median], clients=8, rounds=5).table)
