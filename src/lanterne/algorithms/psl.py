"""Parallel split learning: all clients at once, one server half, one step of it for every batch; no weights move.

As Pal, Uniyal, Park, Vepakomma, Raskar, Bennis, Jeon, Choi, "Server-Side Local Gradient Averaging and Learning Rate
Acceleration for Scalable Split Learning", arXiv 2112.05929, section 2.2, describe it (equation 4: one loss per client).

    s_i = f_c(x_i; w_ci);   L_i = loss(f_s(s_i; w_s), y_i);   g_i = dL_i / ds_i
    w_s' = w_s - eta_s sum_i delta_i dL_i / dw_s;             w_ci' = w_ci - eta_c J_i^T g_i
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lanterne.split import OneServer


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))
class PSL(OneServer):
    """Parallel split learning. Clients' halves part, and the model that is judged is each of them with the server's.

    With a cut for each class of devices the server's half begins at the shallowest; whoever holds more is served by
    what stands behind its own cut.

    All of it is what the methods have in common that build on it: `lanterne.split.one_server`.

    Examples:
        >>> from torch import nn
        >>> from lanterne.models import LayerStack
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> PSL(stack=LayerStack(net, (4,)), quorum=5).place.at
        1
    """

    one_cut: ClassVar[str] = ""
