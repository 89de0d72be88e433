"""What split methods share: both halves of a cut model, exchanges across the cut, and who is waited for."""

from lanterne.split.halves import SLOTS, TRAFFIC, Exchange, Halves
from lanterne.split.local_loss import LocalLossMethod, LocalState
from lanterne.split.method import DEFAULT, ParallelMethod, SplitMethod, UShapedMethod
from lanterne.split.one_server import OneServer
from lanterne.split.parts import client_part, joined, server_part

__all__ = [
    "DEFAULT",
    "SLOTS",
    "TRAFFIC",
    "Exchange",
    "Halves",
    "LocalLossMethod",
    "LocalState",
    "OneServer",
    "ParallelMethod",
    "SplitMethod",
    "UShapedMethod",
    "client_part",
    "joined",
    "server_part",
]
