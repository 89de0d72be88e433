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
    ledger, records = simulator.ledger, [r for r in simulator.timeline if r["class"] != "server"]
    outcomes = Counter(r["outcome"] for r in records)
    return {
        "algorithm": label,
        "seed": seed,
        "round": round,
        "virtual_seconds": simulator.now,
        "wall_seconds": wall,
        **judged,
        "bytes_up": ledger.total.up,
        "bytes_down": ledger.total.down,
        "bytes": dict(sorted(ledger.total.bytes.items())),
        "flops": ledger.total.flops,
        "flops_wasted": ledger.total.flops_wasted,
        "busy_seconds": ledger.total.busy,
        "wasted_seconds": ledger.total.wasted,
        "idle_seconds": max(len(simulator.fleet) * simulator.now - ledger.total.busy, 0.0),
        "memory_static": ledger.total.static,
        "memory_working": ledger.total.working,
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
    accounts = simulator.ledger.accounts
    clients = sorted(client for client in accounts if isinstance(client, int))
    return [
        {
            "client": client,
            "class": simulator.fleet.devices[client].tier,
            "samples": simulator.streams.samples(client),
            "bytes": dict(sorted(accounts[client].bytes.items())),
            "flops": accounts[client].flops,
            "flops_wasted": accounts[client].flops_wasted,
            "busy_seconds": accounts[client].busy,
            "wasted_seconds": accounts[client].wasted,
            "idle_seconds": max(simulator.now - accounts[client].busy, 0.0),
            "memory_static": accounts[client].static,
            "memory_working": accounts[client].working,
        }
        for client in clients
    ]


def _late(records: list[dict[str, Any]]) -> list[int]:
    """Who was cut off or given up in this round; where nobody was, who needed more than twice the median time."""
    cut = [r["client"] for r in records if r["outcome"] in _LATE]
    if not cut and records:
        usual = 2 * median(r["arrived"] - r["sent"] for r in records)
        cut = [r["client"] for r in records if r["arrived"] - r["sent"] > usual]
    return sorted(set(cut))
