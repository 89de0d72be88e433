"""Every split method of the table, small enough for the tests that hold for all of them."""

from __future__ import annotations

from typing import Any

from lanterne.algorithms import ALGORITHMS
from lanterne.split import SplitMethod

#: By name; a new method joins by its line in the table of algorithms.
SPLIT: dict[str, type[Any]] = {name: kind for name, kind in ALGORITHMS.items() if issubclass(kind, SplitMethod)}
#: What a test has to set of a method besides what it sets of all.
OPTIONS: dict[str, dict[str, Any]] = {
    "cse_fsl": {"interval": 1},
    "fsl_sage": {"interval": 1},
    "sl": {"order": "ascending"},
    "gas": {"activation_buffer": 2, "model_buffer": 3},
}
#: Whose server's half depends on who is quick.
QUICK = {"cse_fsl"}
#: Whose clients' halves do, too.
QUICK_THROUGHOUT = {"fsl_sage", "gas"}
#: Without barriers: a round is so many arrivals, whoever they are from.
WITHOUT_BARRIERS = {"gas"}


def make(name: str, stack: Any, **options: Any) -> Any:
    """A method at its first cut, with a learning rate at which tiny problems move."""
    return SPLIT[name](**{"stack": stack, "cut": 1, "lr": 0.3, **OPTIONS.get(name, {}), **options})
