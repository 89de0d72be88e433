"""`lanterne run` and `lanterne resume`: what reaches the experiment, and what is printed of it."""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lanterne.errors import DataError, HandlerError, ProtocolError, RunError
from lanterne.experiment import read_config

Command = Callable[..., Any]

TOML = """
rounds = 9
seeds = [4]
[training]
lr = 0.5
[fleet]
kind = "uniform-depth"
minimum = 2
[algorithms.salf]
rule = "ht"
[algorithms.drop]
"""


def test_a_parameter_that_does_not_reach_everybody_is_a_warning(lanterne_command: Command, experiment: Any) -> None:
    experiment.unheard = ["scaffold has no momentum: it is said once."]
    outcome = lanterne_command("run", "scaffold", "--rounds", "1", "--set", "momentum=0.5")
    assert outcome.status == 0
    assert outcome.err.startswith("warning: scaffold has no momentum: it is said once.\n")


def test_the_command_of_the_issue(lanterne_command: Command, experiment: Any) -> None:
    words = "run salf drop fedavg --data digits --clients 30 --stragglers 0.9 --rounds 60 --seeds 1 --out runs/demo"
    outcome = lanterne_command(*words.split(), "--format", "json")
    assert outcome.status == 0
    found = json.loads(outcome.out)
    assert [cell["algorithm"] for cell in found["runs"]] == ["salf", "drop", "fedavg"]
    keys = {"algorithm", "accuracy", "virtual_seconds", "wall_seconds", "bytes_up", "bytes_down", "rounds"}
    assert all(keys <= set(cell) for cell in found["runs"])
    assert found["plots"]
    assert all(Path(path).is_file() for path in found["plots"])
    (config,) = experiment.configs
    assert config.rounds == 60
    assert config.seeds == (1,)
    assert config.data.clients == 30
    assert config.fleet.kind == "stragglers"
    assert config.fleet.parameters == {"share": 0.9}
    assert experiment.tuned == [False]


def test_every_option_reaches_its_place(lanterne_command: Command, experiment: Any) -> None:
    options = shlex.split("""
        --data digits --clients 7 --cohort 5 --partition iid --batch 8 --model salf-mlp --fleet uniform --rounds 2
        --seeds 1,2,3 --lr 0.25 --local-steps 4 --deadline q0.5 --dtype float64 --device cpu --threads 3 --tune
        --set fleet.flops=1e6 --set salf.rule=cond --set momentum=0.5 --no-plots --quiet
    """)
    outcome = lanterne_command("run", "salf", "drop", *options)
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    (config,) = experiment.configs
    assert (config.rounds, config.seeds) == (2, (1, 2, 3))
    assert config.training.model_dump() == {
        "lr": 0.25, "local_steps": 4, "momentum": 0.5, "cohort": 5, "deadline": "q0.5",
    }  # fmt: skip
    assert config.data.model_dump() == {
        "source": "digits", "image": None, "label": None, "owner": None, "partition": "iid", "clients": 7, "batch": 8,
        "augment": None,
    }  # fmt: skip
    assert (config.fleet.kind, config.fleet.parameters) == ("uniform", {"flops": 1e6})
    assert config.model.name == "salf-mlp"
    assert config.runtime.model_dump() == {"executor": "auto", "threads": 3, "device": "cpu", "dtype": "float64"}
    assert config.algorithms["salf"].parameters == {"rule": "cond"}
    assert experiment.tuned == [True]


def test_a_deadline_in_seconds_is_a_number(lanterne_command: Command, experiment: Any) -> None:
    assert lanterne_command("run", "salf", "--deadline", "2", "--rounds", 1, "--no-plots").status == 0
    assert experiment.configs[0].training.deadline == 2.0


def test_the_command_line_takes_the_place_of_the_file(lanterne_command: Command, experiment: Any) -> None:
    Path("race.toml").write_text(TOML)
    words = ["run", "race.toml", "fedbuff", "salf", "--rounds", 2, "--set", "lr=0.125", "--no-plots"]
    assert lanterne_command(*words).status == 0
    (config,) = experiment.configs
    assert (config.rounds, config.seeds, config.training.lr) == (2, (4,), 0.125)
    assert config.fleet.parameters == {"minimum": 2}
    assert list(config.algorithms) == ["fedbuff", "salf"]
    assert config.algorithms["salf"].parameters == {"rule": "ht"}


def test_another_fleet_leaves_the_parameters_of_the_file_behind(lanterne_command: Command, experiment: Any) -> None:
    Path("race.toml").write_text(TOML)
    assert lanterne_command("run", "race.toml", "--stragglers", 0.5, "--rounds", 1, "--no-plots").status == 0
    assert lanterne_command("run", "race.toml", "--fleet", "uniform-depth", "--rounds", 1, "--no-plots").status == 0
    fleets = [(config.fleet.kind, config.fleet.parameters) for config in experiment.configs]
    assert fleets == [("stragglers", {"share": 0.5}), ("uniform-depth", {"minimum": 2})]


