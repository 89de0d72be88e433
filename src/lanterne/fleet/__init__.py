"""Devices and time: numbers only, no tensors."""

from lanterne.fleet.adel import adel_deadlines, empty_layers, round_weights
from lanterne.fleet.device import Device, Draw, Pace, Work
from lanterne.fleet.fleet import Classes, Fleet, Server
from lanterne.fleet.pace import ExponentialLayers, Loaded, Slower, SometimesSlower, UniformDepth
from lanterne.fleet.presets import PRESETS, preset
from lanterne.fleet.table import read_table
from lanterne.fleet.timing import Job, Timing, reach, timing

__all__ = [
    "PRESETS",
    "Classes",
    "Device",
    "Draw",
    "ExponentialLayers",
    "Fleet",
    "Job",
    "Loaded",
    "Pace",
    "Server",
    "Slower",
    "SometimesSlower",
    "Timing",
    "UniformDepth",
    "Work",
    "adel_deadlines",
    "empty_layers",
    "preset",
    "reach",
    "read_table",
    "round_weights",
    "timing",
]
