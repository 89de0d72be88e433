"""What is written down of a round, and of a whole run."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from lanterne.runtime import Simulator

_OUTCOMES = ("complete", "partial", "refused", "failed", "lost", "cancelled")
_LATE = ("partial", "cancelled", "lost")


def make_row(
    label: str, seed: int, round: int, simulator: Simulator, judged: dict[str, Any], wall: float
) -> dict[str, Any]:
    """A row: where the run is, how good the model is, and what it has cost so far. Costs are cumulative.

    Args:
        label: of the competitor.
        seed: of the run.
        round: rounds done.
        simulator: after that round, its timeline that of the round.
        judged: from `Judge`.
        wall: seconds of real time so far.
    """
    total, records = simulator.ledger.total, [r for r in simulator.timeline if r["class"] != "server"]
    outcomes = Counter(r["outcome"] for r in records)
    return {
        "algorithm": label,
        "seed": seed,
        "round": round,
        "virtual_seconds": simulator.now,
        "wall_seconds": wall,
        **judged,
        "bytes_up": total.up,
        "bytes_down": total.down,
        "bytes": dict(sorted(total.bytes.items())),
        "samples_trained": total.samples,
        "flops": total.flops,
        "flops_wasted": total.flops_wasted,
        "busy_seconds": total.busy,
        "wasted_seconds": total.wasted,
        "idle_seconds": max(len(simulator.fleet) * simulator.now - total.busy, 0.0),
        "memory_static": total.static,
        "memory_working": total.working,
        "memory_held": total.held,
        "memory_held_server": simulator.ledger.unserved.peak,
        "replies": {name: outcomes.get(name, 0) for name in _OUTCOMES},
        "late": _late(records),
    }


def make_result(row: dict[str, Any], best: float, diverged: int | None, rounds: int) -> dict[str, Any]:
    """What is said of a whole run: its last row, its best accuracy, and whether it diverged.

    Args:
        row: the last one.
        best: the best accuracy of all rows.
        diverged: the round in which it did, or None.
        rounds: rounds done.
    """
    kept = {k: v for k, v in row.items() if k not in ("round", "replies", "late")}
    return {**kept, "rounds": rounds, "best_accuracy": best, "diverged": diverged}


def make_clients(simulator: Simulator) -> list[dict[str, Any]]:
    """What the run has cost each client that was ever asked, ascending.

    Args:
        simulator: at the end of the run.
    """
    accounts = ((to, simulator.ledger[to]) for to in simulator.ledger)
    clients = sorted(((to, account) for to, account in accounts if isinstance(to, int)), key=lambda pair: pair[0])
    return [
        {
            "client": client,
            "class": simulator.fleet.devices[client].tier,
            "samples": simulator.streams.samples(client),
            "bytes": dict(sorted(account.bytes.items())),
            "samples_trained": account.samples,
            "flops": account.flops,
            "flops_wasted": account.flops_wasted,
            "busy_seconds": account.busy,
            "wasted_seconds": account.wasted,
            "idle_seconds": max(simulator.now - account.busy, 0.0),
            "memory_static": account.static,
            "memory_working": account.working,
            "memory_held": account.held,
        }
        for client, account in clients
    ]


def _late(records: list[dict[str, Any]]) -> list[int]:
    """Who was cut off or given up in this round; where nobody was, who needed more than twice the median time."""
    cut = [r["client"] for r in records if r["outcome"] in _LATE]
    if not cut and records:
        usual = 2 * median(r["arrived"] - r["sent"] for r in records)
        cut = [r["client"] for r in records if r["arrived"] - r["sent"] > usual]
    return sorted(set(cut))