def test_variants_of_one_algorithm_race(lanterne_command: Command, experiment: Any) -> None:
    outcome = lanterne_command("run", "salf", "salf:rule=code,p=zero", "--rounds", 1, "--no-plots")
    assert outcome.status == 0
    assert experiment.configs[0].algorithms["salf:rule=code,p=zero"].parameters == {"rule": "code", "p": "zero"}
    assert "salf:rule=code,p=zero" in outcome.out


def test_a_table_at_the_end_and_where_things_are(lanterne_command: Command, experiment: Any) -> None:
    outcome = lanterne_command("run", "salf", "--rounds", 2, "--out", "a b")
    assert outcome.status == 0
    assert "66.7" in outcome.out
    assert "a b/plots/accuracy.png" in outcome.out
    assert "The run is in a b" in outcome.out
    assert outcome.err.splitlines() == [
        "salf seed 1: round 2/2, accuracy 66.7 %, virtual time 1.00 s, late 9: 0 1 2 3 …, took 200 ms"
    ]


def test_runs_get_fresh_directories(lanterne_command: Command, experiment: Any) -> None:
    outs = {
        json.loads(lanterne_command("run", "salf", "--rounds", 1, "--no-plots", "--format", "json").out)["out"]
        for _ in range(3)
    }
    assert len(outs) == 3
    assert all(Path(out).parent == Path("runs") for out in outs)


def test_an_empty_directory_is_taken(
    lanterne_command: Command, experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("here/cells").mkdir(parents=True)
    Path("here/cells").rmdir()
    assert lanterne_command("run", "salf", "--rounds", 1, "--out", "here", "--no-plots").status == 0


def test_a_directory_with_something_in_it_is_refused(lanterne_command: Command, experiment: Any) -> None:
    assert lanterne_command("run", "salf", "--rounds", 1, "--out", "demo", "--no-plots").status == 0
    before = sorted(Path("demo").rglob("*"))
    outcome = lanterne_command("run", "salf", "--rounds", 1, "--out", "demo")
    assert outcome.status == 2
    assert outcome.err.startswith("error: demo exists")
    assert "lanterne resume demo" in outcome.err
    assert "another --out" in outcome.err
    assert sorted(Path("demo").rglob("*")) == before
    assert len(experiment.configs) == 1
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    outcome = lanterne_command("run", "salf", "--out", "other")
    assert outcome.status == 2
    assert "resume" not in outcome.err
    outcome = lanterne_command("run", "salf", "--out", "other/notes.txt")
    assert outcome.status == 2
    assert "is a file" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "lanterne run salf fedavg"),
        (["run", "--rounds", "3"], "lanterne run salf fedavg"),
        (["run", "slaf"], "Did you mean 'salf'"),
        (["run", "salf", "salf"], "twice"),
        (["run", "none.toml"], "no experiment file"),
        (["run", "a.toml", "b.toml"], "two experiments"),
        (["run", "salf", "--seeds", "1,b"], "--seeds 1,2,3"),
        (["run", "salf", "--seeds", "1,1"], "seeds"),
        (["run", "salf", "--rounds", "0"], "rounds is 0"),
        (["run", "salf", "--rounds", "many"], "--rounds"),
        (["run", "salf", "--rouns", "3"], "--rounds"),
        (["run", "salf", "--set", "lr"], "key=value"),
        (["run", "salf", "--set", "lrr=1"], "Did you mean training.lr?"),
        (["run", "salf", "--fleet", "a.csv", "--set", "fleet.machine=1"], "Did you mean 'machines'?"),
        (["run", "salf", "--set", "salf.rule=papr"], "Did you mean 'paper'"),
        (["run", "salf", "--stragglers", "9"], "from 0 to 1"),
        (["run", "salf", "--stragglers", "0.9", "--fleet", "uniform"], "one of the two"),
        (["run", "salf", "--executor", "loop", "--tune"], "one of the two"),
        (["run", "salf", "--format", "xml"], "json"),
        (["run", "broken.toml"], "line 2, the last"),
        (["run", "flat.toml", "--lr", "3"], "[training]"),
        (["runn"], "lanterne --help"),
        (["compare"], "RUN"),
        (["resume"], "RUN"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_gets_one_message_and_status_2(
    lanterne_command: Command, experiment: Any, words: list[str], said: str
) -> None:
    Path("broken.toml").write_text("rounds = 3\nseeds = [")
    Path("flat.toml").write_text("training = 3\nalgorithms = ['salf']")
    outcome = lanterne_command(*words)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert not Path("runs").exists()
    assert experiment.configs == []


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [(DataError("There is no data set 'mnist'."), 2, "mnist"), (KeyboardInterrupt(), 130, "Nothing had begun")],
)
def test_before_a_run_has_begun_there_is_nothing_to_resume(
    lanterne_command: Command, experiment: Any, trouble: BaseException, status: int, said: str
) -> None:
    def refuse(config: Any) -> None:
        raise trouble

    experiment.prepare = refuse
    outcome = lanterne_command("run", "salf")
    assert outcome.status == status
    assert said in outcome.err
    assert "resume" not in outcome.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [
        (DataError("There is no column 'img'."), 2, "There is no column 'img'."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (OSError(errno.ENOSPC, "No space left on device", "demo/rows.jsonl"), 1, "No space left on device"),
        (RunError("The disk is full."), 1, "The disk is full."),
        (MemoryError(), 1, "not enough memory"),
        (ProtocolError("salf asked for the moon."), 1, "salf asked for the moon."),
        (HandlerError("train of salf raised\nValueError: x"), 1, "train of salf raised ValueError: x Add --debug"),
    ],
)
def test_a_run_that_ends_early_says_how_to_go_on(
    lanterne_command: Command, experiment: Any, trouble: BaseException, status: int, said: str
) -> None:
    experiment.trouble = {2: trouble}
    outcome = lanterne_command("run", "salf", "--rounds", 3, "--out", "de mo", "--format", "json")
    assert outcome.status == status
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    if status != 2:
        assert "lanterne resume 'de mo'" in outcome.err
    resumed = lanterne_command("resume", "de mo", "--format", "json")
    assert resumed.status == 0, resumed.err
    assert json.loads(resumed.out)["runs"][0]["rounds"] == 3


