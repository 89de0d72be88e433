"""Where a model can be cut, what crosses the cut, and what each side of it holds and computes.

Between two blocks of a `LayerStack` there is always a cut: a residual block is one block, activations, poolings and
normalisations stand with the layer before them, and what opens a block never overwrites its input. So a cut is a plain
number of blocks with what follows from it, and each client may have its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import add, sub
from typing import Literal, NamedTuple, get_args

import torch

from lanterne.errors import ModelError
from lanterne.models.cost import BlockCost, block_costs
from lanterne.models.stack import LayerStack
from lanterne.models.view import ParamView, prefix, suffix
from lanterne.tree import Shape

Share = Literal["flops", "parameters"]

_NUMBER, _SHARE = re.compile(r"[0-9]{1,9}"), re.compile(r"[0-9]{0,9}\.?[0-9]{1,30}")


class Part(NamedTuple):
    """What one part of a cut model holds and computes, per sample.

    `forward` and `backward` are FLOPs. A backward pass is the gradient of the part's parameters, and of its input
    unless that is the data: so the parts' sum is what the uncut model costs.
    """

    parameters: int
    forward: float
    backward: float

    @property
    def flops(self) -> float:
        """FLOPs of a forward and a backward pass."""
        return self.forward + self.backward

    def plus(self, other: Part) -> Part:
        """Both parts together."""
        return Part(*map(add, self, other))

    def minus(self, other: Part) -> Part:
        """The rest when another part is taken out."""
        return Part(*map(sub, self, other))


@dataclass(frozen=True)
class Cut:
    """A cut behind a block: a plain value.

    Args:
        at: how many blocks the client holds.
        name: of the last of them.
        shape: of the smashed data of one sample.
        nbytes: of the smashed data of one sample, and of their gradient.
        client: what the client's half costs.
        server: what the server's half costs.
    """

    at: int
    name: str
    shape: Shape
    nbytes: int
    client: Part
    server: Part

    @property
    def floats(self) -> int:
        """How many numbers the smashed data of one sample are."""
        return math.prod(self.shape)

    def share(self, of: Share) -> float:
        """The client's share, between 0 and 1; the server's is the rest.

        Args:
            of: the `flops` of a forward and a backward pass, or the `parameters`.
        """
        return float(self._share(of))

    def _share(self, of: Share) -> Fraction:
        client, server = (Fraction(getattr(part, of)) for part in (self.client, self.server))
        return client / (client + server) if client + server else Fraction(0)

    def views(self, stack: LayerStack) -> tuple[ParamView, ParamView]:
        """The client's and the server's half of the model."""
        return prefix(stack, self.at), suffix(stack, self.at)

    def __str__(self) -> str:
        """Number, name, shape and shares, in a few words."""
        shares = ", ".join(f"{of}:{self.share(of):.3g}" for of in get_args(Share))
        return f"{self.at} {self.name!r} ({'x'.join(map(str, self.shape))}, {shares})"


@dataclass(frozen=True)
class UCut:
    """Two cuts, so that labels stay at home: a client holds head and tail, the server the body between them.

    Args:
        head: behind it the body begins; smashed data go up, their gradient comes down.
        tail: behind it the tail begins; the body's output comes down, its gradient goes up.

    Raises:
        ModelError: if there is no block between the cuts.
    """

    head: Cut
    tail: Cut

    def __post_init__(self) -> None:
        if self.head.at >= self.tail.at:
            raise ModelError(
                f"Between a cut behind block {self.head.name!r} and one behind {self.tail.name!r} "
                "no block is left for the server. Cut the tail off further back, or the head further in front."
            )

    @property
    def home(self) -> Part:
        """What head and tail cost together."""
        return self.head.client.plus(self.tail.server)

    @property
    def body(self) -> Part:
        """What the server's part costs."""
        return self.tail.client.minus(self.head.client)

    def views(self, stack: LayerStack) -> tuple[ParamView, ParamView, ParamView]:
        """Head, body and tail of the model."""
        return prefix(stack, self.head.at), stack.span(self.head.at, self.tail.at), suffix(stack, self.tail.at)


def legal_cuts(stack: LayerStack, dtype: torch.dtype = torch.float32) -> tuple[Cut, ...]:
    """All cuts of a model, from the first block on.

    Args:
        stack: the model.
        dtype: of its numbers, for the bytes.

    Returns:
        One cut behind each block but the last; none where there is one block only.

    Raises:
        ModelError: for a model that cannot be trained, or of which a block writes into its input.

    Examples:
        >>> from lanterne.models.zoo import build
        >>> for cut in legal_cuts(build("salf-mlp", (1, 28, 28), 10)):
        ...     print(cut)
        1 'hidden1' (32, flops:0.961, parameters:0.973)
        2 'hidden2' (16, flops:0.991, parameters:0.993)
    """
    costs = block_costs(stack, dtype)
    whole = _part(costs)
    cuts = []
    for at in range(1, len(stack)):
        client = _part(costs[:at])
        shape, nbytes = stack.output_shapes[at - 1], costs[at - 1].output
        cuts.append(Cut(at, stack.names[at - 1], shape, nbytes, client, whole.minus(client)))
    return tuple(cuts)


