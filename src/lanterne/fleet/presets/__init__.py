"""Named fleets: each a frozen set of parameters that is built for a number of clients and a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lanterne.errors import FleetError, nearest
from lanterne.fleet.presets.base import Preset
from lanterne.fleet.presets.distributions import Lognormal, Pareto
from lanterne.fleet.presets.fedscale import FedScale
from lanterne.fleet.presets.phones import Phones
from lanterne.fleet.presets.stragglers import Stragglers, Uniform
from lanterne.fleet.presets.theory import ExponentialLayersFleet, UniformDepthFleet

_KINDS: Iterable[type[Preset]] = (
    Uniform, Stragglers, Lognormal, Pareto, Phones, FedScale, ExponentialLayersFleet, UniformDepthFleet,
)  # fmt: skip
PRESETS: dict[str, type[Preset]] = {kind.name: kind for kind in _KINDS}


def preset(name: str, /, **parameters: Any) -> Preset:
    """A preset by name, its parameters checked by name and kind.

    Args:
        name: one of `PRESETS`.
        parameters: its fields.

    Raises:
        FleetError: for a name or a parameter that it does not have, with the nearest one that it has.

    Examples:
        >>> preset("stragglers", share=0.5).build(4, seed=1, layers=3).devices[2].tier
        'straggler'
    """
    if name not in PRESETS:
        raise FleetError(f"There is no fleet called {name!r}, and no file of that name. {nearest(name, PRESETS)}")
    kind = PRESETS[name]
    known, hints = {f.name for f in dataclasses.fields(kind)}, get_type_hints(kind)
    for key, value in parameters.items():
        if key not in known:
            raise FleetError(f"The fleet {name!r} has no parameter {key!r}. {nearest(key, known)}")
        _check(f"{key} of the fleet {name!r} is {value!r}.", value, hints[key])
    return kind(**parameters)


def _check(found: str, value: object, hint: Any) -> None:  # noqa: ANN401
    """Refuse a value that is not of a parameter's type."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Literal:
        if value not in kinds:
            raise FleetError(f"{found} {nearest(str(value), kinds)}")
    elif str in kinds:
        if not isinstance(value, str):
            raise FleetError(f"{found} Give text.")
    elif not (value is None and NoneType in kinds):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FleetError(f"{found} Give a number.")
        if isinstance(value, float) and float not in kinds:
            raise FleetError(f"{found} Give a whole number.")
