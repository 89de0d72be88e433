import random
import re
import warnings

import datasets
import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import (
    ExponentialPartitioner,
    IidPartitioner,
    LinearPartitioner,
    NaturalIdPartitioner,
    ShardPartitioner,
    SquarePartitioner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lanterne import rng
from lanterne.data import check_partition, partition
from lanterne.errors import DataError

LABELS = np.random.default_rng(0).integers(0, 10, 3000)
SPECS = ["iid", "dirichlet:0.3", "dirichlet:100", "shards:2", "classes:2", "linear", "square"]


def test_fixture_has_ten_classes():
    assert set(LABELS) == set(range(10))


@pytest.mark.parametrize("spec", SPECS)
def test_a_partition_is_disjoint_complete_and_nobody_is_empty(spec):
    rows = partition(spec, LABELS, 20, 3)
    assert len(rows) == 20
    assert all(each.dtype == np.int64 and each.size and (np.diff(each) > 0).all() for each in rows)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(3000))
    assert all(np.array_equal(a, b) for a, b in zip(check_partition(rows, 3000, 20), rows, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_a_partition_is_a_function_of_its_arguments(spec):
    first = partition(spec, LABELS, 12, 3)
    np.random.default_rng(1).random()
    again = partition(spec, torch.from_numpy(LABELS), 12, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = partition(spec, LABELS, 12, 4)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_global_generators_are_untouched_and_nothing_is_said(spec, capfd):
    random.seed(1)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the state is the point
    shown = datasets.are_progress_bars_disabled()
    filters = list(warnings.filters)
    partition(spec, LABELS, 10, 0)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert before[1][2] == after[1][2]
    assert torch.equal(before[2], after[2])
    assert datasets.are_progress_bars_disabled() == shown
    assert list(warnings.filters) == filters
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(0, 99), st.data())
def test_iid_and_shards_use_every_row(n, seed, data):
    clients = data.draw(st.integers(1, n))
    per_client = data.draw(st.integers(1, n // clients))
    labels = np.random.default_rng(seed).integers(0, 4, n)
    for spec, parts in ("iid", 1), (f"shards:{per_client}", per_client):
        rows = partition(spec, labels, clients, seed)
        assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(n))
        sizes = [len(each) for each in rows]
        assert max(sizes) - min(sizes) <= parts


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.floats(0.05, 50), st.integers(0, 99))
def test_dirichlet_uses_every_row_and_leaves_nobody_empty(clients, alpha, seed):
    labels = np.arange(400) % 5
    try:
        rows = partition(f"dirichlet:{alpha}", labels, clients, seed)
    except DataError as error:
        assert "without a row" in str(error)  # noqa: PT017 - either is right, by the draw
    else:
        assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(400))
        assert all(each.size for each in rows)


def test_iid_is_the_partitioner_of_flwr_datasets_on_shuffled_rows():
    order = rng.generator(rng.fold(7, "partition")).permutation(103)
    theirs = IidPartitioner(num_partitions=9)
    theirs.dataset = datasets.Dataset.from_dict({"row": order})
    for client, rows in enumerate(partition("iid", np.zeros(103, dtype=int), 9, 7)):
        assert sorted(theirs.load_partition(client)["row"]) == rows.tolist()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of pyarrow, about an option that datasets gives it
def test_shards_are_those_of_flwr_datasets_where_it_leaves_out_no_row():
    labels = np.random.default_rng(5).permutation(np.arange(120) % 6)

    def shards(parts):
        return sorted({tuple(each) for part in parts for each in np.asarray(part).reshape(3, 4).tolist()})

    theirs = ShardPartitioner(10, "label", num_shards_per_partition=3, shuffle=False)
    theirs.dataset = datasets.Dataset.from_dict({"label": labels, "row": np.arange(120)})
    flower = [theirs.load_partition(client)["row"][:] for client in range(10)]
    place = np.empty(120, dtype=int)  # in the rows sorted by label, where a shard is four in a row
    place[np.argsort(labels, kind="stable")] = np.arange(120)
    ours = [np.sort(place[rows]) for rows in partition("shards:3", labels, 10, 0)]
    assert shards(ours) == shards(np.sort(place[rows]) for rows in flower)
    assert all(len(set(labels[rows])) <= 3 for rows in partition("shards:3", labels, 10, 0))


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [("linear", LinearPartitioner), ("square", SquarePartitioner), ("exponential", ExponentialPartitioner)],
)
def test_sizes_are_those_of_flwr_datasets_on_shuffled_rows(spec, theirs):
    order = rng.generator(rng.fold(7, "partition")).permutation(1003)
    flower = theirs(num_partitions=6)
    flower.dataset = datasets.Dataset.from_dict({"row": order})
    for client, rows in enumerate(partition(spec, np.zeros(1003, dtype=int), 6, 7)):
        assert sorted(flower.load_partition(client)["row"]) == rows.tolist()


