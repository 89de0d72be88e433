"""What a population costs: set-up, memory and time per round for a cohort of 100 among 1,000 devices and 1,000,000.

    python benchmarks/fleets.py

Each line is a process of its own. FedAvg trains the default model on the bundled digits, cut into 100 parts that the
clients share; all are judged after each round. The traces of `fedscale` are made up, as many entries as its files hold.
Times are of this machine at this moment.
"""

from __future__ import annotations

import json
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 9
SIZES = (1_000, 1_000_000)


def make_traces(folder: Path) -> None:
    """Files in FedScale's form: 500,000 capacities, and 107,749 clients with eight windows in six days each."""
    g = np.random.default_rng(0)
    ms, kbits = g.integers(20, 900, 500_000).tolist(), g.lognormal(8.5, 1.0, 500_000).tolist()
    capacity = {
        c: {"computation": float(a), "communication": b} for c, (a, b) in enumerate(zip(ms, kbits, strict=True))
    }
    times = np.sort(g.integers(0, 518_400, (107_749, 16)), axis=1)
    times[::2, 0] = 0  # half of them are there when it begins
    behaviour = {
        c: {"duration": 0, "inactive": own[1::2], "finish_time": 518_400, "active": own[::2], "model": "made up"}
        for c, own in enumerate(times.tolist())
    }
    (folder / "capacity").write_bytes(pickle.dumps(capacity))
    (folder / "availability").write_bytes(pickle.dumps(behaviour))


def peak() -> float:
    """The most memory that this process has had, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def measure(clients: int, fleet: dict[str, Any]) -> None:
    """One line, as JSON on standard output."""
    from lanterne.experiment import parse_config, prepare

    begun = time.perf_counter()
    config = parse_config({
        "algorithms": ["fedavg"],
        "data": {"clients": clients, "partition": "iid@100"},
        "fleet": fleet,
        "training": {"cohort": 100},
    })  # fmt: skip
    prepared = prepare(config)
    world, executor = prepared.world(1), prepared.executor()
    simulator, algorithm = prepared.simulator("fedavg", world, executor, 1), prepared.algorithms["fedavg"]
    judge = prepared.judge(world, executor)
    set_up = time.perf_counter() - begun
    state, rounds, judged = algorithm.init(world.w), [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        state = simulator.round(algorithm, state)
        trained = time.perf_counter()
        judge(algorithm.evaluated(state))
        rounds.append(trained - begun)
        judged.append(time.perf_counter() - trained)
    executor.close()
    found = {"set-up": set_up, "peak": peak(), "round": rounds[1:], "judged": judged[1:]}
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """Measure and print."""
    out = sys.stdout.write
    out("fleet            devices   set-up s   peak MB   round ms: median (least - most)   judging ms\n")
    with tempfile.TemporaryDirectory() as folder:
        make_traces(Path(folder))
        traces = {"capacity": f"{folder}/capacity", "availability": f"{folder}/availability"}
        fleets: list[dict[str, Any]] = [
            {"kind": "stragglers"},
            {"kind": "lognormal", "link_sigma": 0.6},
            {"kind": "phones"},
            {"kind": "fedscale", **traces},
        ]
        for fleet in fleets:
            for clients in SIZES:
                line = [sys.executable, __file__, str(clients), json.dumps(fleet)]
                found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
                ms = [1e3 * seconds for seconds in found["round"]]
                out(
                    f"{fleet['kind']:<12} {clients:>11,}   {found['set-up']:8.2f}   {found['peak']:7.0f}   "
                    f"{statistics.median(ms):10.0f} ({min(ms):.0f} - {max(ms):.0f})".ljust(76)
                    + f"{1e3 * statistics.median(found['judged']):13.0f}\n"
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        main()
