"""The books by themselves: samples, and what is held across the cut."""

from __future__ import annotations

from lanterne.runtime.ledger import Ledger
from lanterne.runtime.unserved import Unserved


def test_the_same_batch_counts_once_a_round() -> None:
    """A second pass over a batch sees nothing new; the next round sees it anew, and so does another client."""
    books = Ledger()
    books.train(3, 0, range(2), 4)
    books.train(3, 0, range(1, 2), 4)
    assert books[3].samples == 8
    books.train(3, 0, range(1, 4), 4)
    assert books[3].samples == 16
    books.train(3, 1, range(2), 4)
    books.train(5, 1, range(2), 4)
    assert (books[3].samples, books[5].samples, books.total.samples) == (24, 8, 32)
    books.train(3, 1, range(0), 4)
    assert books.total.samples == 32


def test_what_is_held_is_restored_with_the_books() -> None:
    books, other = Ledger(), Ledger()
    books.carry(1, "act_up", "up", 10)
    books.keep(1, 70)
    books.keep(1, 60)
    books.train(1, 0, range(2), 4)
    books.unserved.come(("sent", 7), 10)
    books.unserved.come(("sent", 8), 5)
    books.unserved.gone(("sent", 7))
    assert books != other
    other.restore(books.snapshot())
    assert other == books
    assert (other[1].held, other.unserved.now, other.unserved.peak) == (70, 5, 15)
    other.train(1, 0, range(3), 4)
    assert other[1].samples == 12  # it is still known that two of the three were seen in this round
    other.unserved.gone(("sent", 8))
    assert other != books


def test_what_nobody_is_to_take_in_is_given_up() -> None:
    held = Unserved()
    for number in range(3):
        held.come(("sent", number), 10)
    held.come(("sent", 2), 30)
    held.only({("sent", 1)})
    assert (held.now, held.peak) == (10, 50)
    held.gone(("sent", 0))
    assert held.now == 10
