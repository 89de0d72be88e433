"""`lanterne list`: what there is, and what can be set of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanterne.cli.output import AsFormat, Format, console, say_json
from lanterne.errors import ConfigError, nearest

if TYPE_CHECKING:
    from lanterne.experiment.parameters import Parameter

Entry = dict[str, Any]


class Kind(StrEnum):
    """What can be listed."""

    algorithms = "algorithms"
    models = "models"
    fleets = "fleets"
    data = "data"
    partitions = "partitions"


def listing(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(Kind)}; by default all.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, with all that can be set.")] = None,
    format: AsFormat = Format.table,
) -> None:
    """List algorithms, models, fleets, data sets and partitions, with what can be set of them."""
    kinds = list(Kind) if kind is None else [_kind(kind)]
    found = {each.value: _SOURCES[each]() for each in kinds}
    if name is not None:
        names = {entry["name"]: entry for entry in found[kinds[0]]}
        if name not in names:
            raise ConfigError(f"There is no {name!r} among the {kinds[0].value}. {nearest(name, names)}")
        found = {kinds[0].value: [names[name]]}
    if format is Format.json:
        say_json(found)
    elif name is not None:
        _details(found[kinds[0]][0])
    else:
        _overview(found, parameters=kind is not None)


def _kind(word: str) -> Kind:
    if word in Kind.__members__:
        return Kind(word)
    for kind in Kind:
        if any(entry["name"] == word for entry in _SOURCES[kind]()):
            raise ConfigError(f"{word!r} is a name, not a kind. Write: lanterne list {kind.value} {word}")
    raise ConfigError(f"There is nothing to list under {word!r}. {nearest(word, (kind.value for kind in Kind))}")


def _algorithms() -> list[Entry]:
    from lanterne.algorithms import ALGORITHMS

    found = []
    for name, kind in ALGORITHMS.items():
        source = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "").partition("\n\n")[0]
        found.append({**_entry(name, kind), "source": " ".join(source.split()), "parameters": _parameters(kind)})
    return found


def _models() -> list[Entry]:
    from lanterne.models.zoo import DEFAULT, MODELS, options_of

    def options(make: Callable[..., Any]) -> list[Entry]:
        return [
            {"name": each.name, "type": each.type, "default": each.default, "meaning": each.meaning}
            for each in options_of(make).values()
        ]

    return [
        {**_entry(name, make), "default": name == DEFAULT, "parameters": options(make)} for name, make in MODELS.items()
    ]


def _fleets() -> list[Entry]:
    from lanterne.experiment.parameters import fleet_wide
    from lanterne.fleet import PRESETS

    file = "A path that ends in .csv or .parquet: one row a device, one column for each of its numbers."
    presets = [{**_entry(name, kind), "parameters": _parameters(kind)} for name, kind in PRESETS.items()]
    return [*presets, {"name": "<file>", "summary": file, "parameters": _as_entries(fleet_wide())}]


def _data() -> list[Entry]:
    return [
        {
            "name": "digits",
            "summary": "Handwritten digits from scikit-learn, bundled: 1x8x8, 10 classes.",
        },
        {
            "name": "synthetic:ALPHA,BETA",
            "summary": "FedProx's: clients' models differ by ALPHA, inputs by BETA, as in synthetic:1,1.",
        },
        {
            "name": "<folder>",
            "summary": "A folder with train.parquet and test.parquet, or parts of them, or images by class.",
        },
        {"name": "<file>", "summary": "A single .parquet file; a fifth of each class becomes the test split."},
        {"name": "<owner/name>", "summary": "A data set of the Hugging Face hub, from the network or its cache."},
    ]


def _partitions() -> list[Entry]:
    return [
        {"name": "iid", "summary": "Rows in random order, cut into parts of equal size."},
        {
            "name": "dirichlet:ALPHA",
            "summary": "Each class divided by shares drawn from Dir(ALPHA), as in dirichlet:0.3.",
        },
        {"name": "shards:N", "summary": "Rows sorted by label; each client is dealt N shards, as in shards:2."},
        {"name": "classes:N", "summary": "Each client holds N classes, as in classes:3."},
        {"name": "linear", "summary": "Rows in random order; client c = 1, 2, ... gets c parts of them."},
        {"name": "square", "summary": "The same with c^2 parts."},
        {"name": "exponential", "summary": "The same with e^c parts."},
        {"name": "natural", "summary": "Each client is one owner of rows, by the data set or a column (data.owner)."},
        {"name": "iid@S", "summary": "Any of these, cut for S clients; client c holds part c mod S, as in iid@100."},
    ]


_SOURCES: dict[Kind, Callable[[], list[Entry]]] = {
    Kind.algorithms: _algorithms,
    Kind.models: _models,
    Kind.fleets: _fleets,
    Kind.data: _data,
    Kind.partitions: _partitions,
}


def _entry(name: str, thing: object) -> Entry:
    """A name and the first paragraph of its docstring."""
    text = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return {"name": name, "summary": " ".join(text.split())}


def _parameters(kind: type[Any]) -> list[Entry]:
    from lanterne.experiment.parameters import parameters_of

    return _as_entries(parameters_of(kind))


def _as_entries(parameters: Mapping[str, Parameter]) -> list[Entry]:
    return [
        {"name": each.name, "type": each.type, "default": each.default, "meaning": each.meaning}
        for each in parameters.values()
    ]


def _overview(found: dict[str, list[Entry]], parameters: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    terminal = console()
    for kind, entries in found.items():
        terminal.print(kind, style="bold")
        table = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for entry in entries:
            keys = ", ".join(each["name"] for each in entry.get("parameters", ())) if parameters else ""
            default = " (default)" if entry.get("default") else ""
            table.add_row(escape(entry["name"]), escape(entry["summary"] + default + (f"\n{keys}" if keys else "")))
        terminal.print(table)


def _details(entry: Entry) -> None:
    from rich.markup import escape
    from rich.table import Table

    terminal = console()
    terminal.print(f"[bold]{escape(entry['name'])}[/bold]  {escape(entry['summary'])}")
    if "source" in entry:
        terminal.print(escape(entry["source"]), style="dim")
    if not entry.get("parameters"):
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("parameter", "default", "type", "meaning"):
        table.add_column(heading, no_wrap=heading == "parameter")
    for each in entry["parameters"]:
        row = (each["name"], _shown(each["default"]), each["type"], each["meaning"])
        table.add_row(*map(escape, row))
    terminal.print(table)


def _shown(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
