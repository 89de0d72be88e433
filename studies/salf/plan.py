"""What the study compares: methods, fleets, problems; `small` is a part of `full`."""

from __future__ import annotations

from studies.harness.plan import Method, Plan, Problem, Setting, StragglerFleet

METHODS = (
    Method("fedavg", "fedavg"),
    Method("drop", "drop", equals_fedavg=True),
    Method("fedprox", "fedprox"),
    Method("timelyfl", "timelyfl", equals_fedavg=True),
    Method("fedasync", "fedasync"),
    Method("fedbuff", "fedbuff"),
    Method("salf", "salf", {"rule": "paper"}, equals_fedavg=True),
    Method("salf-cond", "salf", {"rule": "cond"}, equals_fedavg=True),
    Method("salf-code", "salf", {"rule": "code"}, equals_fedavg=True),
    Method("salf-ht", "salf", {"rule": "ht"}, equals_fedavg=True),
)

NONE = StragglerFleet("no stragglers", 0.0)
HALF = StragglerFleet("50 % stragglers", 0.5)
NINETY = StragglerFleet("90 % stragglers", 0.9)
HALF_NEVER = StragglerFleet("50 % that never finish", 0.5, finish=False)
NINETY_NEVER = StragglerFleet("90 % that never finish", 0.9, finish=False)

# Seconds are those of one core of the machine on which the study was planned.
MLP_IID = Problem("mnist", "salf-mlp", "iid", 600, NINETY, seconds=6)
MLP_SHARDS = Problem("mnist", "salf-mlp", "shards:2", 600, NINETY, seconds=6)
MLP_BY_SPEED = Problem("mnist", "salf-mlp", "by-speed", 600, HALF, seconds=6)
MLP_STEPS = Problem("mnist", "salf-mlp", "shards:2", 120, NINETY, local_steps=5, seconds=6)
CNN_IID = Problem("mnist", "salf-cnn", "iid", 400, NINETY, seconds=20)
CNN_SHARDS = Problem("mnist", "salf-cnn", "shards:2", 400, NINETY, seconds=20)
CIFAR_PART = Problem("cifar10", "salf-cnn", "shards:2", 400, NINETY, samples=10_000, seconds=33)
CIFAR_IID = Problem("cifar10", "salf-cnn", "iid", 3000, NINETY, seconds=210)
CIFAR_SHARDS = Problem("cifar10", "salf-cnn", "shards:2", 3000, NINETY, seconds=210)
VGG = Problem("cifar10", "vgg11", "iid", 100, NINETY, seconds=1250)

SMALL = Plan(
    (
        *(Setting(MLP_IID, fleet) for fleet in (NONE, NINETY)),
        *(Setting(MLP_SHARDS, fleet) for fleet in (NONE, NINETY, NINETY_NEVER)),
        *(Setting(MLP_STEPS, fleet) for fleet in (NONE, NINETY)),
        *(Setting(MLP_BY_SPEED, fleet) for fleet in (NONE, HALF, HALF_NEVER)),
        *(Setting(CNN_SHARDS, fleet) for fleet in (NONE, NINETY)),
        *(Setting(CIFAR_PART, fleet) for fleet in (NONE, NINETY)),
    ),
    METHODS,
)

FULL = Plan(
    (
        *(Setting(MLP_IID, fleet) for fleet in (NONE, HALF, NINETY, NINETY_NEVER)),
        *(Setting(MLP_SHARDS, fleet) for fleet in (NONE, HALF, NINETY, NINETY_NEVER)),
        *(Setting(MLP_STEPS, fleet) for fleet in (NONE, HALF, NINETY)),
        *(Setting(MLP_BY_SPEED, fleet) for fleet in (NONE, HALF, NINETY, HALF_NEVER, NINETY_NEVER)),
        *(Setting(CNN_IID, fleet) for fleet in (NONE, HALF, NINETY)),
        *(Setting(CNN_SHARDS, fleet) for fleet in (NONE, HALF, NINETY, NINETY_NEVER)),
        *(Setting(CIFAR_PART, fleet) for fleet in (NONE, HALF, NINETY)),
        *(Setting(CIFAR_IID, fleet) for fleet in (NONE, HALF, NINETY)),
        *(Setting(CIFAR_SHARDS, fleet) for fleet in (NONE, HALF, NINETY)),
        *(Setting(VGG, fleet) for fleet in (NONE, NINETY)),
    ),
    METHODS,
)

SIZES = {"small": SMALL, "full": FULL}
