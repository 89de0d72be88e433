"""GAS in plain PyTorch and NumPy, on the tiny problem cut after its first block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.by_hand import samples
from lanterne.learn import normal
from lanterne.learn.moments import RIDGE
from lanterne.rng import fold
from lanterne.testing import Problem
from lanterne.testing.problems import tiny_mlp

EDGE, WIDTH, CLASSES, BATCH = tiny_mlp().edges[1], 5, 3, 4


class Hand:
    """GAS in plain PyTorch and NumPy, from the order of arrivals alone: no moments but those of all rows so far."""

    def __init__(self, problem: Problem, options: dict[str, Any]) -> None:
        self.problem, self.o = problem, options
        self.client, self.server = problem.w[:EDGE], problem.w[EDGE:]
        self.velocity: Tensor | float = 0.0
        self.version = self.steps = 0
        self.models: list[tuple[float, Tensor]] = []
        self.buffer: list[tuple[Tensor, Tensor]] = []
        self.rows: list[tuple[np.ndarray[Any, Any], int, float]] = []
        self.labels: dict[int, list[int]] = {c: [] for c in range(len(problem.rows))}
        self.batch = dict.fromkeys(self.labels, 0)
        self.visit = {c: self.begin() for c in self.labels}
        self.weights = samples(problem) if options["weights"] == "samples" else dict.fromkeys(self.labels, 1.0)

    def begin(self) -> dict[str, Any]:
        return {"w": self.client, "version": self.version, "done": 0, "velocity": 0.0}

    def layers(self, server: Tensor) -> tuple[nn.Sequential, list[nn.Parameter]]:
        net = self.problem.stack.load(torch.cat([self.client, server]))
        upper = nn.Sequential(*list(net)[2:])
        return upper, list(upper.parameters())

    def rate(self, version: int) -> float:
        return self.o["lr"] / math.sqrt(version + 1) if self.o["decay"] else self.o["lr"]

    def upload(self, c: int) -> None:
        """An upload has come: answer it, have the client step, perhaps step."""
        visit, problem = self.visit[c], self.problem
        (rows,) = problem.streams.rows(c, range(self.batch[c], self.batch[c] + 1))
        self.batch[c] += 1
        visit["done"] += 1
        x, y = problem.data.x[rows], problem.data.y[rows]
        net = problem.stack.load(torch.cat([visit["w"], self.server]))
        lower = nn.Sequential(*list(net)[:2])
        smashed = lower(x)
        self.labels[c] += y.tolist()
        upper, _ = self.layers(self.server)
        held = smashed.detach().requires_grad_()
        output = upper(held)
        if self.o["logit_adjustment"]:
            counts = np.bincount(self.labels[c], minlength=CLASSES)
            with np.errstate(divide="ignore"):
                output = output + torch.from_numpy(np.log(counts / counts.sum()))
        (up,) = torch.autograd.grad(nn.functional.cross_entropy(output, y), held)
        found = torch.autograd.grad(smashed, list(lower.parameters()), up)
        g = torch.cat([v.reshape(-1) for v in found])
        visit["velocity"] = self.o["momentum"] * visit["velocity"] + g
        visit["w"] = visit["w"] - self.rate(visit["version"]) * visit["velocity"]
        n = visit["version"] * self.o["local_steps"] + visit["done"]
        s = {"linear": n, "constant": 1.0, "polynomial": n ** self.o["growth"], "exponential": math.exp(2.0 * n)}
        self.rows += [
            (a, int(label), s[self.o["weighting"]]) for a, label in zip(held.detach().numpy(), y, strict=True)
        ]
        self.buffer.append((held.detach(), y))
        if len(self.buffer) == self.o["activation_buffer"]:
            self.step()

    def step(self) -> None:
        x, y = (torch.cat([pair[i] for pair in self.buffer]) for i in (0, 1))
        wanted = BATCH if self.o["generated"] is None else self.o["generated"]
        noise = normal(torch.tensor(fold(0, "server", 0, self.steps)), (CLASSES, wanted, WIDTH)).numpy()
        for label in range(CLASSES):
            mine = [(a, s) for a, of, s in self.rows if of == label]
            lacks = wanted - int((y == label).sum())
            if not mine or lacks <= 0:
                continue
            values, weights = np.array([a for a, _ in mine]), np.array([s for _, s in mine])
            centre = np.average(values, axis=0, weights=weights)
            covariance = np.cov(values.T, aweights=weights, ddof=0)
            full = np.linalg.cholesky(covariance + RIDGE * np.eye(WIDTH))
            root = full if self.o["covariance"] == "full" else np.diag(np.sqrt(np.diagonal(covariance)))
            made = centre + noise[label, wanted - lacks :] @ root.T
            x = torch.cat([x, torch.from_numpy(made)])
            y = torch.cat([y, torch.full((lacks,), label)])
        upper, parameters = self.layers(self.server)
        found = torch.autograd.grad(nn.functional.cross_entropy(upper(x), y), parameters)
        self.velocity = self.o["momentum"] * self.velocity + torch.cat([v.reshape(-1) for v in found])
        self.server = self.server - self.rate(self.version) * self.velocity
        self.buffer, self.steps = [], self.steps + 1

    def model(self, c: int) -> None:
        self.models.append((self.weights[c], self.visit[c]["w"]))
        if len(self.models) == self.o["model_buffer"]:
            self.client = sum(k * w for k, w in self.models) / sum(k for k, _ in self.models)
            self.models, self.version = [], self.version + 1
        self.visit[c] = self.begin()


def event_loop(problem: Problem, timeline: list[dict[str, Any]], options: dict[str, Any], versions: int) -> Tensor:
    """Both halves after so many versions, in the order in which things arrived."""
    hand = Hand(problem, options)
    for r in timeline:
        if hand.version == versions:
            break
        if r["handler"] == "forward":
            hand.upload(r["client"])
        elif r["handler"] == "backward" and hand.visit[r["client"]]["done"] == options["local_steps"]:
            hand.model(r["client"])
    return torch.cat([hand.client, hand.server])
