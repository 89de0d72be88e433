"""The table of the zoo says what the zoo is."""

from __future__ import annotations

import pytest

from docs.test_tables import table
from lanterne.errors import ModelError
from lanterne.models import block_costs
from lanterne.models.zoo import MODELS, build, options_of

ROWS = {row[0]: row[1:] for row in table("reference/models.md", "The zoo")}


def test_every_model_has_a_row() -> None:
    assert list(ROWS) == list(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_true(name: str) -> None:
    blocks, smallest, *counts, megaflops, options = ROWS[name]
    stack = build(name, (3, 32, 32), 10)
    for count, shape in zip(counts, ((1, 8, 8), (1, 28, 28), (3, 32, 32)), strict=True):
        if count == "–":
            with pytest.raises(ModelError, match=f"at least {smallest}, not"):
                build(name, shape, 10)
        else:
            assert count == f"{build(name, shape, 10).size:,}"
    assert blocks == str(len(stack))
    assert megaflops == f"{sum(cost.forward for cost in block_costs(stack)) / 1e6:,.1f}"
    assert options == (", ".join(options_of(MODELS[name])) or "–")