def test_an_algorithms_own_error_shows_its_traceback_when_asked(lanterne_command: Command, experiment: Any) -> None:
    experiment.trouble = {1: HandlerError("train of salf raised")}
    outcome = lanterne_command("run", "salf", "--debug")
    assert outcome.status == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: train of salf raised")


def test_a_mistake_of_our_own_is_not_hidden(lanterne_command: Command, experiment: Any) -> None:
    experiment.trouble = {1: ZeroDivisionError("oops")}
    with pytest.raises(ZeroDivisionError) as caught:
        lanterne_command("run", "salf", "--out", "demo")
    assert "lanterne resume demo" in caught.value.__notes__[0]


def test_what_diverges_is_a_warning(lanterne_command: Command, experiment: Any) -> None:
    experiment.diverges = 2
    outcome = lanterne_command("run", "salf", "drop", "--rounds", 3, "--format", "json")
    assert outcome.status == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "drop (seed 1) diverged in round 2" in warnings[1]
    found = json.loads(outcome.out, parse_constant=pytest.fail)
    assert found["runs"][0]["diverged"] == 2
    assert found["runs"][0]["loss"] is None


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_result(
    lanterne_command: Command, experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunError("plots cannot be written: No space left on device.")

    monkeypatch.setattr("lanterne.report.plot_run", fail)
    outcome = lanterne_command("run", "salf", "--rounds", 1, "--out", "demo", "--format", "json")
    assert outcome.status == 1
    assert json.loads(outcome.out)["runs"]
    assert "lanterne plot demo" in outcome.err


@pytest.mark.parametrize(
    "cohort", [["--cohort", "6"], ["--set", "cohort=6"], ["--set", "salf.cohort=6"], ["race.toml"]]
)
def test_a_cohort_larger_than_the_population_is_refused(lanterne_command: Command, cohort: list[str]) -> None:
    """By the real thing, which knows how many clients there are."""
    Path("race.toml").write_text("[training]\ncohort = 6\n[algorithms.salf]\n")
    outcome = lanterne_command("run", "salf", "--clients", 5, *cohort)
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert "cohort is 6, but there are 5 clients" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_fleet_file_says_how_many_clients_there_are(lanterne_command: Command) -> None:
    """By the real thing, with what is set of the fleet as a whole beside the file."""
    Path("phones.csv").write_text("flops\n" + "1e9\n" * 4)
    words = [
        "run",
        "fedavg",
        "--fleet",
        "phones.csv",
        "--rounds",
        1,
        "--model",
        "salf-mlp",
        "--out",
        "run",
        "--no-plots",
    ]
    assert lanterne_command(*words, "--set", "fleet.server_flops=1e12", "--set", "fleet.rejoin=3").status == 0
    config = read_config("run/config.toml")
    assert config.data.clients == 4
    assert config.fleet.parameters == {"server_flops": 1e12, "rejoin": 3}
    outcome = lanterne_command(*words[:-2], "again", "--clients", 5)
    assert outcome.status == 2
    assert "phones.csv describes 4 devices, but there are 5 clients" in outcome.err


def test_a_directory_that_holds_no_run_cannot_be_resumed(lanterne_command: Command) -> None:
    outcome = lanterne_command("resume", "nowhere")
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert "nowhere" in outcome.err
    assert outcome.err.count("\n") == 1