def test_a_client_of_a_part_by_size_is_no_block_of_the_file():
    # flwr-datasets cuts rows in the order in which they lie: of a file sorted by label a client would see one class.
    assert all(np.unique(np.sort(LABELS)[rows]).size == 10 for rows in partition("linear", np.sort(LABELS), 8, 0))


@pytest.mark.parametrize("spec", ["linear", "square", "exponential"])
@pytest.mark.parametrize("n", [1, 10, 100, 1000])
def test_sizes_and_the_repair_that_is_offered(spec, n):
    for clients in range(1, min(n, 60) + 1):
        try:
            rows = partition(spec, np.zeros(n, dtype=int), clients, 0)
        except DataError as error:
            empty, most, milder = re.search(
                r"leaves (\d+) of .* at most (\d+) clients, or '(\w+)'", str(error)
            ).groups()
            empty, most = int(empty), int(most)
            assert len(partition(milder, np.zeros(n, dtype=int), clients, 0)) == clients
            assert 1 <= empty < clients
            assert len(partition(spec, np.zeros(n, dtype=int), most, 0)) == most
            assert most < clients
            with pytest.raises(DataError, match=f"of {most + 1} clients without a row"):
                partition(spec, np.zeros(n, dtype=int), most + 1, 0)
        else:
            assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(n))
            assert all(each.size for each in rows)


def test_exponential_sizes_do_not_overflow():
    with pytest.raises(DataError, match=r"leaves 99\d of 1000 clients without a row"):
        partition("exponential", LABELS, 1000, 0)


OWNER = np.random.default_rng(3).permutation(np.repeat([4, 9, 2, 7], [5, 1, 10, 4]))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of pyarrow, about an option that datasets gives it
def test_natural_is_the_partitioner_of_flwr_datasets():
    theirs = NaturalIdPartitioner(partition_by="owner")
    theirs.dataset = datasets.Dataset.from_dict({"owner": OWNER, "row": np.arange(20)})
    ours = partition("natural", np.zeros(20, dtype=int), 4, 0, owner=OWNER)
    assert [rows.tolist() for rows in ours] == [theirs.load_partition(client)["row"][:] for client in range(4)]
    assert [set(OWNER[rows]) for rows in ours] == [{2}, {4}, {7}, {9}]


def test_natural_draws_owners_where_there_are_too_many():
    drawn = [
        partition("natural", np.zeros(20, dtype=int), 2, seed, owner=torch.from_numpy(OWNER)) for seed in range(20)
    ]
    whole = {tuple(np.flatnonzero(each == OWNER)) for each in OWNER}
    assert all(len(parts) == 2 and {tuple(rows) for rows in parts} < whole for parts in drawn)
    assert len({tuple(map(tuple, parts)) for parts in drawn}) == 6  # all pairs of four


@pytest.mark.parametrize(
    ("clients", "owner", "message"),
    [
        (6, OWNER, "leaves 2 of 6 clients without a row, for the rows come from 4 owners. Write at most 4 clients"),
        (2, OWNER[:9], r"owners are of shape \(9,\), but there are 20 rows"),
    ],
)
def test_bad_owners(clients, owner, message):
    with pytest.raises(DataError, match=message):
        partition("natural", np.zeros(20, dtype=int), clients, 0, owner=owner)


def test_dirichlet_leaves_everybody_ten_rows_where_it_can():
    # NeFL, invariant 23: disjoint, exhaustive, every client at least 10 rows, a function of the seed (tested above).
    assert min(len(each) for each in partition("dirichlet:0.5", LABELS, 30, 0)) >= 10
    tight = [len(each) for each in partition("dirichlet:1", LABELS[:60], 12, 0)]
    assert 1 <= min(tight) < 10


