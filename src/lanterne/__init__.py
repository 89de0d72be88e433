"""lanterne: train one neural network over a fleet of unequal devices without waiting for the slowest.

The names of this module are loaded when they are first used, so that importing it costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanterne.api import Result, resume, run
    from lanterne.data import Dataset
    from lanterne.fleet import Device, Fleet
    from lanterne.models import LayerStack

_HOMES = {
    "Dataset": "lanterne.data",
    "Device": "lanterne.fleet",
    "Fleet": "lanterne.fleet",
    "LayerStack": "lanterne.models",
    "Result": "lanterne.api",
    "resume": "lanterne.api",
    "run": "lanterne.api",
}

__all__ = ["Dataset", "Device", "Fleet", "LayerStack", "Result", "resume", "run"]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lanterne' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
