"""Who takes part: the number of clients, the cohort, and what is set beside a fleet file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lanterne
from lanterne.algorithms import FedAvg
from lanterne.errors import ConfigError, FleetError
from lanterne.experiment import Objects, Prepared, parse_config, prepare, read_config, run_experiment
from lanterne.experiment.parameters import fleet_wide
from lanterne.fleet import FLEET_WIDE, PRESETS, Device, Fleet, Server

WHOLE = {"server_flops": 1e12, "machines": 2, "server_memory": 1e9, "detection": 0.25, "rejoin": 3}


def ready(fleet: Any = None, clients: int | None = None, objects: Objects | None = None, **changes: Any) -> Prepared:
    data = {"batch": 8, "partition": "iid", **({} if clients is None else {"clients": clients})}
    mapping = {"data": data, "model": {"name": "salf-mlp"}, "algorithms": ["fedavg"], **changes}
    return prepare(parse_config({**mapping, **({} if fleet is None else {"fleet": fleet})}), objects)


@pytest.fixture(params=["csv", "parquet"])
def phones(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fleet file of seven devices."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"phones.{request.param}"
    if request.param == "csv":
        path.write_text("flops\n" + "1e9\n" * 6 + "2e9\n")
    else:
        pq.write_table(pa.table({"flops": [1e9] * 6 + [2e9]}), path)
    return str(path)


# ------------------------------------------------------------------------------------------------------ how many
def test_a_fleet_file_has_as_many_clients_as_rows(phones: str) -> None:
    prepared = ready({"kind": phones})
    world = prepared.world(1)
    assert prepared.config.data.clients == prepared.clients == len(world.fleet) == len(world.rows) == 7


def test_fewer_clients_than_rows_take_the_first_rows(phones: str) -> None:
    prepared = ready({"kind": phones}, clients=6)
    assert {d.flops for d in prepared.world(1).fleet.devices} == {1e9}
    assert prepared.config.data.clients == 6


def test_more_clients_than_rows_are_refused(phones: str) -> None:
    with pytest.raises(FleetError, match=r"describes 7 devices, but there are 8 clients.*at most 7.*left out"):
        ready({"kind": phones}, clients=8)


def test_without_a_file_there_are_thirty() -> None:
    assert ready().clients == ready({"kind": "uniform"}).config.data.clients == 30


def test_the_number_is_written_down(phones: str, tmp_path: Path) -> None:
    run_experiment(ready({"kind": phones}, rounds=1), tmp_path / "run")
    assert read_config(tmp_path / "run" / "config.toml").data.clients == 7


def test_from_python_the_number_follows_from_what_is_brought(phones: str) -> None:
    fleet, parts = Fleet([Device(flops=1e9)] * 3), [np.arange(c, 60, 5) for c in range(5)]
    assert ready(objects=Objects(fleet=fleet)).clients == 3
    assert ready(objects=Objects(partition=parts)).clients == 5
    assert len(ready({"kind": phones}, objects=Objects(partition=parts)).world(1).fleet) == 5
    with pytest.raises(FleetError, match="3 devices, but the data is partitioned over 5 clients"):
        ready(objects=Objects(fleet=fleet, partition=parts))
    with pytest.raises(FleetError, match="3 devices, but the data is partitioned over 4 clients"):
        ready(clients=4, objects=Objects(fleet=fleet))
    with pytest.raises(ConfigError, match=r"data\.clients is 4, but the partition that was brought has 5 parts"):
        ready(clients=4, objects=Objects(partition=parts))
    with pytest.raises(ConfigError, match=r"data\.clients is 0, but has to be at least 1"):
        lanterne.run(["fedavg"], fleet=fleet, clients=0)
    assert len(lanterne.run(["fedavg"], fleet=phones, model="salf-mlp", rounds=1).rows) == 2


# ------------------------------------------------------------------------------------------------------ cohorts
def test_a_cohort_is_at_most_everybody(phones: str) -> None:
    assert ready(clients=5, training={"cohort": 5}).config.training.cohort == 5
    repair = r"Give at most 5, leave it out to invite all, or ask for more clients\."
    with pytest.raises(ConfigError, match=rf"^training\.cohort is 6, but there are 5 clients.*{repair}"):
        ready(clients=5, training={"cohort": 6})
    with pytest.raises(ConfigError, match=r"^algorithms\.mine\.cohort is 6, but there are 5 clients"):
        ready(clients=5, algorithms={"mine": {"algorithm": "salf", "cohort": 6}})
    with pytest.raises(ConfigError, match=r"training\.cohort is 8, but there are 7 clients"):
        ready({"kind": phones}, training={"cohort": 8})
    with pytest.raises(ConfigError, match=r"training\.cohort is 31, but there are 30 clients"):
        ready(training={"cohort": 31})


def test_what_own_algorithms_call_a_cohort_is_their_own_affair() -> None:
    config = {"data": {"clients": 5}, "model": {"name": "salf-mlp"}, "algorithms": {"mine": {"cohort": 6}}}
    objects = Objects(algorithms={"mine": FedAvg})
    assert prepare(parse_config(config, objects.algorithms), objects).clients == 5


# ------------------------------------------------------------------------------------------------------ beside a file
def test_what_is_set_of_the_whole_fleet_reaches_it(phones: str) -> None:
    """The wrong variant drops it on the way: every number differs from its default."""
    prepared = ready({"kind": phones, **WHOLE})
    for seed in (1, 2):
        fleet = prepared.world(seed).fleet
        assert (fleet.server, fleet.detection, fleet.rejoin) == (Server(1e12, 2, 1e9), 0.25, 3)
        assert (fleet.server, fleet.detection, fleet.rejoin) != (Server(), 0.0, 0.0)
    plain = ready({"kind": phones}).world(1).fleet
    assert (plain.server, plain.detection, plain.rejoin) == (Server(), 0.0, 0.0)


def test_a_preset_and_a_file_set_the_whole_fleet_alike(phones: str) -> None:
    file, named = (ready({"kind": kind, **WHOLE}, clients=7).world(3).fleet for kind in (phones, "uniform"))
    assert (file.server, file.detection, file.rejoin) == (named.server, named.detection, named.rejoin)
    assert file.seed == named.seed


def test_each_seed_has_its_own_chances_in_a_fleet_from_a_file(phones: str) -> None:
    prepared = ready({"kind": phones}, seeds=[1, 2])
    assert prepared.world(1).fleet.seed == prepared.world(1).fleet.seed != prepared.world(2).fleet.seed


def test_a_file_that_changes_while_a_race_goes_on_is_not_seen(phones: str) -> None:
    prepared = ready({"kind": phones}, seeds=[1, 2])
    Path(phones).unlink()
    assert len(prepared.world(2).fleet) == 7


def test_lost_devices_of_a_file_are_noticed_late_and_come_back(tmp_path: Path) -> None:
    """End to end: every request is lost, so a round lasts until that is noticed, and the next waits for a return."""
    path = tmp_path / "weak.csv"
    path.write_text("flops,dropout\n" + "1e9,1\n" * 3)
    ends = {}
    for detection, rejoin in ((0.0, 0.0), (2.0, 0.0), (2.0, 10.0)):
        out = tmp_path / f"{detection}-{rejoin}"
        fleet = {"kind": str(path), "detection": detection, "rejoin": rejoin}
        run_experiment(ready(fleet, rounds=2), out)
        lines = (out / "cells" / "fedavg-seed1" / "rows.jsonl").read_text().splitlines()
        ends[detection, rejoin] = [json.loads(line)["virtual_seconds"] for line in lines[1:]]
    assert ends[0.0, 0.0][0] < 1
    assert ends[2.0, 0.0][0] == pytest.approx(ends[0.0, 0.0][0] + 2)
    assert ends[2.0, 10.0][1] > 10 > ends[2.0, 0.0][1]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"share": 0.5}, r"fleet\.share: the fleet is the file .*Leave it out; beside a file there are server_flops"),
    ({"dropout": 0.5}, r"fleet\.dropout: the fleet is the file .*write it into the file as a column"),
    ({"tier": "a"}, r"fleet\.tier: .*write it into the file as a column"),
    ({"machine": 2}, r"fleet\.machine: the fleet is the file .*Did you mean 'machines'\?"),
    ({"rejon": 2}, r"fleet\.rejon: .*Did you mean 'rejoin'\?"),
    ({"server": 2}, r"fleet\.server: .*Did you mean 'server_flops'\?"),
    ({"machines": 2.0}, r"fleet\.machines is 2\.0, but has to be a whole number"),
    ({"machines": True}, r"fleet\.machines is true, but has to be a whole number"),
    ({"machines": 0}, r"fleet\.machines: The server has 0 machines\. Give 1 or more"),
    ({"rejoin": -1}, r"fleet\.rejoin: rejoin of the fleet is -1 seconds"),
    ({"rejoin": math.inf}, r"fleet\.rejoin: rejoin of the fleet is inf seconds"),
    ({"detection": "soon"}, r"fleet\.detection is 'soon', but has to be a number"),
    ({"detection": [1]}, r"fleet\.detection is \[1\], but has to be a number"),
    ({"server_flops": math.nan}, r"fleet\.server_flops is nan"),
    ({"server_memory": 0}, r"fleet\.server_memory: The server's memory is 0 bytes\. Give a number above 0, or leave"),
    ({"server_memory": "8 GB"}, r"fleet\.server_memory is '8 GB', but has to be a number"),
    ({"server_flops": 0}, r"fleet\.server_flops: The server's flops are 0\. Give a number above 0"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_cannot_be_set_beside_a_file_is_refused_with_its_repair(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        parse_config({"algorithms": ["salf"], "fleet": {"kind": "phones.csv", **given}})
    assert "\n" not in str(caught.value)


def test_what_can_be_set_beside_a_file_is_what_every_preset_has() -> None:
    assert tuple(fleet_wide()) == FLEET_WIDE == tuple(WHOLE)
    for name in PRESETS:
        needed = {"capacity": "phones.pickle"} if name == "fedscale" else {}
        config = parse_config({"algorithms": ["salf"], "fleet": {"kind": name, **needed, **WHOLE}})
        assert config.fleet.parameters == needed | WHOLE
