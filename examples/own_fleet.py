"""A fleet of one's own: from a table of devices, and device by device.

python examples/own_fleet.py
"""

from pathlib import Path

import lanterne
from lanterne.fleet import Device, Loaded

# One row a device. The devices of the class "straggler" are left out of the default deadline.
table = Path(__file__).with_name("own_fleet.csv")
result = lanterne.run(["salf", "fedavg"], fleet=str(table), clients=6, rounds=3)
print(result.table)

# The same from Python, where a device may also vary, go away, and break.
office = Device(flops=2e9, down=2e7, up=1e7, latency=0.01, tier="office")
night = Device(
    flops=5e8,
    down=5e6,
    up=1e6,
    latency=0.05,
    available=((0.0, 2.0), (4.0, 6.0)),  # seconds, and the pattern repeats every 6 s
    period=6.0,
    dropout=0.05,  # of its requests are lost in the middle of the work
    pace=Loaded(slowdown=4.0),  # other work leaves it a share of its speed, drawn each round from [1/4, 1]
    tier="straggler",
)
fleet = lanterne.Fleet([office] * 3 + [night] * 5, seed=7, detection=0.5, rejoin=1.0)
result = lanterne.run(["salf", "fedavg"], fleet=fleet, rounds=3)
print(result.table)
for entry in result.runs:
    print(entry["algorithm"], {name: round(value, 3) for name, value in entry["accuracy_by_class"].items()})
