"""What the study compares: methods, fleets, problems; `small` is a part of `full`."""

from __future__ import annotations

from studies.harness.plan import Method, Plan, Setting, StragglerFleet, TimedProblem

METHODS = (
    Method("fedavg", "fedavg"),
    Method("drop", "drop", without_stragglers="fedavg"),
    # Its term pulls towards where the first step starts.
    Method("fedprox", "fedprox", with_one_step="drop"),
    Method("timelyfl", "timelyfl", without_stragglers="fedavg"),
    Method("fedasync", "fedasync"),
    Method("fedbuff", "fedbuff"),
    Method("salf", "salf", {"rule": "paper"}, without_stragglers="fedavg"),
    # Where somebody is in time in every round no layer can be missed: p = 0, and the paper's factor is 1.
    Method("salf-cond", "salf", {"rule": "cond"}, without_stragglers="fedavg", with_somebody_in_time="salf"),
    Method("salf-code", "salf", {"rule": "code"}, without_stragglers="fedavg"),
    Method("salf-ht", "salf", {"rule": "ht"}, without_stragglers="fedavg"),
)

NONE = StragglerFleet("no stragglers", 0.0)
HALF = StragglerFleet("50 % stragglers", 0.5)
NINETY = StragglerFleet("90 % stragglers", 0.9)
HALF_NEVER = StragglerFleet("50 % that never finish", 0.5, finish=False)
NINETY_NEVER = StragglerFleet("90 % that never finish", 0.9, finish=False)
#: The clock of SALF's theory with T = m: one client in twelve gets through three layers in time.
EVERYBODY = StragglerFleet("everybody straggles", 1.0, exponential=1.0)

# Seconds are those of one core of the machine on which the study was planned.
MLP_IID = TimedProblem("mnist", "salf-mlp", "iid", 1000, NINETY, seconds=10)
MLP_SHARDS = TimedProblem("mnist", "salf-mlp", "shards:2", 800, NINETY, seconds=9)
MLP_BY_SPEED = TimedProblem("mnist", "salf-mlp", "by-speed", 800, HALF, seconds=10)
MLP_STEPS = TimedProblem("mnist", "salf-mlp", "shards:2", 480, NINETY, local_steps=5, seconds=13)
CNN_IID = TimedProblem("mnist", "salf-cnn", "iid", 600, NINETY, seconds=33)
CNN_SHARDS = TimedProblem("mnist", "salf-cnn", "shards:2", 600, NINETY, seconds=33)
CIFAR_PART = TimedProblem("cifar10", "salf-cnn", "shards:2", 400, NINETY, samples=5_000, seconds=34)
CIFAR_IID = TimedProblem("cifar10", "salf-cnn", "iid", 3000, NINETY, seconds=210)
CIFAR_SHARDS = TimedProblem("cifar10", "salf-cnn", "shards:2", 3000, NINETY, seconds=210)
# To judge this model takes as long as three rounds of it.
VGG = TimedProblem("cifar10", "vgg11", "iid", 60, NINETY, seconds=480, times=(0.1, 0.25, 0.4, 0.6, 0.8, 0.9, 1.0))

SMALL = Plan(
    (
        *(Setting(MLP_IID, fleet) for fleet in (NONE, NINETY)),
        *(Setting(MLP_SHARDS, fleet) for fleet in (NONE, NINETY, NINETY_NEVER, EVERYBODY)),
        *(Setting(MLP_STEPS, fleet) for fleet in (NONE, NINETY)),
        *(Setting(MLP_BY_SPEED, fleet) for fleet in (NONE, HALF, HALF_NEVER)),
        *(Setting(CNN_SHARDS, fleet) for fleet in (NONE, NINETY)),
        *(Setting(CIFAR_PART, fleet) for fleet in (NONE, NINETY)),
    ),
    METHODS,
)

FULL = Plan(
    (
        *(Setting(MLP_IID, fleet) for fleet in (NONE, HALF, NINETY, NINETY_NEVER, EVERYBODY)),
        *(Setting(MLP_SHARDS, fleet) for fleet in (NONE, HALF, NINETY, NINETY_NEVER, EVERYBODY)),
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
