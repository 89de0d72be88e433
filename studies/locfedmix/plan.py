"""What the study compares: methods, fleets, problems; `small` is a part of `full`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lanterne.tree import Shape
from studies.harness.cells import Cell
from studies.harness.plan import Fleet, Method, Plan, Setting

#: Shares of a run's epochs at which a model is judged: dense where curves are steep, and in the last fifth, over which
#: means and trends are taken. 0 is the untrained model.
SHARES = (
    0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7,
    0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0,
)  # fmt: skip
#: Tuning looks at the end only.
TUNING_SHARES = (0.8, 0.9, 1.0)
#: The part of a run's epochs that tuning has.
TUNING = 4
#: With stragglers a server waits so many times as long as it would if nobody straggled.
PATIENCE = 1.5


def small_cnn(sample_shape: Shape, classes: int) -> nn.Sequential:
    """The CNN `avgpool-conv3x3(8)-pool-conv3x3(16)-pool-classes`; 3,962 parameters on CIFAR-10.

    Args:
        sample_shape: `(channels, height, width)`, images of at least 8x8.
        classes: how many.
    """
    channels, height, width = sample_shape
    return nn.Sequential(
        OrderedDict([
            ("shrink", nn.AvgPool2d(2)),
            ("conv1", nn.Conv2d(channels, 8, 3, padding=1)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(8, 16, 3, padding=1)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("output", nn.Linear(16 * (height // 8) * (width // 8), classes)),
        ])
    )  # fmt: skip


NETWORKS = {"small-cnn": small_cnn}


@dataclass(frozen=True)
class Competitor(Method):
    """A method of this study.

    Args:
        limit: which of its hyperparameters says how long its server waits for stragglers; None waits for everybody, or
            never waits.
        effort: how long it computes, in seconds of parallel split learning.
    """

    limit: str | None = None
    effort: float = 1.0


@dataclass(frozen=True)
class EdgeFleet:
    """Devices and a server at the edge: 100 MFLOP/s each, 10 GFLOP/s for the server, the links of the presets.

    Args:
        name: what tables call it.
        share: of the devices that straggle: other work leaves such a one between all and a tenth of its speed, drawn
            anew in each round.
    """

    name: str
    share: float

    @property
    def somebody_in_time(self) -> bool:
        """As long as somebody does not straggle."""
        return self.share < 1

    @property
    def numbers(self) -> dict[str, Any]:
        """The fleet as a preset of lanterne."""
        found: dict[str, Any] = {"kind": "uniform", "flops": 1e8, "server_flops": 1e10, "machines": 1}
        return {**found, "kind": "stragglers", "share": self.share, "slowdown": 10.0} if self.share else found


UNIFORM = EdgeFleet("no stragglers", 0.0)
QUARTER = EdgeFleet("25 % stragglers", 0.25)


@dataclass(frozen=True)
class EpochProblem:
    """A problem on which every method trains on equally many samples.

    Args:
        data: a folder of the study's data.
        model: of the zoo or of `NETWORKS`.
        partition: how rows are dealt to clients.
        clients: how many share the rows.
        epochs: samples that clients train on, in training rows.
        samples: training rows; all where it is None.
        tests: rows of the test split that models are judged on; all where it is None.
        seconds: about how long a cell of parallel split learning computes, on one core.
        batch: rows of a batch.
        local_steps: batches of a client in a round.
    """

    data: str
    model: str
    partition: str
    clients: int
    epochs: int
    samples: int | None
    tests: int | None = None
    seconds: float = 1.0
    batch: int = 10
    local_steps: int = 5
    tuned_on: Fleet = field(default=UNIFORM)

    @property
    def name(self) -> str:
        """What tables call it."""
        data = self.data if self.samples is None else f"{self.samples} images of {self.data}"
        return f"{data}, {self.partition}, {self.clients} clients"

    def cell(self, fleet: Fleet, method: Method, seed: int, lr: float, *, tuning: bool) -> Cell:
        """A cell of `studies.harness.epochs`."""
        assert isinstance(fleet, EdgeFleet)
        assert isinstance(method, Competitor)
        epochs = self.epochs / (TUNING if tuning else 1)
        settings = {
            "split": "validation" if tuning else "test",
            "problem": self.name,
            "fleet": fleet.name,
            "method": method.label,
            "lr": lr,
            "seed": seed,
            "algorithm": method.algorithm,
            "parameters": dict(method.parameters),
            "limit": method.limit if fleet.share else None,
            "patience": PATIENCE,
            "data": self.data,
            "samples": self.samples,
            "tests": self.tests,
            "model": self.model,
            "partition": self.partition,
            "clients": self.clients,
            "batch": self.batch,
            "local_steps": self.local_steps,
            "share": fleet.share,
            "fleet_numbers": fleet.numbers,
            "epochs": epochs,
            "shares": list(TUNING_SHARES if tuning else SHARES),
        }
        name = f"{'tuning, ' if tuning else ''}{self.name}, {fleet.name}, {method.label}, lr {lr:g}, seed {seed}"
        return Cell(name, settings, self.seconds * method.effort * epochs / self.epochs)


def _split(name: str, limit: str | None = None, effort: float = 1.0, **parameters: Any) -> Competitor:
    return Competitor(name, name, parameters, limit=limit, effort=effort)


LOCFEDMIX = _split("locfedmix_sl", "cut_deadline", 2.5, average_every=5)
METHODS = (
    LOCFEDMIX,
    _split("sl", effort=1.5),
    _split("psl", "cut_deadline"),
    _split("splitfed_v1", "round_deadline", 1.5),
    _split("splitfed_v2", "cut_deadline", 1.5),
    _split("locsplitfed", "round_deadline", 1.5),
    _split("cse_fsl", "round_deadline"),
    _split("fsl_sage", "round_deadline", 1.5),
    _split("sglr", "cut_deadline"),
    _split("gas", effort=1.5),
    _split("fedavg", effort=0.6),
)


def _ablated(label: str, change: Mapping[str, Any]) -> Competitor:
    parameters = {**LOCFEDMIX.parameters, **change}
    return Competitor(label, LOCFEDMIX.algorithm, parameters, limit=LOCFEDMIX.limit, effort=LOCFEDMIX.effort)


#: LocFedMix-SL without each of its three ingredients. Without all of them it would be `psl`.
ABLATED = (
    LOCFEDMIX,
    _ablated("without mixup", {"partners": 0}),
    _ablated("without the regulariser", {"gamma": 0.0}),
    _ablated("without averaging", {"average_every": 0}),
)

PARTITIONS = ("iid", "dirichlet:0.1")


def _mnist(partition: str, clients: int) -> EpochProblem:
    """An MLP on 2,000 images; many clients need more epochs until FedAvg has settled."""
    epochs = 40 if clients <= 10 else 60
    return EpochProblem("mnist", "mlp:widths=64-32", partition, clients, epochs, samples=2_000, seconds=6 * epochs / 60)


def _cifar(partition: str, clients: int) -> EpochProblem:
    """A small CNN on 1,000 images."""
    epochs = 60 if clients <= 10 else 120
    return EpochProblem(
        "cifar10", "small-cnn", partition, clients, epochs, samples=1_000, tests=2_000, seconds=12 * epochs / 120
    )


def _whole(data: str, partition: str, clients: int) -> EpochProblem:
    """All training images, with LeNet-5."""
    seconds = {"mnist": 600.0, "cifar10": 1500.0}[data]
    return EpochProblem(data, "lenet", partition, clients, 20, samples=None, seconds=seconds, local_steps=25)


EXTREMES = (4, 40)
SMALL = Plan(
    (
        *(Setting(make(p, n), UNIFORM) for make in (_mnist, _cifar) for p in PARTITIONS for n in EXTREMES),
        *(Setting(make("dirichlet:0.1", n), QUARTER) for make in (_mnist, _cifar) for n in EXTREMES),
    ),
    METHODS,
)
#: The ablation asks what each ingredient is worth, where clients are many and unlike.
SMALL_ABLATION = Plan(
    tuple(Setting(make("dirichlet:0.1", 40), UNIFORM) for make in (_mnist, _cifar)),
    ABLATED,
)

_ALL_CLIENTS = (4, 10, 20, 40)
FULL = Plan(
    (
        *(
            Setting(make(p, n), fleet)
            for make in (_mnist, _cifar)
            for p in PARTITIONS
            for n in _ALL_CLIENTS
            for fleet in (UNIFORM, QUARTER)
        ),
        *(
            Setting(_whole(data, p, n), fleet)
            for data in ("mnist", "cifar10")
            for p in PARTITIONS
            for n in _ALL_CLIENTS
            for fleet in (UNIFORM, QUARTER)
        ),
    ),
    METHODS,
)
FULL_ABLATION = Plan(
    tuple(Setting(make(p, n), UNIFORM) for make in (_mnist, _cifar) for p in PARTITIONS for n in EXTREMES),
    ABLATED,
)

#: The race and the ablation of each size. LocFedMix-SL's own cells are the same in both.
SIZES = {"small": (SMALL, SMALL_ABLATION), "full": (FULL, FULL_ABLATION)}
