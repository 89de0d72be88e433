"""Who performs the effects: a virtual clock, a real one, and the executors that compute."""

from lanterne.runtime.batched import Batched
from lanterne.runtime.choose import EXECUTORS, choose_executor
from lanterne.runtime.in_process import InProcess
from lanterne.runtime.job import Executor, Job
from lanterne.runtime.ledger import Account, Ledger
from lanterne.runtime.loop import Loop, one_thread
from lanterne.runtime.simulator import Simulator
from lanterne.runtime.snapshot import restore, snapshot

__all__ = [
    "EXECUTORS",
    "Account",
    "Batched",
    "Executor",
    "InProcess",
    "Job",
    "Ledger",
    "Loop",
    "Simulator",
    "choose_executor",
    "one_thread",
    "restore",
    "snapshot",
]
