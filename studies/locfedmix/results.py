"""The tables of the study, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from studies.harness import measures, tables
from studies.harness.measures import Row, Rows, Spread, by_seed
from studies.harness.tables import groups, percent, pick, table
from studies.locfedmix.plan import ABLATED, EXTREMES, LOCFEDMIX, METHODS, UNIFORM

#: Whom the abstract of LocFedMix-SL names.
NAMED = ("sl", "splitfed_v1", "splitfed_v2", "locsplitfed")
RACE = tuple(method.label for method in METHODS)
_SETTINGS = (
    "split", "problem", "fleet", "method", "lr", "seed", "data", "samples", "model", "partition", "clients", "batch",
    "local_steps", "share", "epochs",
)  # fmt: skip
_COLUMNS = ("round", "epochs_done", "virtual_seconds", "bytes_up", "bytes_down", "flops", "accuracy", "loss")


def rows_of(settings: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[Row]:
    """A cell's rows as plain columns, each with the cell's settings; bytes are those up and down.

    Args:
        settings: of the cell.
        result: of the cell; None has no rows.
    """
    if result is None:
        return []
    shared = {name: settings[name] for name in _SETTINGS if name != "share"} | {"stragglers": settings["share"]}
    shared |= {"limit": result["limit"], "diverged": result["diverged"]}
    return [
        {**shared, "share": row["share"], **{name: row.get(name) for name in _COLUMNS}, "bytes": sent(row)}
        for row in result["rows"]
    ]


def sent(row: Row) -> int:
    """Bytes up and down so far."""
    return int(row["bytes_up"] + row["bytes_down"])


def written(rows: Rows) -> dict[str, str]:
    """All tables by name.

    Args:
        rows: of tuning and of the final cells.
    """
    test, validation = pick(rows, split="test"), pick(rows, split="validation")
    if not test:
        return dict.fromkeys(("settled", "claims", "scalability", "ablation", "settings", "choices"), "")
    race = [row for row in test if row["method"] in RACE]
    return {
        "settled": tables.settled(race, UNIFORM.name, ("epochs", "epochs")),
        "claims": claims(race),
        "scalability": scalability(race),
        "ablation": ablation(test),
        "settings": settings(race),
        "choices": tables.choices(validation, "epochs"),
    }


def settings(rows: Rows) -> str:
    """For each setting, each method at equal epochs, equal virtual time, equal bytes; and when it is at the target.

    Args:
        rows: of the race on the test split.
    """
    parts = []
    for (problem, fleet), own in groups(rows, "problem", "fleet").items():
        target = target_of(rows, problem)
        seconds, size = first_end(own, "virtual_seconds"), first_end(own, "bytes")
        goal = "the target" if math.isnan(target) else f"{100 * target:.1f} %"
        heads = ["method", "learning rate", "end %", f"after {seconds:.3g} s %", f"after {size / 1e6:.3g} MB %",
                 f"epochs to {goal}", f"seconds to {goal}", f"MB to {goal}", "seconds in all"]  # fmt: skip
        lines = []
        for (method,), found in groups(own, "method").items():
            reached = [first(found, target, column) for column in ("epochs_done", "virtual_seconds", "bytes")]
            lines.append([
                method, f"{found[0]['lr']:g}", percent(measures.at_the_end(found)),
                percent(after(found, seconds, "virtual_seconds")), percent(after(found, size, "bytes")),
                soon(reached[0], ".1f"), soon(reached[1], ".3g"), soon(reached[2], ".3g", 1e6),
                f"{ends(found, 'virtual_seconds').mean:.3g}",
            ])  # fmt: skip
        parts.append(f"**{problem}, {fleet}**\n\n{table(heads, lines)}")
    return "\n".join(parts)


def claims(rows: Rows) -> str:
    """LocFedMix-SL against those whom its abstract names: points at the end, and how many times as soon at the target.

    Args:
        rows: of the race on the test split.
    """
    heads = ["setting"]
    heads += [f"points more than {other}" for other in NAMED] + [f"times as soon as {other}" for other in NAMED]
    lines = []
    for (problem, fleet), own in groups(rows, "problem", "fleet").items():
        mine, target = pick(own, method=LOCFEDMIX.label), target_of(rows, problem)
        if not mine:
            continue
        found = [difference(ended(mine), ended(pick(own, method=other))) for other in NAMED]
        soonest = first(mine, target, "virtual_seconds")
        ratios = [_ratio(first(pick(own, method=other), target, "virtual_seconds"), soonest) for other in NAMED]
        lines.append([f"{problem}, {fleet}", *map(points, found), *ratios])
    return table(heads, lines) if lines else ""


def scalability(rows: Rows) -> str:
    """For each method, what many clients lose against few at the end of the run, in points.

    Args:
        rows: of the race on the test split.
    """
    few, many = EXTREMES
    columns: dict[str, dict[str, Spread]] = {}
    for (data, samples, model, partition, fleet), own in groups(
        rows, "data", "samples", "model", "partition", "fleet"
    ).items():
        name = f"{data if samples is None else f'{samples} images of {data}'}, {model}, {partition}, {fleet}"
        for (method,), found in groups(own, "method").items():
            both = [ended(pick(found, clients=clients)) for clients in (many, few)]
            if all(both):
                columns.setdefault(name, {})[method] = difference(*both)
    if not columns:
        return ""
    lines = [
        [method, *(points(of[method]) if method in of else "" for of in columns.values())]
        for method in RACE
        if any(method in of for of in columns.values())
    ]
    return table(["method", *columns], lines)


def ablation(rows: Rows) -> str:
    """LocFedMix-SL without each of its ingredients, at the end.

    Args:
        rows: of the test split.
    """
    labels = [method.label for method in ABLATED]
    lines = []
    for (problem, fleet), own in groups(rows, "problem", "fleet").items():
        found = {label: pick(own, method=label) for label in labels}
        if any(found[label] for label in labels[1:]):
            lines.append([f"{problem}, {fleet}", *(percent(measures.at_the_end(found[label])) for label in labels)])
    return table(["setting", *labels], lines) if lines else ""


# ------------------------------------------------------------------------------------------------- numbers from rows
def target_of(rows: Rows, problem: str) -> float:
    """The accuracy to be reached in a problem, see `measures.target_of`."""
    return measures.target_of(pick(rows, problem=problem, fleet=UNIFORM.name, method="fedavg"))


def ends(rows: Rows, column: str) -> Spread:
    """A column of the last row of a run, over seeds; not known for one that diverged."""

    def last(own: Rows) -> float:
        return math.nan if own[-1]["accuracy"] is None else float(own[-1][column])

    return Spread.of(last(own) for own in by_seed(rows).values())


def first_end(rows: Rows, column: str) -> float:
    """The least of a column at which a run of any method ended: up to there all have a version of their own.

    Args:
        rows: of one setting.
        column: `virtual_seconds` or `bytes`.
    """
    found = [own[-1] for (method,), every in groups(rows, "method").items() for own in by_seed(every).values()]
    return min((float(row[column]) for row in found if row["accuracy"] is not None), default=math.nan)


def after(rows: Rows, limit: float, column: str) -> Spread:
    """The accuracy of the last version that was judged before a column went beyond a limit, over seeds."""

    def current(own: Rows) -> float:
        there = [row["accuracy"] for row in own if row[column] <= limit * (1 + 1e-9)]
        return math.nan if not there or there[-1] is None else float(there[-1])

    return Spread.of(current(own) for own in by_seed(rows).values())


def first(rows: Rows, target: float, column: str) -> Spread:
    """A column of the first judgement whose accuracy was at least a target, over seeds."""

    def hit(own: Rows) -> float:
        found = (row[column] for row in own if row["accuracy"] is not None and row["accuracy"] >= target)
        return float(next(found, math.nan))

    return Spread.of(hit(own) for own in by_seed(rows).values())


def ended(rows: Rows) -> dict[int, float]:
    """The accuracy at the end of each seed, where it did not diverge."""
    found = {seed: measures.at_the_end(own).mean for seed, own in by_seed(rows).items()}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Spread:
    """The difference over the seeds that both know: such runs share their data, devices and first weights."""
    return Spread.of(mine[seed] - theirs[seed] for seed in mine if seed in theirs)


def points(spread: Spread) -> str:
    """A difference in points, with its standard error; bold where it is more than two of them.

    Examples:
        >>> points(Spread.of([0.02, 0.03, 0.04])), points(Spread.of([0.02, -0.01, 0.0]))
        ('**+3.0 ± 0.6**', '+0.3 ± 0.9')
    """
    if not spread.known:
        return ""
    if spread.known < 2:
        return f"{100 * spread.mean:+.1f}"
    error = spread.deviation / math.sqrt(spread.known)
    text = f"{100 * spread.mean:+.1f} ± {100 * error:.1f}"
    return f"**{text}**" if abs(spread.mean) > 2 * error else text


def soon(reached: Spread, form: str, unit: float = 1.0) -> str:
    """When all seeds are at the target; how many, if not all: a mean over the lucky ones would flatter."""
    if reached.known == reached.seeds and reached.seeds:
        return f"{reached.mean / unit:{form}}"
    return f"{reached.known} of {reached.seeds} seeds" if reached.known else "never"


def _ratio(theirs: Spread, mine: Spread) -> str:
    whole: Callable[[Spread], bool] = lambda spread: spread.known == spread.seeds > 0  # noqa: E731
    if whole(mine) and whole(theirs):
        return f"{theirs.mean / mine.mean:.2f}"
    if not whole(mine):
        return "neither is there" if theirs.seeds and not whole(theirs) else "is not there" if theirs.seeds else ""
    return "only it is there" if theirs.seeds else ""
