"""Reward terms: unweighted numbers of one decision, which the env adds up with its weights.

A new term is an entry of REWARD_TERMS. Terms are larger when better; a penalty is negative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpenv.plant import TIERS, FloatArray, IntArray
from hpenv.telemetry import Reading, check_readable, readable, relative
from hpenv.trajectory import slope

#: Kinds of channel whose cells cost something away from neutral.
BUDGETED_KINDS = ("shrink", "scale")

#: No change of a loss counts for more [nats per token]; a plant ends a run at 3 ln V, 31 for 32,768
#: tokens.
LARGEST_CHANGE = 100.0

#: No rise of the loss above its mean counts for more [1]; a loss that doubles is as bad as can be.
LARGEST_RISE = 1.0


@dataclass(frozen=True)
class RewardTerm:
    """One term.

    Attributes:
        read: Reading -> (N,).
        doc: meaning, unit and source.
        tier: what the plant must measure for it, a name of plant.TIERS; None for what every plant
            measures.
        delay: decisions between an action and the term that first answers to what it did to the
            weights, at one step per decision. A training loss is that of the batch before its
            update, so it answers one decision later.
        gauges: of the plant's own, those that are read; with a plant that does not measure them it
            has no such term.
    """

    read: Callable[[Reading], FloatArray]
    doc: str
    tier: str | None = None
    delay: int = 0
    gauges: tuple[str, ...] = ()


def _progress(reading: Reading) -> FloatArray:
    """A diverged run has learned nothing: its last window takes back all that the earlier ones earned."""
    return _fall(reading, reading.previous_probe_loss, reading.window.probe_loss)


def _fall(reading: Reading, before: FloatArray, now: FloatArray) -> FloatArray:
    """How far a loss fell; a run that diverged pays back what it had earned, and is not refunded what it had lost."""
    lost = np.minimum(0.0, before - reading.initial_probe_loss)
    return np.where(reading.window.divergence > 0, lost, before - now)


def _bounded(change: FloatArray) -> FloatArray:
    return np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE)


def _loss_change(reading: Reading) -> FloatArray:
    """A run that diverges takes back what it had earned, as for `progress`."""
    change = _fall(reading, reading.previous_train_loss, reading.window.train_loss)
    return _bounded(np.where(reading.first, 0.0, change))


def _smoothness(reading: Reading) -> FloatArray:
    jump = np.square(reading.positions - reading.previous_positions).sum(1)
    return -np.where(reading.first, 0.0, jump)


def _stability(reading: Reading) -> FloatArray:
    mean = np.maximum(reading.trajectory.mean_before, 1e-6)
    rise = (reading.trajectory.losses[:, -1] - reading.trajectory.mean_before) / mean
    return -np.square(np.clip(rise, 0.0, LARGEST_RISE))


def _probe_slope(reading: Reading) -> FloatArray:
    return _bounded(-slope(reading.trajectory.probe_losses, reading.trajectory.num_probe_losses))


@functools.cache
def _budgeted_columns(kinds: tuple[str, ...]) -> IntArray:
    return np.array(
        [column for column, kind in enumerate(kinds) if kind in BUDGETED_KINDS], dtype=np.int64
    )


def _budget(reading: Reading) -> FloatArray:
    counted = reading.positions[:, _budgeted_columns(reading.layout.cell_kinds)]
    return -np.square(counted).sum(1) / max(counted.shape[1], 1)


def _late_divergence(reading: Reading) -> FloatArray:
    rise = relative(reading.trajectory.mean - reading.trajectory.lowest_mean, reading)
    return -reading.progress * np.clip(rise, 0.0, LARGEST_RISE)


REWARD_TERMS: dict[str, RewardTerm] = {
    "progress": RewardTerm(
        _progress,
        "decrease of the probe loss over the window [nats per token]; telescopes to L0 - LT (JEL, 3.4)",
        "probe",
    ),
    "loss_change": RewardTerm(
        _loss_change,
        "decrease of the training loss since the window before, 0 at a run's first decision [nats per token] "
        "(Reward-Driven Training Control, 2.3)",
        delay=1,
    ),
    "same_batch_change": RewardTerm(
        lambda r: _bounded(r.window.train_loss - r.window.same_batch_loss),
        "decrease of the loss of the last batch by its own update, at one step per decision [nats per token]. A trap: "
        "it pays for fitting the batch just seen, and a learner that follows it drives the rates up until all else is "
        "forgotten",
        "same_batch",
    ),
    "stability": RewardTerm(
        _stability,
        "minus the squared rise of the training loss above the exponential mean of those before it, relative to that "
        "mean and at most 1; 0 if below (Reward-Driven Training Control, 4) [1]",
        delay=1,
    ),
    "probe_slope": RewardTerm(
        _probe_slope,
        "minus the least-squares slope of the last 8 probe losses [nats per token per decision] "
        "(Reward-Driven Training Control, 4: trajectory of the eval)",
        "probe",
    ),
    "budget": RewardTerm(
        _budget,
        "minus the mean squared position of the cells that scale or shrink: distance from neutral costs "
        "(Reward-Driven Training Control, 4: regularization budget) [1]",
    ),
    "late_divergence": RewardTerm(
        _late_divergence,
        "minus the rise of the training loss's exponential mean above its lowest so far, / initial loss, at most 1, "
        "times the progress of the run: a late regression costs most (Reward-Driven Training Control, 9) [1]",
        delay=1,
    ),
    "gradient_norm": RewardTerm(
        lambda r: -np.minimum(r.window.gradient_norm, 1e6),
        "minus the norm of the window's last gradient (JEL, 3.4)",
        delay=1,
    ),
    "smoothness": RewardTerm(
        _smoothness,
        "minus the squared change of the action, 0 at a run's first decision (JEL, 3.4)",
    ),
    "probe_pass": RewardTerm(
        lambda r: r.gauge("probe_pass"),
        "part of the probe's problems, none of which has a loophole, that the student solves [1]",
        "probe",
        gauges=("probe_pass",),
    ),
    "flagged_hacks": RewardTerm(
        lambda r: -r.gauge("flagged"),
        "minus the part of the programs that the weak detector flags; what it does not know costs nothing [1]",
        delay=1,
        gauges=("flagged",),
    ),
    "divergence": RewardTerm(
        lambda r: -(r.window.divergence > 0).astype(np.float64),
        "-1 where the run diverged",
        delay=1,
    ),
}


def check_weights(
    weights: Mapping[str, float], gauge_names: Sequence[str] = (), tiers: Iterable[str] = TIERS
) -> None:
    """Refuses terms that a plant of these gauges and tiers lacks, and weights that are not finite
    and not negative.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    check_readable("reward term", weights, REWARD_TERMS, gauge_names, tiers)
    for name, weight in weights.items():
        number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(
            weight, bool
        )
        if not (number and math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"weight {weight!r} of reward term {name!r} must be a number, finite and not negative"
            )


def reward_tiers(weights: Mapping[str, float]) -> set[str]:
    """What the plant must measure for the terms that have a weight, names of plant.TIERS."""
    return {
        tier
        for name, weight in weights.items()
        if weight and (tier := REWARD_TERMS[name].tier) is not None
    }


def measured_terms(tiers: Iterable[str], gauge_names: Sequence[str] = ()) -> tuple[str, ...]:
    """The terms that can be read when the plant measures these of plant.TIERS and these gauges of its own."""
    return readable(REWARD_TERMS, gauge_names, tiers)


def reward_terms(names: Iterable[str], reading: Reading) -> dict[str, FloatArray]:
    """These terms, unweighted: name -> (N,)."""
    return {name: REWARD_TERMS[name].read(reading) for name in names}
