"""What can be set of an algorithm and of a fleet: names, types, defaults, meanings, and the check of what was set."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lanterne.algorithms import ALGORITHMS
from lanterne.budget import check_deadlines
from lanterne.errors import ConfigError, FleetError, nearest
from lanterne.experiment.mistakes import mistake
from lanterne.experiment.tables import bare, shown
from lanterne.fleet import COLUMNS, FLEET_WIDE, PRESETS, preset
from lanterne.models import LayerStack
from lanterne.protocol import Algorithm

FLEET_FILES = (".csv", ".parquet")
#: Enough for any preset: how many layers the model has is not known here.
_MANY_LAYERS = 1_000_000


@dataclass(frozen=True)
class Parameter:
    """One thing that can be set.

    Args:
        name: its key.
        type: as a user would say it.
        default: what it is when it is not set.
        meaning: what it does, with the paper's symbol and the unit.
        annotation: its type with its limits.
    """

    name: str
    type: str
    default: Any
    meaning: str
    annotation: Any


def parameters_of(kind: type[Any]) -> dict[str, Parameter]:
    """What can be set of an algorithm or a fleet, in order.

    Args:
        kind: a frozen dataclass; a field's meaning is its `Field` description, or stands in the `Args` of a docstring.

    Examples:
        >>> parameters_of(ALGORITHMS["salf"])["rule"].type
        'paper | cond | code | ht'
    """
    hints = get_type_hints(kind, include_extras=True)
    meanings = {name: text for base in reversed(kind.__mro__) for name, text in _documented(base).items()}
    found = {}
    for field in dataclasses.fields(kind):
        if field.name == "stack" or not field.init:
            continue
        hint = hints[field.name]
        info = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, FieldInfo)), None)
        meaning = (info.description if info else None) or meanings.get(field.name, "")
        default = None if field.default is dataclasses.MISSING else field.default
        found[field.name] = Parameter(field.name, _in_words(hint), default, meaning, hint)
    return found


def check_algorithm(label: str, name: str, given: Mapping[str, Any]) -> None:
    """Check a competitor's table: the algorithm, the names of its hyperparameters, and each value by itself.

    Args:
        label: of the competitor.
        name: of its algorithm.
        given: its hyperparameters.

    Raises:
        ConfigError: for the first mistake.
    """
    if name not in ALGORITHMS:
        hint = nearest(name, ALGORITHMS)
        if label == name and hint.startswith("Choose"):
            hint = '`lanterne list` shows them. For a label of your own, name its algorithm: algorithm = "salf".'
        raise ConfigError(f"algorithms.{bare(label)}: there is no algorithm called {shown(name)}. {hint}")
    known = parameters_of(ALGORITHMS[name])
    for key, value in given.items():
        where = f"algorithms.{bare(label)}.{bare(key)}"
        if key not in known:
            raise ConfigError(f"{where}: {name} has no hyperparameter {shown(key)}. {nearest(key, known)}")
        if key == "deadline" and isinstance(value, str):
            raise ConfigError(
                f"{where} is {shown(value)}, but a competitor's own deadline is a number of seconds. "
                "A quantile is the same for all: set training.deadline."
            )
        _check_value(where, value, known[key])


def algorithm_error(label: str, error: ValidationError) -> ConfigError:
    """What an algorithm's own check found, as one sentence.

    Args:
        label: of the competitor.
        error: what pydantic raised.
    """
    return mistake(error, f"algorithms.{bare(label)}")


def make_algorithm(name: str, stack: LayerStack, /, **parameters: Any) -> Algorithm[Any]:
    """An algorithm by name.

    Args:
        name: one of `ALGORITHMS`.
        stack: the model.
        parameters: its hyperparameters.

    Raises:
        ConfigError: for an algorithm, a hyperparameter or a value that is not there.
    """
    check_algorithm(name, name, parameters)
    try:
        made: Algorithm[Any] = ALGORITHMS[name](stack=stack, **parameters)
    except ValidationError as error:
        raise algorithm_error(name, error) from None
    return made


def adel_budget(deadline: str) -> float | None:
    """The seconds for all rounds together that `adel:SECONDS` gives; None for any other text.

    Raises:
        ConfigError: for a budget that is none.

    Examples:
        >>> adel_budget("adel:30"), adel_budget("q0.5")
        (30.0, None)
    """
    name, _, text = deadline.partition(":")
    if name != "adel":
        return None
    found = re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", text)
    try:
        seconds = float(text) if found else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(
            f"training.deadline is {shown(deadline)}, but ADEL-FL shares out seconds for all rounds together. "
            'Give them, as in "adel:30".'
        )
    return seconds


def quantile(deadline: str) -> float:
    """The quantile that a deadline names, a number from 0 to 1.

    Raises:
        ConfigError: for a text that names none.

    Examples:
        >>> quantile("q0.5"), quantile("50%")
        (0.5, 0.5)
    """
    found = re.fullmatch(r"q(?P<share>[0-9.]+)|(?P<percent>[0-9.]+) ?%", deadline)
    try:
        value = float(found["share"] or float(found["percent"]) / 100) if found else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(
            f"training.deadline is {shown(deadline)}. "
            'Give seconds (0.5), a quantile of the fleet\'s times for the whole work ("q0.5" or "50%"), or "adel:30".'
        )
    return value


def check_deadline(value: object) -> object:
    """Seconds as a number or one for each round, a quantile, or ADEL-FL's budget; None is left as it is.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(value, str):
        if adel_budget(value) is None:
            quantile(value)
        return value
    try:
        return None if value is None else check_deadlines(value)
    except ValueError:
        raise ConfigError(
            f"training.deadline is {shown(value)}, but has to be above 0 seconds, a list of such numbers with one for "
            'each round, a quantile such as "q0.5", or "adel:30".'
        ) from None


