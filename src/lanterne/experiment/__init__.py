"""From a TOML file to a run directory: configuration, building, running, checkpoints, resuming."""

from lanterne.experiment.build import Objects, Prepared, World, prepare
from lanterne.experiment.config import Config, parse_config, read_config, to_toml
from lanterne.experiment.run import Listener, Silence, resume_experiment, run_experiment

__all__ = [
    "Config",
    "Listener",
    "Objects",
    "Prepared",
    "Silence",
    "World",
    "parse_config",
    "prepare",
    "read_config",
    "resume_experiment",
    "run_experiment",
    "to_toml",
]
