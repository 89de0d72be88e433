"""An experiment as data: frozen, validated models, read from TOML and written to it.

    rounds = 60
    seeds = [1, 2, 3]

    [training]
    lr = 0.1

    [fleet]
    kind = "stragglers"
    share = 0.9

    [algorithms.salf]
    rule = "paper"

Paths in it are relative to the directory in which lanterne is called; a run that is resumed goes by the one in which it
began.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lanterne.algorithms import ALGORITHMS
from lanterne.errors import ConfigError, ModelError, nearest
from lanterne.experiment.mistakes import mistake
from lanterne.experiment.parameters import (
    algorithm_error,
    check_algorithm,
    check_deadline,
    check_fleet,
    make_algorithm,
    parameters_of,
    quantile,
)
from lanterne.experiment.tables import competitor, competitors, read_toml, shown, with_overrides
from lanterne.fleet import PRESETS
from lanterne.models.zoo import DEFAULT, check_name

_MOST_THREADS = 8
_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def usable_cores() -> int:
    """The cores that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _gathered(given: object, name: str) -> object:
    """A table whose other keys are parameters; one that is None was not set."""
    if not isinstance(given, Mapping):
        return given
    inner = given.get("parameters", {})
    rest = {key: value for key, value in given.items() if key not in (name, "parameters")}
    both = {**inner, **rest} if isinstance(inner, Mapping) else {"parameters": inner, **rest}
    named = {name: given[name]} if name in given else {}
    return {**named, "parameters": {key: value for key, value in both.items() if value is not None}}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Training(_Table):
    """What every algorithm gets that has a hyperparameter of that name; None leaves the algorithm its own default."""

    lr: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="step size of local SGD")] = None
    local_steps: Annotated[int | None, Field(ge=1, description="batches per client and round")] = None
    momentum: Annotated[float | None, Field(ge=0, lt=1, description="of local SGD")] = None
    cohort: Annotated[int | None, Field(ge=1, description="clients invited per round; all by default")] = None
    deadline: Annotated[
        float | tuple[float, ...] | str | None,
        BeforeValidator(check_deadline),
        Field(
            description="seconds, or one number per round, or a quantile of the fleet's times (q0.5, 50%), "
            "or ADEL-FL's rule with seconds for all rounds (adel:30); by default what non-stragglers need"
        ),
    ] = None


class Data(_Table):
    """What is learned, and how it is spread over the clients."""

    source: Annotated[
        str, Field(min_length=1, description="a bundled data set, a folder, a Parquet file, or a hub id owner/name")
    ] = "digits"
    image: Annotated[str | None, Field(description="column of the images, where it cannot be found")] = None
    label: Annotated[str | None, Field(description="column of the labels, where it cannot be found")] = None
    owner: Annotated[str | None, Field(description="column of who a row comes from, for the partition natural")] = None
    partition: Annotated[
        str, Field(description="how rows are dealt to clients; natural where the data or a column says who owns them")
    ] = "dirichlet:0.3"
    clients: Annotated[
        int | None,
        Field(ge=1, description="how many clients there are; by default as many as a fleet file has rows, else 30"),
    ] = None
    batch: Annotated[int, Field(ge=1, description="rows per local step")] = 32
    augment: Annotated[str | None, Field(description="of training images: crop:4, flip or crop-flip:4")] = None

    @model_validator(mode="before")
    @classmethod
    def _stay_with_their_owners(cls, given: object) -> object:
        owned = isinstance(given, Mapping) and (given.get("owner") or str(given.get("source")).startswith("synthetic:"))
        return {"partition": "natural", **given} if owned and isinstance(given, Mapping) else given


class FleetConfig(_Table):
    """Which devices there are: a preset and its parameters, or a file."""

    kind: Annotated[str, Field(description="a preset, or the path of a .csv or .parquet file")] = "stragglers"
    parameters: Annotated[dict[str, Any], Field(description="of the preset")] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: object) -> object:
        return _gathered(given, "kind")

    @model_validator(mode="after")
    def _check(self) -> FleetConfig:
        check_fleet(self.kind, self.parameters)
        return self


class ModelConfig(_Table):
    """What is trained."""

    name: Annotated[str, Field(description="a model of the zoo, as in resnet18:norm=batch")] = DEFAULT

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            check_name(name)
        except ModelError as error:
            raise ConfigError(f"model.name: {error}") from None
        return name


class Runtime(_Table):
    """How it is computed; of no effect on what is learned, up to rounding."""

    executor: Annotated[Literal["auto", "loop", "batched"], Field(description="auto: by a fixed rule")] = "auto"
    threads: Annotated[
        int, Field(ge=1, description="clients computed at once; by default the usable cores, at most 8")
    ] = Field(default_factory=usable_cores)
    device: Annotated[str, Field(description="cpu, cuda, cuda:1, mps")] = "cpu"
    dtype: Annotated[Literal["float32", "float64"], Field(description="of parameters and samples")] = "float32"

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not _DEVICE.fullmatch(device):
            raise ConfigError(
                f"runtime.device is {shown(device)}, which PyTorch does not know. Write cpu, cuda, cuda:1 or mps."
            )
        return device


