"""Speeds and bandwidths follow their laws, client by client, and a larger fleet begins with a smaller one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kstest, norm, pareto

from lanterne.fleet import Classes, Fleet, preset

N = 4000


def columns(name: str, seed: int = 1, **parameters: float) -> dict[str, np.ndarray]:
    fleet = preset(name, **parameters).build(N, seed, 4)
    assert isinstance(fleet.devices, Classes)
    return fleet.devices.columns


def fits(values: np.ndarray, law: Callable[[np.ndarray], np.ndarray]) -> bool:
    return bool(kstest(values, law).pvalue > 1e-3)


def test_lognormal_speeds_are_lognormal_around_their_median() -> None:
    found = columns("lognormal", flops=3e9, sigma=0.7)
    assert list(found) == ["flops"]
    z = np.log(found["flops"] / 3e9) / 0.7
    assert fits(z, norm.cdf)
    assert not fits(z, norm(0.0, 1.3).cdf)
    assert not fits(np.log(found["flops"] / 2.8e9) / 0.7, norm.cdf)


def test_lognormal_links_have_one_factor_for_both_directions_and_another_than_the_speed() -> None:
    found = columns("lognormal", down=8e6, up=2e6, sigma=0.7, link_sigma=0.4)
    z = np.log(found["down"] / 8e6) / 0.4
    assert fits(z, norm.cdf)
    assert found["down"] == pytest.approx(4 * found["up"])
    assert abs(np.corrcoef(z, np.log(found["flops"]))[0, 1]) < 4 / math.sqrt(N)


def test_one_lognormal_device_in_a_hundred_is_four_times_slower() -> None:
    slower = columns("lognormal")["flops"] < 1e9 / 4
    assert abs(slower.mean() - norm.cdf(-math.log(4) / 0.6)) < 4 * math.sqrt(0.01 / N)
    assert norm.cdf(-math.log(4) / 0.6) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.5])
def test_pareto_slowness_is_pareto(alpha: float) -> None:
    slowness = 2e9 / columns("pareto", flops=2e9, alpha=alpha, slowest=math.inf)["flops"]
    assert slowness.min() >= 1.0
    assert fits(slowness, pareto(alpha).cdf)
    assert not fits(slowness, pareto(1.2 * alpha).cdf)


def test_nobody_is_slower_than_the_slowest() -> None:
    found = columns("pareto", slowest=20.0, link_alpha=0.5)
    free = columns("pareto", slowest=math.inf, link_alpha=0.5)
    for name in ("flops", "down", "up"):
        most = free[name].max()
        assert found[name] == pytest.approx(np.maximum(free[name], {"flops": 1e9, "down": 1e7, "up": 5e6}[name] / 20))
        assert most / found[name].min() == pytest.approx(20.0, rel=0.01)
    assert (found["flops"] == 1e9 / 20).mean() == pytest.approx(1 / 20, abs=0.015)  # P[X > 20]


def test_no_spread_makes_all_alike() -> None:
    for name, none in (("lognormal", {"sigma": 0.0}), ("pareto", {"alpha": math.inf})):
        assert set(columns(name, flops=7.0, **none)["flops"].tolist()) == {7.0}


@pytest.mark.parametrize(
    ("name", "parameters"), [("lognormal", {"link_sigma": 0.5}), ("pareto", {"link_alpha": 2.0}), ("phones", {})]
)
def test_a_larger_fleet_begins_with_a_smaller_one(name: str, parameters: dict[str, float]) -> None:
    small, large = (preset(name, **parameters).build(n, 5, 4) for n in (50, 5000))
    assert [small.devices[c] for c in range(50)] == [large.devices[c] for c in range(50)]
    other = preset(name, **parameters).build(50, 6, 4)
    assert all(small.devices[c] != other.devices[c] for c in range(50))


def test_those_who_need_twice_the_median_are_not_waited_for_by_default() -> None:
    """Nobody is called a straggler where nobody is of another kind."""
    fleet = preset("pareto").build(10, 1, 4)
    assert isinstance(fleet, Fleet)
    assert list(fleet.members) == ["device"]
