"""Both halves of a flat vector, and the vector of both halves."""

from __future__ import annotations

import torch
from torch import Tensor

from lanterne.models import Cut, LayerStack, UCut, prefix, suffix


def client_part(stack: LayerStack, cut: Cut | UCut, w: Tensor) -> Tensor:
    """A client's half of a flat vector: the head, and under a U-shaped cut the tail behind it.

    Args:
        stack: the model.
        cut: where it is cut.
        w: `[size]`.
    """
    if isinstance(cut, Cut):
        return prefix(stack, cut.at).take(w)
    return torch.cat([prefix(stack, cut.head.at).take(w), suffix(stack, cut.tail.at).take(w)])


def server_part(stack: LayerStack, cut: Cut | UCut, w: Tensor) -> Tensor:
    """A server's half of a flat vector.

    Args:
        stack: the model.
        cut: where it is cut.
        w: `[size]`.
    """
    if isinstance(cut, Cut):
        return suffix(stack, cut.at).take(w)
    return stack.span(cut.head.at, cut.tail.at).take(w)


def joined(stack: LayerStack, cut: Cut | UCut, client: Tensor, server: Tensor) -> Tensor:
    """The flat vector of both halves, `[size]`.

    Args:
        stack: the model.
        cut: where it is cut.
        client: as `client_part` gives it.
        server: as `server_part` gives it.
    """
    if isinstance(cut, Cut):
        return torch.cat([client, server])
    edge = prefix(stack, cut.head.at).size
    return torch.cat([client[:edge], server, client[edge:]])
