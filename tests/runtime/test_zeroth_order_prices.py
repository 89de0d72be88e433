"""Forward passes without a backward pass: what is done is what they are priced at, and nothing is held for later."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lanterne.learn import Task
from lanterne.learn.zeroth_order import Probes, estimate, group_of
from lanterne.models import full
from lanterne.models.zoo import build
from lanterne.protocol import Pass
from lanterne.runtime.pricing import Pricing


@pytest.mark.parametrize(
    ("difference", "base", "passes"), [("forward", False, 3), ("central", False, 4), ("central", True, 5)]
)
def test_h4_an_estimate_costs_its_forward_passes(difference: Any, base: bool, passes: int) -> None:
    """H4: 1 + P or 2P passes, in FLOPs (1 + P)/3 of a step with a backward pass of twice a forward's."""
    stack = build("resnet-small", (1, 8, 8), 10)
    g = torch.Generator().manual_seed(0)
    w, x, y = torch.randn(stack.size, generator=g) / 10, torch.randn(4, 1, 8, 8, generator=g), torch.arange(4)
    group, probes = group_of(Task(stack), full(stack)), Probes("rademacher", difference, 2)
    assert probes.evaluations(base=base) == passes
    with FlopCounterMode(display=False) as counter:
        estimate(group, w, x, y, torch.tensor(1), probes, base=base)
    pricing = Pricing({}, group.segments[0].task, 4, w.dtype, x, y)
    asked = [Pass("forward", 0, len(stack))] * passes
    assert counter.get_total_flops() == sum(pricing.work(asked).flops)
    memory = pricing.memory(asked, kept=7)
    outputs = [0, *(cost.output for cost in pricing.costs())]
    assert memory.static == w.nbytes + 7
    assert memory.working == 4 * max(a + b for a, b in pairwise(outputs))
    assert pricing.kept(asked) == 0
