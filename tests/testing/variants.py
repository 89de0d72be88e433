"""Every algorithm in the variants in which it has to conform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lanterne.algorithms import ALGORITHMS, FedAvg
from lanterne.models import LayerStack

VARIANTS: dict[str, Callable[[LayerStack], Any]] = {
    "fedavg": lambda s: FedAvg(stack=s, lr=0.3),
    "fedavg, momentum kept": lambda s: FedAvg(stack=s, lr=0.3, local_steps=2, momentum=0.5, keep_momentum=True),
    "fedavg, three invited": lambda s: FedAvg(stack=s, lr=0.3, cohort=3),
    "drop": lambda s: ALGORITHMS["drop"](stack=s, lr=0.3, deadline=0.06),
    "drop, code": lambda s: ALGORITHMS["drop"](stack=s, lr=0.3, deadline=0.06, rule="code"),
    "fedbuff": lambda s: ALGORITHMS["fedbuff"](stack=s, lr=0.3, buffer=2),
    "fedbuff, two at work": lambda s: ALGORITHMS["fedbuff"](stack=s, lr=0.3, buffer=3, cohort=2, max_staleness=1),
    "fedprox": lambda s: ALGORITHMS["fedprox"](stack=s, lr=0.3, mu=0.5, local_steps=3, momentum=0.5),
    "fedprox, deadline": lambda s: ALGORITHMS["fedprox"](
        stack=s, lr=0.3, mu=0.5, local_steps=3, momentum=0.5, keep_momentum=True, deadline=0.025
    ),
    "fednova": lambda s: ALGORITHMS["fednova"](stack=s, lr=0.3, local_steps=2, momentum=0.5),
    "fednova, deadline": lambda s: ALGORITHMS["fednova"](stack=s, lr=0.3, local_steps=3, deadline=0.025),
    "fednova, by samples": lambda s: ALGORITHMS["fednova"](stack=s, lr=0.3, samples_per_step=3.0, momentum=0.5),
    "scaffold": lambda s: ALGORITHMS["scaffold"](stack=s, lr=0.3, local_steps=2),
    "scaffold, gradient": lambda s: ALGORITHMS["scaffold"](
        stack=s, lr=0.3, local_steps=2, control="gradient", cohort=3
    ),
    "fedopt, momentum": lambda s: ALGORITHMS["fedopt"](stack=s, lr=0.3, server="momentum", cohort=4),
    "fedopt, adagrad": lambda s: ALGORITHMS["fedopt"](stack=s, lr=0.3, server="adagrad", momentum=0.5),
    "fedopt, adam": lambda s: ALGORITHMS["fedopt"](stack=s, lr=0.3, server="adam"),
    "fedopt, yogi": lambda s: ALGORITHMS["fedopt"](stack=s, lr=0.3, server="yogi", keep_momentum=True, momentum=0.5),
    "overselect": lambda s: ALGORITHMS["overselect"](stack=s, lr=0.3, cohort=3),
    "overselect, all invited": lambda s: ALGORITHMS["overselect"](stack=s, lr=0.3, factor=2.0, momentum=0.5),
    "fedasync": lambda s: ALGORITHMS["fedasync"](stack=s, lr=0.3),
    "fedasync, hinge, two at work": lambda s: ALGORITHMS["fedasync"](
        stack=s,
        lr=0.3,
        cohort=2,
        staleness="hinge",
        hinge_start=0,
        max_staleness=1,
        local_steps=2,
        momentum=0.5,
        keep_momentum=True,
        proximal=0.1,
    ),
    "timelyfl": lambda s: ALGORITHMS["timelyfl"](stack=s, lr=0.3),
    "timelyfl, four sampled": lambda s: ALGORITHMS["timelyfl"](
        stack=s, lr=0.3, local_steps=2, momentum=0.5, cohort=4, target=0.8, partial="share", max_epochs=2
    ),
    "timelyfl, probe": lambda s: ALGORITHMS["timelyfl"](stack=s, lr=0.3, local_steps=2, estimate="probe"),
    "salf without a deadline": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3),
    "salf": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3, deadline=0.02),
    "salf, three steps": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3, deadline=0.02, local_steps=3),
    "salf, cond, momentum kept": lambda s: ALGORITHMS["salf"](
        stack=s, lr=0.3, deadline=0.05, rule="cond", local_steps=3, momentum=0.5, keep_momentum=True, by_steps=True
    ),
    "salf, code": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3, deadline=0.02, rule="code", upload="after"),
    "salf, ht, empirical": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3, deadline=0.02, rule="ht", p="empirical"),
    "salf, a deadline for each round": lambda s: ALGORITHMS["salf"](stack=s, lr=0.3, deadline=(0.02, 0.06, 0.03)),
    "drop, a deadline for each round": lambda s: ALGORITHMS["drop"](stack=s, lr=0.3, deadline=(0.05, 0.03, 0.06)),
    "sl": lambda s: ALGORITHMS["sl"](stack=s, lr=0.3),
    "sl, the optimiser handed on, U": lambda s: ALGORITHMS["sl"](
        stack=s, lr=0.3, tail=2, local_steps=2, momentum=0.5, handoff="optimiser", order="ascending", cohort=4
    ),
    "psl": lambda s: ALGORITHMS["psl"](stack=s, lr=0.3, local_steps=2, momentum=0.5),
    "psl, pooled, quorum": lambda s: ALGORITHMS["psl"](
        stack=s, lr=0.3, cut=2, cut_gradient="pooled", weights="equal", quorum=3, cohort=5
    ),
    "psl, deadline": lambda s: ALGORITHMS["psl"](stack=s, lr=0.3, cut_deadline=0.02, server_lr=0.1),
    "psl, a cut for each class": lambda s: ALGORITHMS["psl"](
        stack=s, lr=0.3, cut={"default": 2, "device": 1}, local_steps=2, momentum=0.5
    ),
    "psl, quorum, late ones served": lambda s: ALGORITHMS["psl"](
        stack=s, lr=0.3, quorum=2, local_steps=2, late="serve", momentum=0.5
    ),
    "psl, deadline, late ones served": lambda s: ALGORITHMS["psl"](
        stack=s, lr=0.3, cut_deadline=0.02, late="serve", cohort=4, optimiser="adam", server_lr=0.05
    ),
    "sglr": lambda s: ALGORITHMS["sglr"](stack=s, lr=0.1, local_steps=2, phi=0.7),
    "sglr, rows, sum, deadline": lambda s: ALGORITHMS["sglr"](
        stack=s, lr=0.05, phi=1.0, average="rows", reduce="sum", alpha=0.5, cut_deadline=0.03, optimiser="adam"
    ),
    "sglr, quorum, late ones served": lambda s: ALGORITHMS["sglr"](stack=s, lr=0.1, quorum=3, late="serve"),
    "splitfed_v1": lambda s: ALGORITHMS["splitfed_v1"](stack=s, lr=0.3, local_steps=2, momentum=0.5),
    "splitfed_v1, adam, U, deadline": lambda s: ALGORITHMS["splitfed_v1"](
        stack=s, lr=0.01, optimiser="adam", tail=2, local_steps=2, keep_optimiser=True, round_deadline=0.2
    ),
    "splitfed_v1, a cut for each class": lambda s: ALGORITHMS["splitfed_v1"](
        stack=s, lr=0.3, cut={"default": 2, "device": 1}, local_steps=2, momentum=0.5
    ),
    "splitfed_v2": lambda s: ALGORITHMS["splitfed_v2"](stack=s, lr=0.3, local_steps=2, momentum=0.5),
    "splitfed_v2, epochs, U": lambda s: ALGORITHMS["splitfed_v2"](
        stack=s, lr=0.3, tail=2, local_steps=2, order="epochs", keep_optimiser=True, cohort=4, momentum=0.5
    ),
    "splitfed_v2, conserving": lambda s: ALGORITHMS["splitfed_v2"](stack=s, lr=0.3, conserving=True, local_steps=2),
    "splitfed_v2, quorum": lambda s: ALGORITHMS["splitfed_v2"](stack=s, lr=0.3, quorum=3, local_steps=3),
    "splitfed_v2, deadlines": lambda s: ALGORITHMS["splitfed_v2"](
        stack=s, lr=0.3, cut_deadline=0.03, local_steps=2, round_deadline=0.1
    ),
    "splitfed_v2, quorum, late ones served": lambda s: ALGORITHMS["splitfed_v2"](
        stack=s, lr=0.3, quorum=2, local_steps=3, late="serve", momentum=0.5
    ),
    "splitfed_v2, epochs, deadline, late ones served": lambda s: ALGORITHMS["splitfed_v2"](
        stack=s, lr=0.3, tail=2, cut_deadline=0.01, local_steps=3, late="serve", order="epochs"
    ),
    "locsplitfed": lambda s: ALGORITHMS["locsplitfed"](stack=s, lr=0.3, local_steps=2),
    "locsplitfed, copied, deadline": lambda s: ALGORITHMS["locsplitfed"](
        stack=s, lr=0.02, head="copied:blocks=1", optimiser="adam", local_steps=2, round_deadline=0.2
    ),
    "locfedmix_sl": lambda s: ALGORITHMS["locfedmix_sl"](stack=s, lr=0.05),
    "locfedmix_sl, quorum, late ones mixed": lambda s: ALGORITHMS["locfedmix_sl"](
        stack=s,
        lr=0.05,
        local_steps=2,
        momentum=0.5,
        partners=2,
        share="sample",
        choice="rotation",
        mix_to_clients=True,
        average_every=2,
        quorum=4,
        late="mix",
    ),
    "locfedmix_sl, deadline, late ones served": lambda s: ALGORITHMS["locfedmix_sl"](
        stack=s,
        lr=0.1,
        local_steps=2,
        choice="replacement",
        mix_loss="convex",
        average_every=0,
        cut_weights="after",
        cut_gradient="pooled",
        cut_deadline=0.02,
        late="serve",
    ),
    "locfedmix_sl, no decoder, rounds": lambda s: ALGORITHMS["locfedmix_sl"](
        stack=s, lr=0.1, gamma=0.0, cut_deadline=0.03, average_unit="rounds", local_steps=3, average_every=2
    ),
    "locfedmix_sl, unit, decoders at home": lambda s: ALGORITHMS["locfedmix_sl"](
        stack=s,
        lr=0.05,
        optimiser="adam",
        decoder="decoder:output=sigmoid",
        target="unit",
        between=(-2.0, 2.0),
        error="bce",
        average_decoders=False,
        reset_optimiser=True,
        quorum=3,
        alone=2,
        local_steps=3,
        average_every=3,
        partners=3,
        mix_reduce="sum",
        share="constant",
        cut_gradient="sum",
    ),
    "cse_fsl": lambda s: ALGORITHMS["cse_fsl"](stack=s, lr=0.3, local_steps=3, interval=2, momentum=0.5),
    "cse_fsl, deadline": lambda s: ALGORITHMS["cse_fsl"](stack=s, lr=0.3, local_steps=2, round_deadline=0.06),
    "cyclesl": lambda s: ALGORITHMS["cyclesl"](stack=s, lr=0.1, local_steps=2, momentum=0.5),
    "cyclesl, two epochs, resampled, quorum": lambda s: ALGORITHMS["cyclesl"](
        stack=s, lr=0.1, server_epochs=2, server_batch=5, gradient_batches="resampled", quorum=3, cut_gradient="pooled"
    ),
    "cyclesl, old": lambda s: ALGORITHMS["cyclesl"](stack=s, lr=0.1, gradients="old", server_batch=7, cut=2),
    "cyclesl, the pool, deadline": lambda s: ALGORITHMS["cyclesl"](
        stack=s, lr=0.02, optimiser="adam", server_epochs=2, resample=False, cut_deadline=0.03
    ),
    "fsl_sage": lambda s: ALGORITHMS["fsl_sage"](
        stack=s,
        lr=0.3,
        local_steps=3,
        interval=2,
        align_every=2,
        buffer=10,
        align_epochs=3,
        align_batch=4,
        momentum=0.5,
    ),
    "fsl_sage, copied, deadline": lambda s: ALGORITHMS["fsl_sage"](
        stack=s, lr=0.3, head="copied:blocks=1", local_steps=2, align_epochs=2, cohort=4, round_deadline=0.06
    ),
    "gas": lambda s: ALGORITHMS["gas"](stack=s, lr=0.3, activation_buffer=3, model_buffer=2, local_steps=2),
    "gas, full, everything": lambda s: ALGORITHMS["gas"](
        stack=s,
        lr=0.3,
        momentum=0.5,
        activation_buffer=2,
        model_buffer=3,
        cohort=4,
        covariance="full",
        generated=5,
        weighting="exponential",
        decay=True,
        weights="equal",
    ),
    "gas, nothing generated": lambda s: ALGORITHMS["gas"](
        stack=s, lr=0.02, cut=2, optimiser="adam", activation_buffer=1, model_buffer=1, generated=0, local_steps=2
    ),
}
# Rules that divide by all, or correct for empty rounds, on purpose; work that differs between clients; a server whose
# steps are as many as there are clients, and clients that keep their own models.
PER_CLIENT = {
    "locfedmix_sl, unit, decoders at home",
    "locfedmix_sl, no decoder, rounds",
    "locfedmix_sl, deadline, late ones served",
    "locfedmix_sl, quorum, late ones mixed",
    "gas",
    "gas, full, everything",
    "gas, nothing generated",
    "psl, a cut for each class",
    "psl, quorum, late ones served",
    "psl, deadline, late ones served",
    "sglr, quorum, late ones served",
    "splitfed_v2, quorum, late ones served",
    "splitfed_v2, epochs, deadline, late ones served",
    "cse_fsl",
    "cse_fsl, deadline",
    "cyclesl",
    "cyclesl, two epochs, resampled, quorum",
    "cyclesl, old",
    "cyclesl, the pool, deadline",
    "fsl_sage",
    "fsl_sage, copied, deadline",
    "sglr",
    "sglr, rows, sum, deadline",
    "sl",
    "sl, the optimiser handed on, U",
    "psl",
    "psl, pooled, quorum",
    "psl, deadline",
    "splitfed_v2",
    "splitfed_v2, epochs, U",
    "splitfed_v2, conserving",
    "splitfed_v2, quorum",
    "splitfed_v2, deadlines",
    "fedprox, deadline",
    "fednova, deadline",
    "fednova, by samples",
    "drop, code",
    "salf",
    "salf, three steps",
    "salf, code",
    "salf, cond, momentum kept",
    "salf, ht, empirical",
    "salf, a deadline for each round",
    "timelyfl",
    "timelyfl, four sampled",
    "timelyfl, probe",
}
# Methods whose result depends on who is quick, or that a tiny deadline cuts off: not to be compared with the real
# clock.
QUICK = {
    "locfedmix_sl, unit, decoders at home",
    "locfedmix_sl, no decoder, rounds",
    "locfedmix_sl, deadline, late ones served",
    "locfedmix_sl, quorum, late ones mixed",
    "gas",
    "gas, full, everything",
    "gas, nothing generated",
    "psl, quorum, late ones served",
    "psl, deadline, late ones served",
    "sglr, quorum, late ones served",
    "splitfed_v2, quorum, late ones served",
    "splitfed_v2, epochs, deadline, late ones served",
    "locsplitfed, copied, deadline",
    "cse_fsl",
    "cse_fsl, deadline",
    "cyclesl, two epochs, resampled, quorum",
    "cyclesl, the pool, deadline",
    "fsl_sage",
    "fsl_sage, copied, deadline",
    "sglr, rows, sum, deadline",
    "psl, pooled, quorum",
    "psl, deadline",
    "splitfed_v1, adam, U, deadline",
    "splitfed_v2, conserving",
    "splitfed_v2, quorum",
    "splitfed_v2, deadlines",
    "fedprox, deadline",
    "fednova, deadline",
    "drop",
    "drop, code",
    "fedbuff",
    "fedbuff, two at work",
    "overselect",
    "overselect, all invited",
    "fedasync",
    "fedasync, hinge, two at work",
    "timelyfl",
    "timelyfl, four sampled",
    "timelyfl, probe",
    "salf, a deadline for each round",
    "drop, a deadline for each round",
    "salf",
    "salf, three steps",
    "salf, cond, momentum kept",
    "salf, code",
    "salf, ht, empirical",
}
