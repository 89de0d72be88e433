"""What holds for every test: nothing leaves this machine, nothing is left to chance, two workers share two cores."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def _loopback_only(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuses every socket of Python's that would reach, or be reached from, another machine."""
    if event not in {"socket.connect", "socket.bind", "socket.sendto"} or not isinstance(arguments[1], tuple):
        return
    host = str(arguments[1][0])
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise PermissionError(f"tests stay on the loopback interface, but {event} was called with {arguments[1]}")


sys.addaudithook(_loopback_only)
