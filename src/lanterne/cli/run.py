"""`lanterne run`: race algorithms over one fleet."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lanterne.cli.output import AsFormat, Debug, Format, Quiet, resumable, resume_command, warn
from lanterne.cli.result import Plots, present
from lanterne.errors import ConfigError

_TRAINING, _WORLD, _MACHINE, _OUTPUT = "Training", "Data, model and fleet", "Machine", "Output"


def run(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="WHAT...", help="A TOML file, algorithms (salf, or salf:rule=code,p=zero), or both."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, synthetic:1,1, a folder, a Parquet file, or owner/name on the hub.", rich_help_panel=_WORLD
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            help="How many clients there are; by default as many as a fleet file has rows, else 30.",
            rich_help_panel=_WORLD,
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(help="iid, dirichlet:0.3, shards:2, classes:3, linear, natural ...", rich_help_panel=_WORLD),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the zoo, as in resnet18:norm=batch.", rich_help_panel=_WORLD)
    ] = None,
    fleet: Annotated[
        str | None, typer.Option(help="A preset, or a CSV or Parquet file of devices.", rich_help_panel=_WORLD)
    ] = None,
    stragglers: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="The fleet 'stragglers' with this share of them.", rich_help_panel=_WORLD),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each competitor.", rich_help_panel=_TRAINING)] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="One run for each.", rich_help_panel=_TRAINING)
    ] = None,
    cohort: Annotated[
        int | None, typer.Option(help="Clients invited per round; all by default.", rich_help_panel=_TRAINING)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Rows per local step.", rich_help_panel=_TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="Step size.", rich_help_panel=_TRAINING)] = None,
    local_steps: Annotated[
        int | None, typer.Option(help="Batches per client and round.", rich_help_panel=_TRAINING)
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|QUANTILE|adel:SECONDS",
            help="Of a round; q0.5 or 50% is a quantile of the fleet's times, adel:30 shares out 30 seconds over all "
            "rounds by ADEL-FL's rule. By default what non-stragglers need.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting: lr=0.05, salf.rule=cond, fleet.slowdown=3; may be repeated.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="auto, loop or batched.", rich_help_panel=_MACHINE)] = None,
    threads: Annotated[
        int | None, typer.Option(help="By default the usable cores, at most 8.", rich_help_panel=_MACHINE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", rich_help_panel=_MACHINE)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.", rich_help_panel=_MACHINE)] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Time the executors and take the fastest.", rich_help_panel=_MACHINE)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory.", show_default="runs/<time>", rich_help_panel=_OUTPUT),
    ] = None,
    format: AsFormat = Format.table,
    plots: Plots = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Race algorithms over one fleet, on the same data and seeds: a table at the end, and a run directory."""
    options = {
        "rounds": rounds,
        "seeds": None if seeds is None else _seeds(seeds),
        "training": {"cohort": cohort, "lr": lr, "local_steps": local_steps, "deadline": deadline},
        "data": {"source": data, "clients": clients, "partition": partition, "batch": batch},
        "fleet": _fleet(fleet, stragglers),
        "model": {"name": model},
        "runtime": {"executor": executor, "threads": threads, "device": device, "dtype": dtype},
    }
    if tune and executor is not None:
        raise ConfigError(f"--tune chooses the executor, and --executor {executor} names one. Give one of the two.")
    out = _directory(out)
    with resumable(out, debug):
        from lanterne.cli.progress import Progress
        from lanterne.experiment import prepare, run_experiment
        from lanterne.experiment.config import parse_config

        config = parse_config(experiment(what or [], options, settings or []))
        prepared = prepare(config)
        for sentence in prepared.unheard:
            warn(sentence)
        with Progress(len(config.algorithms) * len(config.seeds), quiet=quiet) as progress:
            result = run_experiment(prepared, out, progress, tune=tune)
    present(out, result, format, plots)


def experiment(what: list[str], options: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """The experiment that a command line describes, not yet checked.

    Args:
        what: at most one TOML file, and competitors, which take the place of those in the file; one that the file has
            too keeps its table.
        options: nested like an experiment; None is not given. They take the place of what the file says.
        settings: the last word.

    Raises:
        ConfigError: for what cannot be put together.
    """
    from lanterne.experiment.tables import competitors, read_toml, shown, toml_value, with_overrides

    files = [word for word in what if word.endswith(".toml")]
    names = [word for word in what if word not in files]
    if len(files) > 1:
        raise ConfigError(f"{files[0]} and {files[1]} are two experiments. Run one after the other.")
    mapping = read_toml(files[0]) if files else {}
    if names:
        known = competitors(mapping.get("algorithms", {}))
        chosen = competitors(names)
        mapping["algorithms"] = {label: known.get(label, table) for label, table in chosen.items()}
    elif not files:
        raise ConfigError("Nobody races. Name algorithms, as in `lanterne run salf fedavg`, or a TOML file.")
    for name, given in options.items():
        if not isinstance(given, dict):
            mapping |= {} if given is None else {name: given}
            continue
        given = {key: value for key, value in given.items() if value is not None}
        table = mapping.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name} is {shown(table)}, but has to be a table. Write [{name}] and its keys below it.")
        # Another fleet has other parameters.
        kept = {} if "kind" in given and given["kind"] != table.get("kind") else table
        if given:
            mapping[name] = {**kept, **given}
    deadline = mapping.get("training", {}).get("deadline")
    if isinstance(deadline, str):
        mapping["training"]["deadline"] = toml_value(deadline)
    return with_overrides(mapping, settings)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}, but has to be whole numbers, as in --seeds 1,2,3.") from None


def _fleet(kind: str | None, share: float | None) -> dict[str, Any]:
    if share is None:
        return {"kind": kind}
    if kind not in (None, "stragglers"):
        raise ConfigError(
            f"--stragglers {share:g} is the fleet 'stragglers', and --fleet {kind} is another. "
            "Give one of the two; the share of another fleet is --set fleet.share=0.9."
        )
    return {"kind": "stragglers", "share": share}


def _directory(out: Path | None) -> Path:
    """Where the run goes: what was asked for, if it is free, else a new directory."""
    if out is None:
        name = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
        number = 1
        while (fresh := name if number == 1 else name.with_name(f"{name.name}-{number}")).exists():
            number += 1
        return fresh
    if out.is_dir() and any(out.iterdir()):
        on = f"Go on with it: {resume_command(out)}. Or give" if (out / "config.toml").is_file() else "Give"
        raise ConfigError(f"{out} exists and is not empty, and nothing in it is ever overwritten. {on} another --out.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, but a run is a directory. Give another --out.")
    return out