def test_a_small_alpha_is_a_skewed_partition():
    def classes_held(spec):
        return np.mean([np.unique(LABELS[rows]).size for rows in partition(spec, LABELS, 10, 0)])

    assert classes_held("dirichlet:0.1") < classes_held("dirichlet:1") < classes_held("dirichlet:1e6") == 10


def test_classes_per_client():
    rows = partition("classes:3", LABELS, 20, 0)
    assert all(np.unique(LABELS[each]).size == 3 for each in rows)
    few = partition("classes:2", LABELS, 2, 0)
    assert len(np.unique(LABELS[np.concatenate(few)])) <= 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dirichle:0.3", r"no partition 'dirichle' .*Did you mean 'dirichlet'\?"),
        ("IID", "no partition 'IID'"),
        ("", "Choose from: classes, dirichlet, exponential, iid, linear, natural, shards, square"),
        ("iid:3", "iid takes none. Write 'iid'"),
        ("square:2", "square takes none. Write 'square'"),
        ("sqare", r"Did you mean 'square'\?"),
        ("natural", "'natural' needs to know who each row comes from.*data.owner.*'dirichlet:0.3'"),
        (
            "exponential",
            "'exponential' of 3000 rows leaves 12 of 20 clients without a row. Write at most 8 clients, or 's",
        ),
        ("dirichlet", "needs a concentration alpha above 0"),
        ("dirichlet:", "needs a concentration alpha above 0"),
        ("dirichlet:-1", "needs a concentration alpha above 0"),
        ("dirichlet:0", "needs a concentration alpha above 0"),
        ("dirichlet:nan", "needs a concentration alpha above 0"),
        ("dirichlet:inf", r"up to 1e\+06"),
        ("dirichlet:x", "Write for instance 'dirichlet:0.3'"),
        ("shards:x", "whole number of shards per client.*'shards:2'"),
        ("shards:2.5", "whole number of shards per client"),
        ("shards:0", "whole number of shards per client"),
        ("shards", "whole number of shards per client"),
        ("classes:-2", "whole number of classes per client"),
        ("classes:11", "the labels show 10. Write at most 'classes:10'"),
        ("shards:200", "need 4000 shards, but there are only 3000 rows. Write at most 'shards:150'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(DataError, match=message):
        partition(spec, LABELS, 20, 0)


@pytest.mark.parametrize("clients", [0, -1, 3001])
def test_bad_numbers_of_clients(clients):
    with pytest.raises(DataError, match=f"{clients} clients cannot share 3000 rows.*from 1 to 3000"):
        partition("iid", LABELS, clients, 0)


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0]), np.zeros((2, 2), dtype=int), ["a", "b"]])
def test_bad_labels(labels):
    with pytest.raises(DataError, match="class number of each row"):
        partition("iid", labels, 1, 0)


def test_dirichlet_says_how_many_are_empty():
    with pytest.raises(DataError, match=r"leaves \d+ of 100 clients without a row.*fewer clients, a larger alpha, or"):
        partition("dirichlet:0.01", LABELS[:200], 100, 0)


def test_classes_with_too_few_rows_of_one():
    with pytest.raises(DataError, match=r"more of the 30 clients than it has rows \(the smallest class has 2\)"):
        partition("classes:2", np.repeat([0, 1, 2], [50, 50, 2]), 30, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1]], "has 1 parts, the fleet 2 clients"),
        ([[0, 1], []], "leaves 1 of 2 clients without a row, first of all client 1.*give each of them a row"),
        ([[], np.array([], dtype=int)], "leaves 2 of 2 clients without a row, first of all client 0"),
        ([[0, 1], [[2]]], r"shape \(1, 1\)"),
        ([[0.5], [1]], "Part 0 of the partition is float64"),
        ([[0, 1], [2, 5]], r"Part 1 of the partition holds row 5, but the data set has the rows 0\.\.4"),
        ([[0, -1], [2]], "Part 0 of the partition holds row -1"),
        ([[0, 1], [2, 1]], "names row 1 twice, for client 0 and for client 1"),
        ([[0], [2, 2]], "names row 2 twice, for client 1 and for client 1"),
    ],
)
def test_bad_partitions_of_the_user(rows, message):
    with pytest.raises(DataError, match=message):
        check_partition(rows, n_rows=5, clients=2)
