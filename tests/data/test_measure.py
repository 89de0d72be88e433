import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lanterne.data import client_means, held_out, label_shares, load, partition
from lanterne.errors import DataError


def test_shares_by_hand():
    # client 0 holds the labels 0, 0, 2; client 1 holds 1
    shares = label_shares([np.array([0, 1, 3]), np.array([2])], torch.tensor([0, 0, 1, 2]), classes=4)
    assert shares.dtype == torch.float64
    assert torch.equal(shares * 3, torch.tensor([[2.0, 0, 1, 0], [0, 3, 0, 0]], dtype=torch.float64))


@given(st.integers(1, 8), st.integers(0, 99))
def test_rows_sum_to_one_and_average_to_the_whole(clients, seed):
    labels = np.arange(120) % 7
    rows = partition("shards:2", labels, clients, seed)
    shares = label_shares(rows, labels, classes=9)
    assert torch.allclose(shares.sum(1), torch.ones(clients, dtype=torch.float64))
    weights = torch.tensor([len(each) / 120 for each in rows], dtype=torch.float64)
    whole = torch.from_numpy(np.bincount(labels, minlength=9) / 120)
    assert torch.allclose(weights @ shares, whole)


def test_client_means_are_the_expectation_under_label_shift():
    # A client's accuracy on its own rows, if its rows of a class are as hard as everybody's.
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    correct = np.concatenate([np.arange(30) % 2 == 0, np.arange(20) % 4 == 0, np.ones(10, dtype=bool)])
    rows = [np.r_[0:10, 30:50], np.r_[10:30, 50:60]]
    per_class = torch.tensor([correct[labels == k].mean() for k in range(3)])
    expected = [correct[own].mean() for own in rows]
    assert client_means(per_class, label_shares(rows, labels, 3)).tolist() == pytest.approx(expected)


def test_a_class_that_was_not_measured_spoils_only_those_who_hold_it():
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    means = client_means(torch.tensor([0.25, float("nan")]), shares)
    assert means[0] == 0.25
    assert torch.isnan(means[1])


def test_bad_input():
    with pytest.raises(DataError, match="Client 1 has no rows"):
        label_shares([np.array([0]), np.array([], dtype=np.int64)], np.array([0]), 1)
    with pytest.raises(DataError, match=r"run from 0 to 3.*0\.\.2"):
        label_shares([np.array([0])], np.array([0, 3]), 3)
    with pytest.raises(DataError, match="Give one value for each class"):
        client_means(torch.zeros(3), torch.zeros(2, 4))


def test_held_out_rows_follow_their_owners():
    data = load("synthetic:1,1", clients=9)
    rows = partition("natural", data.y, 4, 3, owner=data.owner)
    owners = [int(data.owner[own[0]]) for own in rows]
    assert len(set(owners)) == 4
    found = held_out(rows, data.owner, data.test_owner)
    for client, own in enumerate(owners):
        assert np.array_equal(found == client, data.test_owner.numpy() == own)
    assert ((found == -1) == ~np.isin(data.test_owner.numpy(), owners)).all()


@pytest.mark.parametrize(
    ("rows", "owner", "test_owner"),
    [
        ([[0, 1], [2]], None, [0, 1]),
        ([[0, 1], [2]], [0, 0, 1], None),
        ([[0, 2], [1]], [0, 0, 1], [0, 1]),  # a client of two owners
        ([[0], [1]], [0, 0, 1], [0, 1]),  # an owner of two clients
        ([[0, 1], [2]], [0, 0, 1], [0, 0]),  # a client without held-out rows
        ([[0, 1], [2]], [0, 0, 1], [0, -1]),
    ],
)
def test_no_held_out_rows_for_everybody(rows, owner, test_owner):
    rows = [np.array(each) for each in rows]
    owners = [None if each is None else torch.tensor(each) for each in (owner, test_owner)]
    assert held_out(rows, *owners) is None
