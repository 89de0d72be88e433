"""The synthetic federated data of FedProx: every client has its own model of labels and its own inputs.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020,
arXiv 1812.06127, section 5.1. The sizes, and the reading of alpha and beta as standard deviations, which the paper
leaves open, are those of its authors' code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lanterne import rng
from lanterne.data.columns import Split
from lanterne.errors import DataError

INPUTS, CLASSES = 60, 10
_SPREAD = np.arange(1, INPUTS + 1) ** -1.2  # the diagonal of Sigma
_TRAINED = 0.9  # the share of a client's samples that it trains on


class Client(NamedTuple):
    """What one client's data is drawn from, and the data.

    Args:
        u: around which its model is drawn.
        B: around which the mean of its inputs is drawn.
        v: that mean, `[60]`.
        W: its model, `[10, 60]`.
        b: its model's offset, `[10]`.
        x: its inputs, float32, `[samples, 60]`.
        y: their labels, int64, `[samples]`.
    """

    u: float
    B: float
    v: NDArray[np.float64]
    W: NDArray[np.float64]
    b: NDArray[np.float64]
    x: NDArray[np.float32]
    y: NDArray[np.int64]


def synthetic(spec: str, clients: int, seed: int) -> tuple[Split, Split]:
    """`synthetic(alpha, beta)`, or its IID form, divided into nine tenths of each client to train on and the rest.

    Args:
        spec: `"ALPHA,BETA"` or `"iid"`.
        clients: how many clients there are.
        seed: what the data depends on; a client's does not depend on how many others there are.

    Returns:
        The rows to train on and those to judge by, with the number of the client whom each belongs to.

    Raises:
        DataError: alpha or beta that are not numbers from 0 on.
    """
    parameters = _parse(spec)
    train, test = [], []
    for number in range(clients):
        client = make_client(parameters, number, seed)
        cut = int(_TRAINED * len(client.y))
        train.append((client.x[:cut], client.y[:cut]))
        test.append((client.x[cut:], client.y[cut:]))
    return _joined(train), _joined(test)


def make_client(parameters: tuple[float, float] | None, number: int, seed: int) -> Client:
    """One client of `synthetic(alpha, beta)`.

        u ~ N(0, alpha),  W, b ~ N(u, 1);    B ~ N(0, beta),  v_j ~ N(B, 1),  x ~ N(v, Sigma),  Sigma_jj = j^(-1.2)
        y = argmax softmax(W x + b)
        samples = 50 + floor(s),  ln s ~ N(4, 2)

    with `N(mean, standard deviation)` but for `Sigma`, a covariance. In the IID form all clients share one model,
    `W, b ~ N(0, 1)`, and `v = 0`.

    Args:
        parameters: `(alpha, beta)`, or None for the IID form.
        number: of the client, from 0.
        seed: what the data depends on.
    """
    own = rng.generator(seed, "synthetic", number)
    samples = 50 + int(own.lognormal(4, 2))
    u, B, v = 0.0, 0.0, np.zeros(INPUTS)
    model = rng.generator(seed, "synthetic model")
    if parameters is not None:
        alpha, beta = parameters
        u, B, model = float(own.normal(0, alpha)), float(own.normal(0, beta)), own
        v = own.normal(B, 1, INPUTS)
    W, b = model.normal(u, 1, (CLASSES, INPUTS)), model.normal(u, 1, CLASSES)
    x = own.normal(v, np.sqrt(_SPREAD), (samples, INPUTS)).astype(np.float32)
    # Softmax does not change which output is the largest.
    return Client(u, B, v, W, b, x, (x @ W.T + b).argmax(axis=1))


def _parse(spec: str) -> tuple[float, float] | None:
    if spec == "iid":
        return None
    try:
        alpha, beta = map(float, spec.split(","))
    except ValueError:
        alpha = beta = math.nan
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
        raise DataError(
            f"The data set 'synthetic:{spec}' needs two numbers from 0 on: alpha, how much the clients' models differ, "
            "and beta, how much their inputs do. Write for instance 'synthetic:1,1', or 'synthetic:iid'."
        )
    return alpha, beta


def _joined(parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> Split:
    owner = np.repeat(np.arange(len(parts)), [len(y) for _, y in parts])
    return Split(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), CLASSES, owner)
