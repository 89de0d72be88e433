"""Files in the form of FedScale's two traces."""

from __future__ import annotations

import pickle
from pathlib import Path

#: Entries that are published: one of the capacity file, and some of the behaviour file.
CAPACITY = {
    432802: {"computation": 162.0, "communication": 5648.109619499134},
    7: {"computation": 81, "communication": 8000.0},
    "nine": {"computation": 40.5, "communication": 1},
}
BEHAVIOUR = {
    3834: {
        "duration": 211625,
        "inactive": [65881, 133574, 208292, 276575, 295006, 356236, 400906, 475099],
        "finish_time": 518400,
        "active": [12788, 100044, 188992, 271372, 276663, 352625, 356267, 441193],
        "model": "CPH1801",
    },
    107740: {
        "duration": 1,
        "inactive": [88494, 93284],
        "finish_time": 518400,
        "active": [88494, 93283],
        "model": "SM-G611MT",
    },
    107743: {"duration": 1, "inactive": [1], "finish_time": 259200, "active": [0], "model": "moto g(7) play"},
}


def written(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path
