"""Reward terms: unweighted numbers of one decision, which the env adds up with its weights.

A new term is an entry of REWARD_TERMS. Terms are larger when better; a penalty is negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hpenv.plant import FloatArray
from hpenv.telemetry import Reading


@dataclass(frozen=True)
class RewardTerm:
    """One term: Reading -> (N,), with its meaning, unit and source."""

    read: Callable[[Reading], FloatArray]
    doc: str


def _progress(reading: Reading) -> FloatArray:
    """A diverged run has learned nothing: its last window takes back all that the earlier ones earned."""
    ended = reading.window.divergence > 0
    now = np.where(ended, reading.initial_probe_loss, reading.window.probe_loss)
    return reading.previous_probe_loss - now


def _smoothness(reading: Reading) -> FloatArray:
    jump = np.square(reading.positions - reading.previous_positions).sum(1)
    return -np.where(reading.first, 0.0, jump)


REWARD_TERMS: dict[str, RewardTerm] = {
    "progress": RewardTerm(
        _progress, "decrease of the probe loss over the window [nats per token]; telescopes to L0 - LT (JEL, 3.4)"
    ),
    "gradient_norm": RewardTerm(
        lambda r: -np.minimum(r.window.gradient_norm, 1e6), "minus the norm of the window's last gradient (JEL, 3.4)"
    ),
    "smoothness": RewardTerm(
        _smoothness, "minus the squared change of the action, 0 at a run's first decision (JEL, 3.4)"
    ),
    "divergence": RewardTerm(lambda r: -(r.window.divergence > 0).astype(np.float64), "-1 where the run diverged"),
}


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses unknown terms and weights that are not finite and not negative.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    for name, weight in weights.items():
        if name not in REWARD_TERMS:
            raise ValueError(f"unknown reward term {name!r}; expected some of {sorted(REWARD_TERMS)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight {weight!r} of reward term {name!r} must be finite and not negative")


def reward_terms(reading: Reading) -> dict[str, FloatArray]:
    """Every term, unweighted: name -> (N,)."""
    return {name: term.read(reading) for name, term in REWARD_TERMS.items()}