class AlgorithmConfig(_Table):
    """One competitor: an algorithm and what differs from its defaults."""

    algorithm: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: object) -> object:
        return _gathered(given, "algorithm")


class Config(_Table):
    """One experiment: every competitor with every seed, on the same data and the same fleet."""

    rounds: Annotated[int, Field(ge=1, description="rounds of each competitor")] = 60
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(strict=False, description="one run for each")
    ] = (1,)
    evaluate_every: Annotated[int, Field(ge=1, description="rounds from one judgement of the model to the next")] = 1
    training: Training = Training()
    data: Data = Data()
    fleet: FleetConfig = FleetConfig()
    model: ModelConfig = ModelConfig()
    runtime: Runtime = Field(default_factory=Runtime)
    algorithms: dict[str, AlgorithmConfig]

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ConfigError("seeds is empty, so nothing would run. Give at least one, as in seeds = [1].")
        twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
        if twice is not None:
            raise ConfigError(
                f"seeds has {twice} twice, which would run the same experiment twice. Name each seed once."
            )
        return seeds

    @field_validator("algorithms", mode="before")
    @classmethod
    def _by_label(cls, given: object) -> object:
        tables = competitors(given)
        if not tables:
            raise ConfigError(f"algorithms is empty, so nothing would run. {nearest('', ALGORITHMS)}")
        return {label: {"algorithm": label, **t} if isinstance(t, Mapping) else t for label, t in tables.items()}

    @field_validator("algorithms")
    @classmethod
    def _known(cls, algorithms: dict[str, AlgorithmConfig], info: ValidationInfo) -> dict[str, AlgorithmConfig]:
        own = (info.context or {}).get("own", ())
        for label, entry in algorithms.items():
            if label not in own:
                check_algorithm(label, entry.algorithm, entry.parameters)
        return algorithms


def parse_config(mapping: Mapping[str, Any], own: Collection[str] = ()) -> Config:
    """An experiment from nested tables.

    Args:
        mapping: as TOML reads it; tables may be left out, `algorithms` may be a list of names.
        own: labels of competitors that are the caller's own objects: their tables are not checked.

    Raises:
        ConfigError: for the first thing that is wrong: where, what, why, and the nearest right one.

    Examples:
        >>> parse_config({"algorithms": ["salf", "drop"], "fleet": {"share": 0.5}}).fleet.parameters
        {'share': 0.5}
    """
    try:
        return Config.model_validate(dict(mapping), context={"own": own})
    except ValidationError as error:
        raise mistake(error, keys=_keys()) from None


def read_config(path: str | Path, own: Collection[str] = ()) -> Config:
    """The experiment that a file describes.

    Args:
        path: a TOML file.
        own: as in `parse_config`.

    Raises:
        ConfigError: for a file that cannot be read, with the line, and for what `parse_config` refuses.
    """
    return parse_config(read_toml(path), own)


def to_toml(config: Config) -> str:
    """The experiment as TOML, from which `parse_config` makes an equal one; what is None is left out.

    Args:
        config: the experiment.

    Examples:
        >>> print(to_toml(parse_config({"algorithms": ["salf"]})).splitlines()[0])
        rounds = 60
    """
    tables = config.model_dump(exclude_none=True)
    tables["seeds"] = list(tables["seeds"])
    if isinstance(config.training.deadline, tuple):
        tables["training"]["deadline"] = list(config.training.deadline)
    tables["fleet"] |= tables["fleet"].pop("parameters")
    for label, table in tables["algorithms"].items():
        name, given = table["algorithm"], table["parameters"]
        tables["algorithms"][label] = given if name == label else {"algorithm": name, **given}
    return tomlkit.dumps({name: value for name, value in tables.items() if value != {}})


def _keys() -> dict[str, list[str]]:
    """The known keys by table, for those who wrote one in the wrong place."""
    tables: tuple[type[BaseModel], ...] = (Training, Data, Runtime)
    known = {table.__name__.lower(): list(table.model_fields) for table in tables}
    known |= {"": list(Config.model_fields), "model": list(ModelConfig.model_fields)}
    known["fleet"] = ["kind", *dict.fromkeys(key for kind in PRESETS.values() for key in parameters_of(kind))]
    known["algorithms.<label>"] = list(
        dict.fromkeys(key for kind in ALGORITHMS.values() for key in parameters_of(kind))
    )
    return known


__all__ = [
    "AlgorithmConfig",
    "Config",
    "Data",
    "FleetConfig",
    "ModelConfig",
    "Runtime",
    "Training",
    "algorithm_error",
    "competitor",
    "make_algorithm",
    "parse_config",
    "quantile",
    "read_config",
    "read_toml",
    "to_toml",
    "usable_cores",
    "with_overrides",
]
