import numpy as np
import pytest
import torch
from scipy import stats

from lanterne.data import load, partition, synthetic
from lanterne.data.synthetic import make_client

MANY = range(300)


def residuals(client: synthetic.Client) -> np.ndarray:
    return client.x - client.v


def test_labels_are_the_argmax_of_the_clients_own_model():
    for number in range(5):
        client = make_client((1.0, 1.0), number, 0)
        for x, y in zip(client.x[:100], client.y, strict=False):
            logits = [sum(client.W[k, j] * x[j] for j in range(60)) + client.b[k] for k in range(10)]
            softmax = np.exp(logits) / np.exp(logits).sum()
            assert y == max(range(10), key=lambda k: softmax[k])


def test_inputs_have_the_covariance_of_the_paper():
    rows = np.concatenate([residuals(make_client((1.0, 1.0), number, 0)) for number in MANY]).astype(np.float64)
    expected = np.arange(1, 61) ** -1.2
    assert len(rows) > 50_000
    assert np.allclose(rows.mean(0), 0, atol=5 * np.sqrt(expected / len(rows)).max())
    # The standard error of a variance is its sqrt(2 / n), of a correlation that of 1 / n.
    assert np.abs(rows.var(0) / expected - 1).max() < 5 * np.sqrt(2 / len(rows))
    assert np.abs(np.corrcoef(rows.T) - np.eye(60)).max() < 5.5 / np.sqrt(len(rows))
    assert stats.kstest(rows[:2000, 7] / np.sqrt(8**-1.2), "norm").pvalue > 0.001


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.0, 2.0)])
def test_models_and_means_are_drawn_around_those_of_the_client(alpha, beta):
    clients = [make_client((alpha, beta), number, 1) for number in MANY]
    for each, deviation in (([c.u for c in clients], alpha), ([c.B for c in clients], beta)):
        if not deviation:
            assert not any(each)
        else:
            assert stats.kstest(np.array(each) / deviation, "norm").pvalue > 0.001
    for drawn in (
        np.concatenate([(c.W - c.u).ravel() for c in clients]),
        np.concatenate([c.b - c.u for c in clients]),
        np.concatenate([c.v - c.B for c in clients]),
    ):
        assert stats.kstest(drawn, "norm").pvalue > 0.001


def test_sizes_are_lognormal_and_at_least_fifty():
    sizes = np.array([len(make_client((0.0, 0.0), number, 0).y) for number in range(1000)])
    assert sizes.min() >= 50
    # Rounded down, the tail is still that of exp(N(4, 2)): compare where a whole is small beside it.
    beyond = sizes[sizes >= 80] - 50
    edge = stats.norm.cdf(np.log(30), 4, 2)
    assert abs(len(beyond) / 1000 - (1 - edge)) < 0.05
    conditional = (stats.norm.cdf(np.log(beyond + 0.5), 4, 2) - edge) / (1 - edge)
    assert stats.kstest(conditional.clip(0, 1), "uniform").pvalue > 0.001


def test_the_iid_form_has_one_model_and_one_distribution():
    clients = [make_client(None, number, 0) for number in range(30)]
    assert all(np.array_equal(c.W, clients[0].W) and np.array_equal(c.b, clients[0].b) for c in clients)
    assert all(not c.v.any() for c in clients)
    assert not np.array_equal(clients[0].x[:40], clients[1].x[:40])
    different = [make_client((0.0, 0.0), number, 0) for number in range(2)]
    assert not np.array_equal(different[0].W, different[1].W)  # (0, 0) is not IID


def test_each_client_trains_on_nine_tenths_of_its_rows_and_is_judged_on_the_rest():
    data = load("synthetic:1,1", clients=7)
    assert (data.name, data.classes, data.sample_shape, data.x.dtype) == ("synthetic:1,1", 10, (60,), torch.float32)
    rows = partition("natural", data.y, 7, 0, owner=data.owner)
    for number, own in enumerate(rows):
        client, n = make_client((1.0, 1.0), number, 0), len(own)
        assert n == int(0.9 * len(client.y))
        assert np.array_equal(data.x[own].numpy(), client.x[:n])  # as drawn: nothing is normalised
        assert np.array_equal(data.y[own].numpy(), client.y[:n])
        held = data.test_owner == number
        assert np.array_equal(data.test_x[held].numpy(), client.x[n:])
        assert np.array_equal(data.test_y[held].numpy(), client.y[n:])
    assert sum(map(len, rows)) == len(data)


def test_a_client_is_the_same_among_any_number_of_others():
    few, many = load("synthetic:0.5,0.5", clients=3), load("synthetic:0.5,0.5", clients=9)
    assert torch.equal(few.x, many.x[: len(few)])
    assert torch.equal(few.y, many.y[: len(few)])
    assert not torch.equal(few.x[:40], load("synthetic:0.5,0.5", clients=3, seed=1).x[:40])
