"""What a model's accuracy is held against: virtual time, rounds, bytes, samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lanterne.report.jsonl import Record
from lanterne.report.records import number
from lanterne.report.units import Kind

At = Literal["time", "bytes", "samples"]


@dataclass(frozen=True, slots=True)
class Price:
    """A quantity that grows over a run.

    Attributes:
        kind: its unit.
        name: as an axis or a heading names it.
        column: of `rows.jsonl`, or the columns whose sum it is.
        of: how much of it a run has spent up to a row; NaN where the row does not say.
    """

    kind: Kind
    name: str
    column: str
    of: Callable[[Record], float]


def sent(record: Record) -> float:
    """All bytes on the network up to a row, or in a result: up and down."""
    return number(record, "bytes_up") + number(record, "bytes_down")


TIME = Price("seconds", "virtual time", "virtual_seconds", lambda row: number(row, "virtual_seconds"))
ROUNDS = Price("count", "rounds", "round", lambda row: number(row, "round"))
BYTES = Price("bytes", "bytes sent, up and down", "bytes_up and bytes_down", sent)
SAMPLES = Price("count", "samples trained", "samples_trained", lambda row: number(row, "samples_trained"))

#: At what methods can be compared, in the order in which it is shown.
PRICES: dict[At, Price] = {"time": TIME, "bytes": BYTES, "samples": SAMPLES}
