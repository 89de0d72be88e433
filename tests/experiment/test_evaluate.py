"""How models are judged where clients have models of their own."""

from __future__ import annotations

import pytest
import torch

from lanterne.experiment import parse_config, prepare


def test_several_models_are_judged_by_their_mean() -> None:
    setup = prepare(parse_config({"data": {"clients": 6}, "model": {"name": "salf-mlp"}, "algorithms": {"psl": {}}}))
    world, executor = setup.world(1), setup.executor()
    judge = setup.judge(world, executor)
    models = torch.stack([world.w, world.w.roll(1), world.w * 0])
    each, together = [judge(w) for w in models], judge(models)
    for name in ("accuracy", "loss"):
        assert together[name] == pytest.approx(sum(one[name] for one in each) / 3, rel=1e-12)
        for tier, value in together[f"{name}_by_class"].items():
            assert value == pytest.approx(sum(one[f"{name}_by_class"][tier] for one in each) / 3, rel=1e-9)
    assert judge(world.w[None]) == judge(world.w)
    executor.close()
