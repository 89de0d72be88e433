"""Numbers as people read them: 3.2 min, 18.4 MB, 81.3 %; and the ticks of an axis in the same units."""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["seconds", "bytes", "count"]

_UNITS: dict[Kind, tuple[tuple[float, str], ...]] = {
    "seconds": ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d")),
    "bytes": ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB")),
    "count": ((1.0, ""),),
}
_MOST_MINOR = 20
_NAMES = {"µs": "microseconds", "ms": "milliseconds", "s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


def unit(kind: Kind, largest: float) -> tuple[float, str]:
    """The unit in which a quantity up to `largest` is written.

    Args:
        kind: what is measured.
        largest: the largest value, in seconds, bytes or pieces.

    Returns:
        The unit's size and its symbol.

    Examples:
        >>> unit("bytes", 3_000_000)
        (1000000.0, 'MB')
        >>> unit("seconds", 90)
        (1.0, 's')
    """
    if largest == 0 and kind == "seconds":
        return 1.0, "s"
    # A time keeps its unit up to twice the next one: 90 s reads better than 1.5 min.
    fitting = [
        entry for entry in _UNITS[kind] if largest >= entry[0] * (2 if entry[0] >= 60 and kind == "seconds" else 1)
    ]
    return fitting[-1] if fitting else _UNITS[kind][0]


def unit_name(kind: Kind, symbol: str) -> str:
    """How an axis names a unit: times are written out, the others keep their symbol.

    Examples:
        >>> unit_name("seconds", "min")
        'minutes'
        >>> unit_name("bytes", "MB")
        'MB'
    """
    return _NAMES.get(symbol, symbol) if kind == "seconds" else symbol


def quantity(kind: Kind, value: float) -> str:
    """A value with its unit, to three figures.

    Args:
        kind: what is measured.
        value: seconds, bytes or pieces, not negative; NaN where unknown.

    Examples:
        >>> quantity("seconds", 754.0)
        '12.6 min'
        >>> quantity("bytes", 18_432_000)
        '18.4 MB'
        >>> quantity("seconds", float("nan"))
        '-'
    """
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return f"0 {unit(kind, 0)[1]}".rstrip()
    size, symbol = unit(kind, value)
    whole = symbol in ("", "B") and value == int(value)
    return f"{_figures(value / size, whole)} {symbol}".rstrip()


def percent(value: float | None) -> str:
    """A share between 0 and 1 as a number of per cent without its sign, which the heading carries.

    Examples:
        >>> percent(0.8125)
        '81.2'
        >>> percent(None)
        '-'
    """
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def _figures(value: float, whole: bool) -> str:
    if value >= 1e6:
        return f"{value:.2e}"
    if value >= 100 or whole:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1e}"


def log_ticks(kind: Kind, low: float, high: float, room: int = 30) -> tuple[list[float], list[str], list[float]]:
    """Round values for a logarithmic axis: 10 s, 1 min, 10 min, 1 h rather than 10^1, 10^2.

    Args:
        kind: what the axis measures.
        low: its lower end, positive.
        high: its upper end, above `low`.
        room: how many characters would fit along it.

    Returns:
        Positions in base units, their labels, and finer positions without labels.

    Examples:
        >>> log_ticks("seconds", 4, 2000)[1]
        ['10 s', '1 min', '10 min']
    """
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    coarse = _times() if kind == "seconds" else decades
    fine = _times(fine=True) if kind == "seconds" else [step * ten for ten in decades for step in (1.0, 2.0, 5.0)]
    coarse, fine = ([tick for tick in ticks if low <= tick <= high] for ticks in (coarse, fine))
    ticks: list[float] = []
    texts: list[str] = []
    for tick in coarse if len(coarse) >= 3 else fine:
        text = _tick_text(kind, tick)
        if (
            not ticks
            or room * math.log(tick / ticks[-1]) / math.log(high / low) >= (len(texts[-1]) + len(text)) / 2 + 1
        ):
            ticks.append(tick)
            texts.append(text)
    return ticks, texts, fine if len(fine) <= _MOST_MINOR else []


def _times(fine: bool = False) -> list[float]:
    steps: tuple[float, ...] = (1.0, 2.0, 5.0) if fine else (1.0,)
    below = [step * 10.0**power for power in range(-9, 0) for step in steps]
    sixty: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0) if fine else (1.0, 10.0)
    hours = (1.0, 2.0, 5.0, 10.0) if fine else (1.0, 10.0)
    days = [86400.0 * step * 10.0**power for power in range(18) for step in steps]
    return [*below, *sixty, *(60 * step for step in sixty), *(3600 * step for step in hours), *days]


def _tick_text(kind: Kind, value: float) -> str:
    fitting = [entry for entry in _UNITS[kind] if value >= entry[0] * 0.999]  # 10 to a power is not always exact
    size, symbol = fitting[-1] if fitting else _UNITS[kind][0]
    scaled = value / size
    return f"{f'{scaled:,.0f}' if 1 <= round(scaled) < 1e5 else f'{scaled:.0e}'} {symbol}".rstrip()
