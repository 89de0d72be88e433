"""What split methods share: both halves of a cut model, exchanges across the cut, and who is waited for."""

from lanterne.split.buffered import BufferedServer, scaled
from lanterne.split.halves import SLOTS, TRAFFIC, Answer, Arrays, Exchange, Halves
from lanterne.split.local_loss import LocalLossMethod, LocalState
from lanterne.split.method import DEFAULT, ParallelMethod, SplitMethod, UShapedMethod
from lanterne.split.mixing import SERVER, LateComer, MixingMethod
from lanterne.split.one_server import OneServer
from lanterne.split.parts import client_part, joined, server_part
from lanterne.split.regularised import RegularisedClient, RegularisedMethod

__all__ = [
    "DEFAULT",
    "SERVER",
    "SLOTS",
    "TRAFFIC",
    "Answer",
    "Arrays",
    "BufferedServer",
    "Exchange",
    "Halves",
    "LateComer",
    "LocalLossMethod",
    "LocalState",
    "MixingMethod",
    "OneServer",
    "ParallelMethod",
    "RegularisedClient",
    "RegularisedMethod",
    "SplitMethod",
    "UShapedMethod",
    "client_part",
    "joined",
    "scaled",
    "server_part",
]
