"""Devices and time: numbers only, no tensors."""

from lanterne.fleet.adel import adel_deadlines, empty_layers, round_weights
from lanterne.fleet.classes import Classes, Windows
from lanterne.fleet.device import Device, Draw, Pace, Work
from lanterne.fleet.fleet import Fleet, Server
from lanterne.fleet.pace import ExponentialLayers, Loaded, NormalTime, Slower, SometimesSlower, UniformDepth
from lanterne.fleet.presets import PRESETS, preset
from lanterne.fleet.table import COLUMNS, FLEET_WIDE, read_table
from lanterne.fleet.timing import Job, Timing, reach, timing

__all__ = [
    "COLUMNS",
    "FLEET_WIDE",
    "PRESETS",
    "Classes",
    "Device",
    "Draw",
    "ExponentialLayers",
    "Fleet",
    "Job",
    "Loaded",
    "NormalTime",
    "Pace",
    "Server",
    "Slower",
    "SometimesSlower",
    "Timing",
    "UniformDepth",
    "Windows",
    "Work",
    "adel_deadlines",
    "empty_layers",
    "preset",
    "reach",
    "read_table",
    "round_weights",
    "timing",
]
