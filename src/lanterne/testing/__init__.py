"""The public conformance suite: what an algorithm and a runtime have to do right, as functions to call from a test."""

from lanterne.testing.conformance import STORMS, Audit, check_algorithm, simulate
from lanterne.testing.problems import Problem, tiny_cnn, tiny_mlp, tiny_problem, uneven_fleet
from lanterne.testing.runtimes import check_runtimes_match, run_in_process

__all__ = [
    "STORMS",
    "Audit",
    "Problem",
    "check_algorithm",
    "check_runtimes_match",
    "run_in_process",
    "simulate",
    "tiny_cnn",
    "tiny_mlp",
    "tiny_problem",
    "uneven_fleet",
]
