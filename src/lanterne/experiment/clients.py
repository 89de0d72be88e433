"""Who takes part: how many clients there are, how many of them a round invites, and the devices of a fleet file."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sized
from pathlib import Path

from lanterne.errors import ConfigError, FleetError, nearest
from lanterne.experiment.config import Config
from lanterne.experiment.parameters import is_file
from lanterne.experiment.tables import bare, shown
from lanterne.fleet import PRESETS, Fleet, Server, read_table
from lanterne.split import DEFAULT

#: How many clients there are where nothing says how many.
CLIENTS = 30


def clients_asked(config: Config, partition: Sized | None) -> int | None:
    """How many clients are asked for; None where neither the configuration nor a partition says it.

    Args:
        config: for `data.clients`.
        partition: the rows of each client, where they were brought.

    Raises:
        ConfigError: for two different numbers.
    """
    asked = config.data.clients
    if partition is None or asked == len(partition):
        return asked
    if asked is not None:
        raise ConfigError(
            f"data.clients is {asked}, but the partition that was brought has {len(partition)} parts, one a client. "
            "Leave the number out."
        )
    return len(partition)


def read_fleet(config: Config, clients: int | None) -> Fleet | None:
    """The fleet of the file that a configuration names; None where it names a preset.

    It is read once for all seeds, so that a race which has begun does not see a file that changes.

    Args:
        config: for the path, and what is set of the fleet as a whole.
        clients: how many there are; None takes as many as there are rows.

    Raises:
        FleetError: for a file that is missing, cannot be read, or has fewer rows than there are clients.
    """
    kind, given = config.fleet.kind, config.fleet.parameters
    if not is_file(kind):
        return None
    if not Path(kind).exists():
        raise FleetError(
            f"There is no fleet file {kind}. Give the path of a CSV or Parquet file, or a preset: {', '.join(PRESETS)}."
        )
    server = Server(given.get("server_flops", math.inf), given.get("machines"), given.get("server_memory", math.inf))
    return read_table(kind, clients, 0, server, given.get("detection", 0.0), given.get("rejoin", 0.0))


def check_cohorts(config: Config, clients: int, own: Container[str] = ()) -> None:
    """Refuse a cohort that is larger than the population.

    Args:
        config: for the cohort of all competitors and that of each.
        clients: how many there are.
        own: labels of competitors that are the caller's own objects: their tables are not checked.

    Raises:
        ConfigError: for the first one that is too large.
    """
    cohorts = {"training.cohort": config.training.cohort}
    for label, entry in config.algorithms.items():
        if label not in own:
            cohorts[f"algorithms.{bare(label)}.cohort"] = entry.parameters.get("cohort")
    for where, cohort in cohorts.items():
        if cohort is not None and cohort > clients:
            raise ConfigError(
                f"{where} is {cohort}, but there are {clients} clients, so no round can invite as many. "
                f"Give at most {clients}, leave it out to invite all, or ask for more clients."
            )


def check_classes(config: Config, fleet: Fleet) -> None:
    """Refuse a cut for a class of devices that the fleet does not have.

    Args:
        config: for the cuts of each competitor.
        fleet: that of a seed.

    Raises:
        ConfigError: for the first class that is not there.
    """
    for label, entry in config.algorithms.items():
        cut = entry.parameters.get("cut")
        for name in cut if isinstance(cut, Mapping) else ():
            if name != DEFAULT and name not in fleet.classes:
                raise ConfigError(
                    f"algorithms.{bare(label)}.cut has a cut for the class {shown(name)}, but the devices of this "
                    f"fleet are of other classes. {nearest(name, [*fleet.classes, DEFAULT])}"
                )
