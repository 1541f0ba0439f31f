"""Reward terms: unweighted numbers of one decision. The env computes their weighted sum.

A new term is an entry of REWARD_TERMS. A larger term is better. A penalty is negative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpenv.arrays import FloatArray, IntArray
from hpenv.checks import is_number
from hpenv.plant.measurements import Measurement
from hpenv.telemetry.reading import Reading, check_readable, readable, relative_loss
from hpenv.telemetry.trajectory import slope

#: Kinds of channel whose cells the term `budget` charges for their distance from neutral.
BUDGETED_KINDS = ("shrink", "scale")

#: Largest change of a loss that counts [nats per token]. A plant ends a run at 3 ln V, which is 31
#: for 32,768 tokens.
LARGEST_CHANGE = 100.0

#: Largest rise of the loss above its mean that counts [1]: that of a loss that doubles.
LARGEST_RISE = 1.0


@dataclass(frozen=True)
class RewardTerm:
    """One term.

    Attributes:
        read: Reading -> (N,).
        doc: meaning, unit and source.
        reads: measurements that the term reads. A plant without them cannot have the term.
        delay: decisions until the term shows the weights after an action, at one step per decision.
            0: the term of the same decision. 1: that of the next, as for a training loss, which is
            measured before its update.
    """

    read: Callable[[Reading], FloatArray]
    doc: str
    reads: tuple[str, ...] = ()
    delay: int = 0


def _progress(reading: Reading) -> FloatArray:
    """Returns the fall of the probe loss. A diverged run loses all that it had earned."""
    return _fall(reading, reading.previous_probe_loss, reading.window["probe_loss"])


def _fall(reading: Reading, before: FloatArray, now: FloatArray) -> FloatArray:
    """Returns the decrease of a loss, (N,).

    A run that diverged has learned nothing. It pays back what it had earned, but is not refunded
    what it had lost.
    """
    payback = np.minimum(0.0, before - reading.initial_probe_loss)
    return np.where(reading.window.divergence > 0, payback, before - now)


def _clip_change(change: FloatArray) -> FloatArray:
    return np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE)


def _loss_change(reading: Reading) -> FloatArray:
    """Returns the fall of the training loss. A diverged run pays back, as for `progress`."""
    change = _fall(reading, reading.previous_train_loss, reading.window["train_loss"])
    return _clip_change(np.where(reading.first, 0.0, change))


def _smoothness(reading: Reading) -> FloatArray:
    jump = np.square(reading.positions - reading.previous_positions).sum(1)
    return -np.where(reading.first, 0.0, jump)


def _stability(reading: Reading) -> FloatArray:
    mean = np.maximum(reading.trajectory.mean_before, 1e-6)
    rise = (reading.trajectory.losses[:, -1] - reading.trajectory.mean_before) / mean
    return -np.square(np.clip(rise, 0.0, LARGEST_RISE))


def _probe_slope(reading: Reading) -> FloatArray:
    return _clip_change(
        -slope(reading.trajectory.probe_losses, reading.trajectory.num_probe_losses)
    )


@functools.cache
def _budget_columns(kinds: tuple[str, ...]) -> IntArray:
    return np.array(
        [column for column, kind in enumerate(kinds) if kind in BUDGETED_KINDS], dtype=np.int64
    )


def _budget(reading: Reading) -> FloatArray:
    charged = reading.positions[:, _budget_columns(reading.layout.cell_kinds)]
    return -np.square(charged).sum(1) / max(charged.shape[1], 1)


def _late_divergence(reading: Reading) -> FloatArray:
    rise = relative_loss(reading.trajectory.mean - reading.trajectory.lowest_mean, reading)
    return -reading.progress * np.clip(rise, 0.0, LARGEST_RISE)


REWARD_TERMS: dict[str, RewardTerm] = {
    "progress": RewardTerm(
        _progress,
        "decrease of the probe loss over the window [nats per token]; telescopes to L0 - LT "
        "(JEL, 3.4)",
        reads=("probe_loss",),
    ),
    "loss_change": RewardTerm(
        _loss_change,
        "decrease of the training loss since the previous window, 0 at a run's first decision "
        "[nats per token] (Reward-Driven Training Control, 2.3)",
        delay=1,
        reads=("train_loss",),
    ),
    "same_batch_change": RewardTerm(
        lambda r: _clip_change(r.window["train_loss"] - r.window["same_batch_loss"]),
        "decrease of the loss of the last batch by the update that it makes, at one step per "
        "decision [nats per token]. A trap: it pays for fitting the last batch, and a learner that "
        "follows it drives the rates up until all else is forgotten",
        reads=("train_loss", "same_batch_loss"),
    ),
    "stability": RewardTerm(
        _stability,
        "minus the squared rise of the training loss above the exponential mean of those before "
        "it, relative to that mean and at most 1; 0 if below (Reward-Driven Training Control, 4) "
        "[1]",
        delay=1,
        reads=("train_loss",),
    ),
    "probe_slope": RewardTerm(
        _probe_slope,
        "minus the least-squares slope of the last 8 probe losses [nats per token per decision] "
        "(Reward-Driven Training Control, 4: trajectory of the eval)",
        reads=("probe_loss",),
    ),
    "budget": RewardTerm(
        _budget,
        "minus the mean squared position of the cells that scale or shrink: distance from neutral "
        "costs (Reward-Driven Training Control, 4: regularization budget) [1]",
    ),
    "late_divergence": RewardTerm(
        _late_divergence,
        "minus the rise of the training loss's exponential mean above its lowest so far, / initial "
        "loss, at most 1, times the progress of the run: a late regression costs most "
        "(Reward-Driven Training Control, 9) [1]",
        delay=1,
        reads=("train_loss",),
    ),
    "gradient_norm": RewardTerm(
        lambda r: -np.minimum(r.window["gradient_norm"], 1e6),
        "minus the norm of the window's last gradient (JEL, 3.4)",
        delay=1,
        reads=("gradient_norm",),
    ),
    "smoothness": RewardTerm(
        _smoothness,
        "minus the squared change of the action, 0 at a run's first decision (JEL, 3.4)",
    ),
    "probe_pass": RewardTerm(
        lambda r: r.window["probe_pass"],
        "fraction of the probe's problems that the student solves; none of them has a loophole [1]",
        reads=("probe_pass",),
    ),
    "flagged_hacks": RewardTerm(
        lambda r: -r.window["flagged"],
        "minus the fraction of the programs that the weak detector flags; hacks that it does not "
        "know cost nothing [1]",
        delay=1,
        reads=("flagged",),
    ),
    "divergence": RewardTerm(
        lambda r: -(r.window.divergence > 0).astype(np.float64),
        "-1 where the run diverged",
        delay=1,
    ),
}


def check_weights(weights: Mapping[str, float], measurements: Sequence[Measurement]) -> None:
    """Checks that a plant of these measurements has the terms, and that the weights are valid.

    Raises:
        ValueError: for an unknown term or a weight that is not finite and >= 0, with what was
            given and what is accepted.
    """
    check_readable("reward term", weights, REWARD_TERMS, measurements)
    for name, weight in weights.items():
        if not (is_number(weight) and math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"weight of reward term {name!r} must be a number, finite and not negative; "
                f"got {weight!r}"
            )


def measured_terms(
    measurements: Sequence[Measurement], groups: Collection[str] | None = None
) -> tuple[str, ...]:
    """Returns the terms that a plant supports while it measures these groups (None: all)."""
    return readable(REWARD_TERMS, measurements, groups)


def reward_terms(names: Iterable[str], reading: Reading) -> dict[str, FloatArray]:
    """Returns these terms, unweighted: name -> (N,)."""
    return {name: REWARD_TERMS[name].read(reading) for name in names}
