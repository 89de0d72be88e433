"""Parts that clients share: client c holds part c mod S, reads it in an order of its own, and costs nothing more."""

from __future__ import annotations

import numpy as np
import pytest

from lanterne.data import Shared, Streams, check_partition, different, partition
from lanterne.data import batches as module
from lanterne.errors import DataError, ProtocolError

LABELS = np.arange(60) % 5
PARTS = [np.array([0, 1, 2]), np.array([3, 4])]


@pytest.mark.parametrize("spec", ["iid", "dirichlet:2", "shards:2", "classes:2"])
def test_any_scheme_is_cut_for_fewer_and_held_in_turn(spec: str) -> None:
    few, many = partition(spec, LABELS, 4, 7), partition(f"{spec}@4", LABELS, 1000, 7)
    assert len(many) == 1000
    for client in (0, 1, 5, 402, 999):
        assert many[client].tolist() == few[client % 4].tolist()
    assert len(different(many)) == 4
    assert different(few) is few


def test_a_part_for_each_is_the_partition_itself() -> None:
    plain, shared = partition("iid", LABELS, 6, 1), partition("iid@6", LABELS, 6, 1)
    assert [each.tolist() for each in shared] == [each.tolist() for each in plain]


def test_clients_of_a_part_read_its_rows_in_orders_of_their_own() -> None:
    parts = [np.arange(20), np.arange(20, 50)]
    streams, alone = Streams(Shared(parts, 9), batch=4, seed=3), Streams(parts, batch=4, seed=3)
    assert len(streams) == 9
    assert [streams.samples(c) for c in range(4)] == [20, 30, 20, 30]
    epochs = [streams.rows(c, range(5)).ravel() for c in (0, 2, 8)]
    assert all(sorted(each) == list(range(20)) for each in epochs)
    assert len({tuple(each) for each in epochs}) == 3
    for client in (0, 1):
        assert (streams.rows(client, range(9)) == alone.rows(client, range(9))).all()
    with pytest.raises(ProtocolError, match="There is no client 9: there are 9"):
        streams.samples(9)


def test_what_is_kept_of_many_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it takes: a hundred bytes and more for each that is kept, however few its rows."""
    monkeypatch.setattr(module, "_ROWS_KEPT", 1000)
    streams = Streams(Shared(PARTS, 10_000), batch=2, seed=0)
    first = streams.rows(7, range(4)).tolist()
    for client in range(200):
        streams.rows(client, range(4))
    assert len(streams._kept) <= 1000 // module._OVERHEAD
    assert streams._kept_rows <= 1000
    assert streams.rows(7, range(4)).tolist() == first


def test_a_shared_partition_can_be_brought() -> None:
    checked = check_partition(Shared(PARTS, 1_000_000), 5, 1_000_000)
    assert isinstance(checked, Shared)
    assert checked[999_999].tolist() == [3, 4]
    assert checked[-2].tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        checked[1_000_000]
    with pytest.raises(DataError, match="names row 1 twice"):
        check_partition(Shared([np.array([0, 1]), np.array([1])], 10), 5, 10)


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        ("iid", 100, r"100 clients cannot share 60 rows.* 1 to 60, or let clients share parts, as in 'iid@60'"),
        ("iid@61", 100, "61 clients cannot share 60 rows"),
        ("iid@101", 100, "101 clients cannot share 60 rows"),
        ("iid@7", 3, "3 clients cannot hold 7 parts of the data, one each. Write a number of parts from 1 to 3"),
        ("iid@", 100, "'iid@' needs a whole number of parts behind '@', 1 or more. Write for instance 'iid@100'"),
        ("iid@0", 100, "'iid@0' needs a whole number of parts"),
        ("iid@-3", 100, "'iid@-3' needs a whole number"),
        ("iid@2.5", 100, "'iid@2.5' needs a whole number"),
        ("iid@2@3", 100, "'iid@2@3' needs a whole number"),
        ("idd@2", 100, "There is no partition 'idd'"),
        ("@2", 100, "There is no partition ''"),
    ],
)
def test_what_cannot_be_shared_is_refused(spec: str, clients: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition(spec, LABELS, clients, 0)


@pytest.mark.parametrize(("parts", "clients"), [([], 3), (PARTS, 1)])
def test_parts_that_nobody_holds_are_refused(parts: list[np.ndarray], clients: int) -> None:
    with pytest.raises(DataError, match=f"{clients} clients cannot hold {len(parts)} parts"):
        Shared(parts, clients)
