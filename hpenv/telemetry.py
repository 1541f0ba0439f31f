"""Features: the gauges of the observation, each a bounded function of what was measured.

A feature maps a Reading to (N, k) numbers within its bounds, whatever the run does. A new gauge is an entry of
FEATURES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpenv.plant import BoolArray, FloatArray, Window


@dataclass(frozen=True)
class Reading:
    """What features and reward terms are read from: one decision of every run.

    Attributes:
        window: what was measured while the runs advanced.
        previous_probe_loss: probe loss before the window, (N,) [nats per token].
        initial_probe_loss: probe loss of the untrained run, (N,) [nats per token].
        progress: part of the budget that is spent, (N,) in [0, 1].
        positions: the action in force during the window, (N, A) in [-1, 1].
        previous_positions: the action before it, (N, A).
        first: True where the window was the run's first, so that there was no action before it, (N,).
        action_names: name of each column of the action.
    """

    window: Window
    previous_probe_loss: FloatArray
    initial_probe_loss: FloatArray
    progress: FloatArray
    positions: FloatArray
    previous_positions: FloatArray
    first: BoolArray
    action_names: tuple[str, ...]


@dataclass(frozen=True)
class Feature:
    """One gauge.

    Attributes:
        read: Reading -> (N, k).
        low: smallest value.
        high: largest value.
        doc: meaning and unit.
        columns: action_names -> names of its k columns; None for a single column named as the feature.
    """

    read: Callable[[Reading], FloatArray]
    low: float
    high: float
    doc: str
    columns: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None


def _column(values: FloatArray) -> FloatArray:
    return values[:, None]


def _relative(values: FloatArray, reading: Reading) -> FloatArray:
    return values / np.maximum(reading.initial_probe_loss, 1e-6)


def _magnitude(values: FloatArray) -> FloatArray:
    """log10 over eight decades either way, in [-1, 1]."""
    return np.log10(np.maximum(values, 1e-8)) / 8.0


FEATURES: dict[str, Feature] = {
    "progress": Feature(lambda r: _column(r.progress), 0.0, 1.0, "step / budget [1]"),
    "train_loss": Feature(
        lambda r: _column(_relative(r.window.train_loss, r)), 0.0, 3.0, "mean training loss of the window / initial [1]"
    ),
    "probe_loss": Feature(lambda r: _column(_relative(r.window.probe_loss, r)), 0.0, 3.0, "probe loss / initial [1]"),
    "probe_loss_change": Feature(
        lambda r: _column(_relative(r.previous_probe_loss - r.window.probe_loss, r)),
        -1.0,
        1.0,
        "decrease of the probe loss over the window / initial [1]",
    ),
    "gradient_norm": Feature(
        lambda r: _column(_magnitude(r.window.gradient_norm)), -1.0, 1.0, "log10 of the last gradient's norm / 8 [1]"
    ),
    "momentum_norm": Feature(
        lambda r: _column(_magnitude(r.window.momentum_norm)), -1.0, 1.0, "log10 of the first moments' norm / 8 [1]"
    ),
    "position": Feature(
        lambda r: r.positions,
        -1.0,
        1.0,
        "the action in force, one column per cell [1]",
        lambda names: tuple(f"position/{name}" for name in names),
    ),
}


def check_features(names: Sequence[str]) -> None:
    """Refuses unknown features and an observation without the progress of the run.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    for name in names:
        if name not in FEATURES:
            raise ValueError(f"unknown feature {name!r}; expected some of {sorted(FEATURES)}")
    if "progress" not in names:
        raise ValueError(f"features {list(names)} lack 'progress', which every observation holds")


def column_names(names: Sequence[str], action_names: tuple[str, ...]) -> tuple[str, ...]:
    """Name of every column of the observation."""
    columns: list[str] = []
    for name in names:
        naming = FEATURES[name].columns
        columns += [name] if naming is None else list(naming(action_names))
    return tuple(columns)


def bounds(names: Sequence[str], action_names: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest value of every column of the observation, (F,) each."""
    widths = [len(column_names([name], action_names)) for name in names]
    low = np.repeat([FEATURES[name].low for name in names], widths)
    high = np.repeat([FEATURES[name].high for name in names], widths)
    return low, high


def observe(names: Sequence[str], reading: Reading) -> FloatArray:
    """The features side by side, clipped to their bounds, (N, F)."""
    return np.concatenate(
        [np.clip(FEATURES[name].read(reading), FEATURES[name].low, FEATURES[name].high) for name in names], axis=1
    )