def _part(costs: Sequence[BlockCost]) -> Part:
    """What the first blocks cost; the gradient of the data is not computed."""
    return Part(
        sum(c.parameters for c in costs),
        sum(c.forward for c in costs),
        sum(c.weight_gradient for c in costs) + sum(c.input_gradient for c in costs[1:]),
    )


def find_cut(stack: LayerStack, where: int | str, among: Iterable[Cut] | None = None) -> Cut:
    """The cut that somebody means.

    Args:
        stack: the model.
        where: a number of blocks; the name of the last block that the client holds; or the client's share, as in
            `flops:0.25` or `parameters:0.5`, for the cut whose share is nearest (of two equally near the one with fewer
            blocks). A word that is the name of a block means it, even if it is a number.
        among: the cuts to choose from; all by default. Whoever asks for many clients passes `legal_cuts(stack)`, so
            that costs are derived once.

    Raises:
        ModelError: for a place where the model cannot be cut, with all where it can.

    Examples:
        >>> from lanterne.models.zoo import build
        >>> stack = build("resnet8", (3, 32, 32), 10)
        >>> find_cut(stack, "block1").at, find_cut(stack, 3).name, find_cut(stack, "flops:0.5").name
        (2, 'block2', 'block1')
    """
    cuts = legal_cuts(stack) if among is None else tuple(among)
    if not cuts:
        raise ModelError("A model of one block cannot be cut. Write its layers as children of one nn.Sequential.")
    if isinstance(where, str) and where not in stack.names:
        kind, colon, number = where.partition(":")
        if colon and kind in get_args(Share):
            wanted = _share(where, number, cuts)
            return min(cuts, key=lambda cut: (abs(cut._share(kind) - wanted), cut.at))  # type: ignore[arg-type]
        where = int(where) if _NUMBER.fullmatch(where) else where
    for cut in cuts:
        if (isinstance(where, str) and cut.name == where) or (type(where) is int and cut.at == where):
            return cut
    raise ModelError(f"{_why(stack, where)} {_legal(cuts)}")


def _share(word: str, number: str, cuts: Sequence[Cut]) -> Fraction:
    if not _SHARE.fullmatch(number) or Fraction(number) > 1:
        raise ModelError(f"{word!r} is no share of a model: it has to be a number from 0 to 1. {_legal(cuts)}")
    return Fraction(number)


def _why(stack: LayerStack, where: object) -> str:
    """Why there is no cut at a place."""
    if where in stack.names[:-1] or (type(where) is int and 0 < where < len(stack)):
        return f"The model can be cut at {where!r}, but that is not among the cuts to choose from."
    if isinstance(where, str):
        if where == stack.names[-1]:
            return f"{where!r} is the last block: behind it nothing is left for the server."
        child = stack._modules.get(where.partition(".")[0])
        for name, group in zip(stack.names, stack.groups, strict=True):
            if child in group:
                return f"{where!r} stands within block {name!r}, which is one piece."
        return f"There is no block {where!r}."
    if type(where) is int:
        return f"Of {len(stack)} blocks a client cannot hold {where}: both sides need at least one."
    return f"A cut is a number of blocks, a block's name or a share, not {where!r}."


def _legal(cuts: Sequence[Cut]) -> str:
    return f"Legal cuts: {'; '.join(map(str, cuts))}."


def find_u_cut(stack: LayerStack, head: int | str, tail: int | str, among: Iterable[Cut] | None = None) -> UCut:
    """The two cuts of a U-shaped split.

    Args:
        stack: the model.
        head: where the head ends, as in `find_cut`.
        tail: where the body ends, likewise: a number of blocks, a block's name or a share of all before it.
        among: the cuts to choose from; all by default.

    Raises:
        ModelError: for a place where the model cannot be cut, or cuts without a block between them, with all cuts.

    Examples:
        >>> from lanterne.models.zoo import build
        >>> u = find_u_cut(build("resnet8", (3, 32, 32), 10), "stem", "block3")
        >>> u.head.shape, u.tail.shape
        ((16, 32, 32), (64,))
    """
    cuts = legal_cuts(stack) if among is None else tuple(among)
    first, second = (find_cut(stack, where, cuts) for where in (head, tail))
    try:
        return UCut(first, second)
    except ModelError as error:
        raise ModelError(f"{error} {_legal(cuts)}") from None
