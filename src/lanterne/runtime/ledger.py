"""The books: bytes by category, FLOPs, seconds and peak memory, per client and in all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from lanterne.protocol import Address, Direction
from lanterne.runtime.pricing import Memory


@dataclass(slots=True)
class Account:
    """One client's books.

    Args:
        bytes: by category.
        down: bytes to the client, of all categories.
        up: bytes from it.
        flops: of all units done, wasted ones included.
        flops_wasted: of units whose result nobody used.
        busy: seconds at work: download, computation, upload.
        wasted: those of them whose result nobody used.
        static: peak bytes held throughout a request.
        working: peak bytes held in between.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    down: int = 0
    up: int = 0
    flops: float = 0.0
    flops_wasted: float = 0.0
    busy: float = 0.0
    wasted: float = 0.0
    static: int = 0
    working: int = 0


class Ledger:
    """Accounts by client, and their totals kept along."""

    def __init__(self) -> None:
        self.accounts: dict[Address, Account] = {}
        self.total = Account()

    def account(self, to: Address) -> Account:
        """The account of an address, opened if need be."""
        if to not in self.accounts:
            self.accounts[to] = Account()
        return self.accounts[to]

    def carry(self, client: Address, category: str, direction: Direction, nbytes: int) -> None:
        """Bytes went over a client's link."""
        for account in (self.account(client), self.total):
            account.bytes[category] += nbytes
            if direction == "down":
                account.down += nbytes
            else:
                account.up += nbytes

    def hold(self, client: Address, memory: Memory) -> None:
        """A client held so much memory."""
        for account in (self.account(client), self.total):
            account.static = max(account.static, memory.static)
            account.working = max(account.working, memory.working)

    def spend(self, to: Address, seconds: float, flops: float, *, wasted: bool) -> None:
        """Time and work were spent. A server's count in its own account, not in the clients' total."""
        accounts = [self.account(to)] if isinstance(to, tuple) else [self.account(to), self.total]
        for account in accounts:
            account.busy += seconds
            account.flops += flops
            if wasted:
                account.wasted += seconds
                account.flops_wasted += flops

    def regret(self, to: Address, seconds: float, flops: float) -> None:
        """What was spent turns out to have been for nothing."""
        accounts = [self.account(to)] if isinstance(to, tuple) else [self.account(to), self.total]
        for account in accounts:
            account.wasted += seconds
            account.flops_wasted += flops

    def snapshot(self) -> dict[str, Any]:
        """Plain data."""
        return {"total": _plain(self.total), "accounts": [(to, _plain(a)) for to, a in self.accounts.items()]}

    def restore(self, snap: dict[str, Any]) -> None:
        """Back to a snapshot."""
        self.total = _account(snap["total"])
        self.accounts = {to: _account(a) for to, a in snap["accounts"]}


def _plain(account: Account) -> dict[str, Any]:
    return {f.name: getattr(account, f.name) for f in fields(Account)} | {"bytes": dict(account.bytes)}


def _account(data: dict[str, Any]) -> Account:
    return Account(**{**data, "bytes": Counter(data["bytes"])})
