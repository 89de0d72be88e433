"""How smashed data and gradients cross the cut: as they are, or rounded to 16 bits on the way.

Each side computes in the precision of its weights. What it sends is rounded as it leaves, and widened where it arrives:

    sent = round(clamp(t, -largest, largest))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lanterne.learn import Task
from lanterne.protocol import Handler, Inbox, Local

Wire = Literal["exact", "float16", "bfloat16"]

_DTYPES: dict[Wire, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it is sent: to the nearest number of a type; what is beyond its largest, infinities too, is that.

    What is no number stays none.

    Args:
        tensor: of a wider type.
        dtype: of 16 bits.

    Examples:
        >>> narrowed(torch.tensor([1.0, 1e-9, -1e6]), torch.float16)
        tensor([ 1.0000e+00,  0.0000e+00, -6.5504e+04], dtype=torch.float16)
    """
    largest = torch.finfo(dtype).max
    return tensor.clamp(-largest, largest).to(dtype)


def over_the_wire(handlers: Mapping[str, Handler], wire: Wire, traffic: Mapping[str, str]) -> Mapping[str, Handler]:
    """Handlers that send smashed data and gradients narrowed, and widen what has come to them so.

    Doing it twice is doing it once. Labels, weights and what optimisers remember are sent as they are.

    Args:
        handlers: of both sides.
        wire: `exact` gives the handlers back.
        traffic: the category of each array, by which smashed data and gradients are known; `gradient_3` is a
            `gradient`.
    """
    if wire == "exact":
        return handlers
    dtype = _DTYPES[wire]

    def crosses(name: str, tensor: Tensor) -> bool:
        kind = traffic.get(re.sub(r"_\d+$", "", name), "")
        return tensor.is_floating_point() and kind.startswith(("act_", "grad_"))

    def wired(handler: Handler) -> Handler:
        def called(task: Task, state: dict[str, Tensor], inbox: Inbox, local: Local) -> Any:  # noqa: ANN401
            wide = _weights_dtype(state, inbox, local)
            arrays = {n: t.to(wide) if t.dtype == dtype else t for n, t in inbox.arrays.items()}
            state, out = handler(task, state, Inbox(arrays, inbox.config), local)
            return state, {n: narrowed(t, dtype) if crosses(n, t) else t for n, t in out.items()}

        return called

    return {name: wired(handler) for name, handler in handlers.items()}


def _weights_dtype(state: Mapping[str, Tensor], inbox: Inbox, local: Local) -> torch.dtype:
    """Of the weights at an address, or of those that come; without any it is the samples'."""
    w = state.get("w", inbox.get("w"))
    return local.x.dtype if w is None else w.dtype
