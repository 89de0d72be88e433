"""What no runtime can perform, and every one refuses in the same words."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from lanterne.data import Streams
from lanterne.errors import DataError, ProtocolError
from lanterne.models import LayerStack, batch_norms
from lanterne.protocol import Gather, Handler, Output, Request


def check_batches(stack: LayerStack, streams: Streams) -> None:
    """Refuse to train by the statistics of batches that have none: those of a single sample.

    Args:
        stack: the model.
        streams: the clients' batches.

    Raises:
        DataError: for a model with BatchNorm and batches of one, or a client that holds one sample.
    """
    names = batch_norms(stack)
    if not names:
        return
    why = f"layer {names[0]!r} normalises by the batch (BatchNorm), and one sample says nothing of the others"
    if streams.batch == 1:
        raise DataError(f"The batches hold one sample, but {why}. Use batches of 2 or more, or GroupNorm.")
    if streams.samples(streams.smallest) == 1:
        raise DataError(
            f"Client {streams.smallest} holds one sample, so that its batches are copies of it, but {why}. Use "
            "GroupNorm, or a partition in which everybody holds 2 samples or more (fewer clients, or another scheme)."
        )


def check_request(request: Request, handlers: Mapping[str, Handler], clients: int, known: Container[Request]) -> None:
    """Refuse what no runtime can perform.

    Args:
        request: to be dispatched.
        handlers: the algorithm's table.
        clients: how many there are.
        known: the requests under way.

    Raises:
        ProtocolError: for a request that was dispatched before, a handler or a client that is not there, an output of a
            request that is not under way, or a deadline for a server.
    """
    if request in known:
        raise ProtocolError(f"One request was dispatched twice: {request.handler!r} to {request.to}. Make a new one.")
    if request.handler not in handlers:
        raise ProtocolError(f"There is no handler {request.handler!r}; the table has {', '.join(handlers)}.")
    if isinstance(request.to, int) and not 0 <= request.to < clients:
        raise ProtocolError(f"There is no client {request.to}; the fleet has {clients}.")
    for name, array in request.arrays.items():
        if isinstance(array, Output) and array.request not in known:
            raise ProtocolError(
                f"{name!r} of {request.handler!r} is an output of a request that was not dispatched in this round."
            )
    if isinstance(request.to, tuple) and not math.isinf(request.deadline):
        raise ProtocolError(
            f"{request.handler!r} to {request.to} has a deadline, but only devices are cut off. "
            "Gather with a deadline and late='cancel' instead."
        )


def check_gather(gather: Gather, known: Container[Request]) -> None:
    """Refuse to wait for what is not under way.

    Raises:
        ProtocolError: for a request that was never dispatched, or had ended in an earlier round.
    """
    for request in gather.of or ():
        if request not in known:
            raise ProtocolError(
                f"{request.handler!r} to {request.to} was gathered but never dispatched, or had ended in an earlier "
                "round."
            )
