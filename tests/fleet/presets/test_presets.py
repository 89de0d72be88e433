"""Named fleets: exact shares, who straggles follows from the seed, and every wrong parameter is named."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.jobs import DRAW, steps
from lanterne.errors import FleetError
from lanterne.fleet import (
    PRESETS,
    Draw,
    ExponentialLayers,
    Fleet,
    Loaded,
    Server,
    Slower,
    SometimesSlower,
    UniformDepth,
    preset,
)
from lanterne.rng import generator

LAYERS = 4
WITH_STRAGGLERS = ["stragglers", "uniform-depth"]
#: Whose numbers are the user's, to the bit.
GIVEN = ["uniform", "stragglers", "exponential-layers", "uniform-depth"]
#: What builds without a file.
OFFLINE = [name for name in PRESETS if name != "fedscale"]


def stragglers(fleet: Fleet) -> set[int]:
    return {c for c in range(len(fleet)) if fleet.devices[c].tier == "straggler"}


@pytest.mark.parametrize("name", WITH_STRAGGLERS)
@given(clients=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_the_share_of_stragglers_is_exact(name: str, clients: int, share: float, seed: int) -> None:
    who = stragglers(preset(name, share=share).build(clients, seed, LAYERS))
    assert len(who) == round(share * clients)
    assert abs(len(who) / clients - share) <= 0.5 / clients + 1e-12


@pytest.mark.parametrize("name", WITH_STRAGGLERS)
def test_who_straggles_follows_from_the_seed(name: str) -> None:
    build = preset(name, share=0.5).build
    who = stragglers(build(100, 1, LAYERS))
    assert stragglers(build(100, 1, LAYERS)) == who
    assert stragglers(build(100, 2, LAYERS)) != who
    assert stragglers(preset(name, share=0.5, latency=0.3).build(100, 1, LAYERS)) == who  # and from nothing else
    often = np.zeros(20)
    for seed in range(400):
        often[list(stragglers(build(20, seed, LAYERS)))] += 1
    assert (np.abs(often / 400 - 0.5) < 4 * math.sqrt(0.25 / 400)).all()  # everybody as often as anybody


@pytest.mark.parametrize("name", WITH_STRAGGLERS)
def test_who_straggles_is_who_has_always_straggled(name: str) -> None:
    """Published figures hang on it: the first of a permutation that is drawn under this key, and twelve by name."""
    for clients, share, seed in ((30, 0.9, 1), (7, 0.5, 2), (1000, 0.3, 3)):
        who = generator(seed, "stragglers").permutation(clients)[: round(share * clients)]
        assert stragglers(preset(name, share=share).build(clients, seed, LAYERS)) == set(who.tolist())
    assert sorted(stragglers(preset(name, share=0.5).build(12, 1, LAYERS))) == [2, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("name", WITH_STRAGGLERS)
def test_a_larger_share_adds_stragglers_and_takes_none_away(name: str) -> None:
    """Points of a sweep over the share differ by who joined, not by who was drawn."""
    sets = [stragglers(preset(name, share=s).build(50, 3, LAYERS)) for s in (0.0, 0.3, 0.6, 1.0)]
    assert sets[0] == set()
    assert sets[0] < sets[1] < sets[2] < sets[3] == set(range(50))


@pytest.mark.parametrize("name", OFFLINE)
def test_every_preset_builds_from_its_defaults(name: str) -> None:
    fleet = preset(name).build(7, 0, LAYERS)
    assert len(fleet) == 7
    assert fleet.always_available
    assert fleet.seed == preset(name).build(9, 0, LAYERS).seed != preset(name).build(7, 1, LAYERS).seed
    for c in range(7):
        assert fleet.devices[c].whole(steps(LAYERS), Draw(fleet.seed, c, 0, 0)) >= 0


def test_numbers_reach_the_devices_and_the_server() -> None:
    numbers = {
        "flops": 5.0, "memory": 6.0, "down": 7.0, "up": 8.0,
        "latency": 0.9, "overhead": 0.1, "dropout": 0.2, "failure": 0.3,
    }  # fmt: skip
    for name in OFFLINE:
        given = numbers if name in GIVEN else {n: v for n, v in numbers.items() if n not in ("flops", "down", "up")}
        kind = preset(name, **given, server_flops=11.0, machines=2, server_memory=12.0, detection=0.4, rejoin=0.5)
        fleet = kind.build(5, 0, LAYERS)
        for c in range(5):
            assert {n: getattr(fleet.devices[c], n) for n in given} == given
        assert (fleet.server, fleet.detection, fleet.rejoin) == (Server(11.0, 2, 12.0), 0.4, 0.5)
        every = {f.name for f in dataclasses.fields(kind)}
        assert set(given) < every


def test_paces_are_those_of_the_parameters() -> None:
    def paces(name: str, **parameters: Any) -> list[object]:
        fleet = preset(name, **parameters).build(4, 0, LAYERS)
        return [fleet.devices[c].pace for c in sorted(range(4), key=lambda c: fleet.devices[c].tier)]

    assert paces("uniform") == [None] * 4
    assert paces("stragglers", share=0.5, slowdown=4.0) == [None, None, Loaded(4.0), Loaded(4.0)]
    assert paces("stragglers", share=0.5, slowdown=4, load="constant") == [None, None, Slower(4), Slower(4)]
    assert (
        paces("stragglers", share=0.5, slowdown=4.0, load="constant", redraw="round") == [SometimesSlower(0.5, 4.0)] * 4
    )
    assert paces("exponential-layers", mean=2.0) == [ExponentialLayers(2.0)] * 4
    fast, slow = UniformDepth(3.0, LAYERS, LAYERS), UniformDepth(3.0, 1, LAYERS)
    assert paces("uniform-depth", share=0.5, within=3.0) == [fast, fast, slow, slow]
    assert paces("uniform-depth", share=1.0, maximum=3, minimum=0) == [UniformDepth(1.0, 0, 3)] * 4
    assert preset("uniform-depth").build(1, 0, LAYERS).devices[0].whole(steps(LAYERS), DRAW) > 0


def test_those_who_are_redrawn_each_round_are_nobodys_stragglers() -> None:
    """No class of devices straggles, so that the default deadline counts everybody in."""
    assert stragglers(preset("stragglers", redraw="round", load="constant").build(20, 0, LAYERS)) == set()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("straglers", {}, r"no fleet called 'straglers', and no file of that name\. Did you mean 'stragglers'"),
        (
            "xyz",
            {},
            "Choose from: exponential-layers, fedscale, lognormal, pareto, phones, stragglers, uniform, uniform-depth",
        ),
        ("stragglers", {"slow_down": 3}, r"'stragglers' has no parameter 'slow_down'\. Did you mean 'slowdown'"),
        ("uniform", {"share": 0.5}, "'uniform' has no parameter 'share'"),
        ("uniform", {"name": "x"}, "'uniform' has no parameter 'name'"),
        ("stragglers", {"share": "half"}, "share of the fleet 'stragglers' is 'half'. Give a number"),
        ("stragglers", {"share": True}, "share of the fleet 'stragglers' is True. Give a number"),
        ("stragglers", {"share": None}, "share of the fleet 'stragglers' is None. Give a number"),
        ("stragglers", {"load": "heavy"}, "load of the fleet 'stragglers' is 'heavy'. Choose from: constant, varying"),
        ("stragglers", {"redraw": "rounds"}, "redraw of the fleet 'stragglers' is 'rounds'. Did you mean 'round'"),
        ("stragglers", {"redraw": 3}, "redraw of the fleet 'stragglers' is 3"),
        ("uniform", {"machines": 1.5}, "machines of the fleet 'uniform' is 1.5. Give a whole number"),
        ("uniform-depth", {"minimum": 1.5}, "minimum of the fleet 'uniform-depth' is 1.5. Give a whole number"),
        ("lognormal", {"sigma": "wide"}, "sigma of the fleet 'lognormal' is 'wide'. Give a number"),
        ("pareto", {"slope": 2}, "'pareto' has no parameter 'slope'"),
        ("phones", {"workload": "femnst"}, "workload of the fleet 'phones' is 'femnst'. Did you mean 'femnist'"),
        ("phones", {"flops": 1e9}, "'phones' has no parameter 'flops'"),
        ("fedscale", {"capacity": 3}, "capacity of the fleet 'fedscale' is 3. Give text"),
        ("uniform-depth", {"maximum": "all"}, "maximum of the fleet 'uniform-depth' is 'all'. Give a number"),
    ],
)
def test_wrong_names_and_kinds_are_refused_at_once(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        preset(name, **parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("stragglers", {"share": 1.5}, r"share of stragglers is 1\.5\. Give a number from 0 to 1 \(0\.9 is 90 %\)"),
        ("stragglers", {"share": 90}, "share of stragglers is 90"),
        ("stragglers", {"share": math.nan}, "share of stragglers is nan"),
        ("stragglers", {"slowdown": 0.5}, r"slowdown is 0\.5: how many times slower.* at least 1"),
        ("stragglers", {"slowdown": math.inf}, "slowdown is inf"),
        ("stragglers", {"slowdown": math.nan}, "slowdown is nan"),
        ("stragglers", {"redraw": "round"}, "redraw = 'round' draws .* Set load = 'constant' with it"),
        ("exponential-layers", {"mean": 0}, "mean is 0 seconds per layer. Give a number above 0"),
        ("exponential-layers", {"mean": math.inf}, "mean is inf"),
        ("uniform-depth", {"share": -0.1}, r"share of stragglers is -0\.1"),
        ("uniform-depth", {"within": 0}, "within is 0 seconds. Give a number above 0"),
        ("uniform-depth", {"within": math.inf}, "within is inf"),
        ("uniform-depth", {"minimum": 5}, "minimum is 5 layers, but the model has 4. Give a number from 0 to 4"),
        ("uniform-depth", {"minimum": -1}, "minimum is -1 layers"),
        ("uniform-depth", {"maximum": 5}, "maximum is 5 layers. Give a number from minimum = 1 to 4"),
        ("uniform-depth", {"minimum": 3, "maximum": 2}, "maximum is 2 layers. Give a number from minimum = 3 to 4"),
        ("lognormal", {"sigma": -1.0}, r"sigma is -1\.0, the standard deviation of a logarithm\. Give .* from 0"),
        ("lognormal", {"link_sigma": math.nan}, "link_sigma is nan"),
        ("lognormal", {"sigma": math.inf}, "sigma is inf"),
        ("lognormal", {"flops": 0}, "flops of a device is 0"),
        ("pareto", {"alpha": 0}, "alpha is 0, a tail index. Give a number above 0"),
        ("pareto", {"link_alpha": math.nan}, "link_alpha is nan"),
        ("pareto", {"slowest": 0.5}, r"slowest is 0\.5: how many times slower.* at least 1"),
        ("phones", {"memory": -1}, "memory of a device is -1"),
        ("fedscale", {}, "'fedscale' needs FedScale's file of capacities. Set capacity"),
        ("uniform", {"flops": 0}, "flops of a device is 0"),
        ("uniform", {"dropout": 2}, "dropout of a device is 2"),
        ("uniform", {"server_flops": 0}, "server's flops are 0"),
        ("uniform", {"machines": 0}, "server has 0 machines"),
        ("uniform", {"server_memory": -1}, "server's memory is -1 bytes"),
        ("uniform", {"detection": -1}, "detection of the fleet is -1"),
    ],
)
def test_impossible_values_are_refused_when_the_fleet_is_built(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(FleetError, match=message):
        preset(name, **parameters).build(10, 0, LAYERS)