def check_fleet(kind: str, given: Mapping[str, Any]) -> None:
    """Check the fleet's table: the preset, the names of its parameters, and their values.

    Args:
        kind: a preset, or the path of a fleet file; whether that exists is not looked at.
        given: its parameters.

    Raises:
        ConfigError: for the first mistake.
    """
    if is_file(kind):
        _check_beside_file(kind, given)
        return
    if kind not in PRESETS:
        raise ConfigError(
            f"fleet.kind is {shown(kind)}: neither a fleet nor a .csv or .parquet file. {nearest(kind, PRESETS)}"
        )
    known = parameters_of(PRESETS[kind])
    for key in given:
        if key not in known:
            raise ConfigError(
                f"fleet.{bare(key)}: the fleet {kind!r} has no parameter {shown(key)}. {nearest(key, known)}"
            )
    wrong = _refusal(kind, given)
    if wrong:
        # The key is named where one alone is to blame.
        blamed = next((f".{key}" for key in given if _refusal(kind, {key: given[key]}) == wrong), "")
        raise ConfigError(f"fleet{blamed}: {wrong}")


def is_file(kind: str) -> bool:
    """Whether a fleet is a file and not a preset."""
    return kind not in PRESETS and PurePath(kind).suffix in FLEET_FILES


def fleet_wide() -> dict[str, Parameter]:
    """What can be set beside a fleet file: of the fleet as a whole, as for any preset."""
    return {name: each for name, each in parameters_of(PRESETS["uniform"]).items() if name in FLEET_WIDE}


def _check_beside_file(kind: str, given: Mapping[str, Any]) -> None:
    """Check what is set beside a fleet file: of the fleet as a whole, not of devices."""
    known = fleet_wide()
    for key, value in given.items():
        where = f"fleet.{bare(key)}"
        if key not in known:
            repair = nearest(key, known)
            if key in COLUMNS:
                repair = "Leave it out, or write it into the file as a column."
            elif repair.startswith("Choose"):
                repair = f"Leave it out; beside a file there are {', '.join(known)}."
            raise ConfigError(f"{where}: the fleet is the file {kind}, which describes every device itself. {repair}")
        _check_value(where, value, known[key])
        wrong = _refusal("uniform", {key: value})
        if wrong:
            raise ConfigError(f"{where}: {wrong}")


def _check_value(where: str, value: object, parameter: Parameter) -> None:
    """Check one value by its type and limits."""
    if value != value:
        raise ConfigError(f"{where} is nan, which is no number. Give one.")
    try:
        # A TOML list is a Python list, whatever the parameter wants.
        TypeAdapter(parameter.annotation).validate_python(value, strict=not isinstance(value, list))
    except ValidationError as error:
        raise _of_no_kind(where, value, parameter, error) or mistake(error, where) from None


def _of_no_kind(where: str, value: object, parameter: Parameter, error: ValidationError) -> ConfigError | None:
    """What is said of a value that is of none of several types, or of an entry of a table that is."""
    found = error.errors(include_url=False)
    if len(found) < 2 or not all(each["type"].endswith("_type") for each in found):
        return None
    inner = max(found, key=lambda each: len(each["loc"]))["loc"]
    if isinstance(value, Mapping) and len(inner) > 1 and inner[1] in value:
        key = inner[1]
        return ConfigError(f"{where}.{bare(key)} is {shown(value[key])}, which is no value there: {parameter.meaning}.")
    return ConfigError(f"{where} is {shown(value)}, but has to be a {parameter.type}: {parameter.meaning}.")


def _refusal(kind: str, given: Mapping[str, Any]) -> str:
    """Why a preset refuses its parameters; empty if it does not. Its files are not looked at."""
    try:
        made = preset(kind, **given)
        if not any(given.get(name) for name in made.files):
            made.build(1, 0, _MANY_LAYERS)
    except FleetError as error:
        return str(error)
    return ""


def _in_words(hint: object) -> str:
    """A type as a user would say it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_words(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join("none" if argument is NoneType else _in_words(argument) for argument in arguments)
    if origin is Mapping:
        return "table"
    if origin is tuple:
        return f"list of {_in_words(arguments[0])}s"
    plain = {int: "whole number", float: "number", bool: "true | false", str: "text"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))  # type: ignore[call-overload, no-any-return]


def _documented(kind: type[Any]) -> dict[str, str]:
    """The `Args` of a docstring."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    _, _, section = text.partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}
