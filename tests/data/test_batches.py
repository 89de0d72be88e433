from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lanterne import rng
from lanterne.data import Streams, batches
from lanterne.errors import DataError, ProtocolError

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def parts(counts: list[int]) -> list[np.ndarray]:
    bounds = np.cumsum([0, *counts])
    return [np.arange(low, high)[::-1] * 3 for low, high in pairwise(bounds)]


def stream_by_hand(rows: np.ndarray, seed: int, client: int, length: int) -> np.ndarray:
    """The definition, one epoch after the other."""
    epochs = -(-length // len(rows))
    orders = [rng.generator(seed, "batches", client, epoch).permutation(rows) for epoch in range(epochs)]
    return np.concatenate([rows[:0], *orders])[:length]


@given(sizes, st.integers(1, 50), st.integers(0, 2**40), st.data())
def test_rows_are_the_definition(counts, batch, seed, data):
    partition = parts(counts)
    client = data.draw(st.integers(0, len(counts) - 1))
    first, length = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 4))
    rows = Streams(partition, batch, seed).rows(client, range(first, first + length))
    assert rows.shape == (length, batch)
    assert rows.dtype == np.int64
    stream = stream_by_hand(partition[client], seed, client, (first + length) * batch)
    assert np.array_equal(rows.ravel(), stream[first * batch :])


@given(sizes, st.integers(1, 20), st.integers(0, 99))
def test_each_epoch_reads_each_row_once(counts, batch, seed):
    partition = parts(counts)
    streams = Streams(partition, batch, seed)
    for client, own in enumerate(partition):
        n = len(own)
        stream = streams.rows(client, range(batch * 2 if n > batch else 3 * n)).ravel()
        for epoch in range(stream.size // n):
            assert np.array_equal(np.sort(stream[epoch * n : (epoch + 1) * n]), np.sort(own))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 5)), min_size=1, max_size=25),
    st.integers(1, 12),
    st.integers(70, 400),
)
def test_spans_do_not_depend_on_history(spans, batch, kept):
    partition = parts([1, 7, 20, 33])
    streams = Streams(partition, batch, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_ROWS_KEPT", kept)  # so small that permutations are dropped all the time
        for client, first, length in spans:
            span = range(first, first + length)
            assert np.array_equal(streams.rows(client, span), Streams(partition, batch, seed=1).rows(client, span))
            held = [order for epochs in streams._kept.values() for order in epochs.values()]
            assert streams._kept_rows == sum(order.size + batches._OVERHEAD for order in held)
            assert len(streams._kept) <= 1 or streams._kept_rows <= kept
            assert all(len(epochs) <= 2 for epochs in streams._kept.values())


def test_seeds_clients_and_epochs_differ():
    streams = Streams([np.arange(100), np.arange(100)], batch=100, seed=0)
    first, second = streams.rows(0, range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, streams.rows(1, range(1))[0])
    assert not np.array_equal(first, Streams([np.arange(100)], batch=100, seed=1).rows(0, range(1))[0])


def test_the_caller_may_write_to_rows_and_partition():
    own = np.arange(10)
    streams = Streams([own], batch=10, seed=0)
    before = streams.rows(0, range(1)).copy()
    streams.rows(0, range(1))[:] = -1
    own[:] = -2
    assert np.array_equal(streams.rows(0, range(1)), before)
    assert np.array_equal(streams.rows(0, range(7, 8)) >= 0, np.ones((1, 10), dtype=bool))


def test_threads_read_the_same():
    partition = parts([50, 3, 20, 8])
    streams = Streams(partition, batch=16, seed=5)
    asked = [(step % 4, range(step // 4, step // 4 + 2)) for step in range(400)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda each: streams.rows(*each), asked))
    alone = Streams(partition, batch=16, seed=5)
    assert all(np.array_equal(rows, alone.rows(*each)) for rows, each in zip(got, asked, strict=True))


def test_sizes():
    streams = Streams(parts([4, 9]), batch=2, seed=0)
    assert (len(streams), streams.samples(0), streams.samples(1), streams.batch) == (2, 4, 9, 2)


@pytest.mark.parametrize(
    ("partition", "batch", "message"),
    [
        ([np.arange(3)], 0, "A batch of 0 rows"),
        ([np.arange(3), np.arange(0)], 2, "Client 1 has no rows"),
        ([np.arange(4).reshape(2, 2)], 2, r"Client 0 has no rows \(an array of shape \(2, 2\)\)"),
    ],
)
def test_bad_streams(partition, batch, message):
    with pytest.raises(DataError, match=message):
        Streams(partition, batch, seed=0)


@pytest.mark.parametrize("steps", [range(0, 4, 2), range(3, 0, -1), range(-1, 2)])
def test_bad_spans(steps):
    with pytest.raises(ProtocolError, match="not a span"):
        Streams([np.arange(3)], 2, seed=0).rows(0, steps)


@pytest.mark.parametrize("client", [-1, 1])
def test_no_such_client(client):
    streams = Streams([np.arange(3)], 2, seed=0)
    with pytest.raises(ProtocolError, match=f"no client {client}"):
        streams.rows(client, range(1))
    with pytest.raises(ProtocolError, match=f"no client {client}"):
        streams.samples(client)
