"""Features: the gauges of the observation, each a bounded function of what was measured.

A feature maps a Reading to (N, k) numbers within its bounds, whatever the run does. A new gauge is an entry of
FEATURES. Columns of a gauge that has one number per layer are indexed and say nothing else of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpenv.plant import BoolArray, FloatArray, Window
from hpenv.trajectory import NUM_LOSSES, Trajectory, curvature, slope


@dataclass(frozen=True)
class Layout:
    """What the columns of an observation depend on.

    Attributes:
        cell_names: name of each cell of the panel.
        cell_kinds: kind of each cell's channel.
        num_layers: L, of the model.
        num_registers: R.
    """

    cell_names: tuple[str, ...] = ()
    cell_kinds: tuple[str, ...] = ()
    num_layers: int = 0
    num_registers: int = 0


@dataclass(frozen=True)
class Reading:
    """What features and reward terms are read from: one decision of every run.

    Attributes:
        window: what was measured while the runs advanced.
        trajectory: the losses so far, the window's included.
        previous_train_loss: training loss of the window before, (N,) [nats per token].
        previous_probe_loss: probe loss before the window, (N,) [nats per token].
        initial_probe_loss: probe loss of the untrained run, (N,) [nats per token].
        progress: part of the budget that is spent, (N,) in [0, 1].
        positions: the cells in force during the window, (N, A) in [-1, 1].
        previous_positions: the cells before it, (N, A).
        registers: after the decision's writes, (N, R) in [-1, 1].
        first: True where the window was the run's first, so that there was no action before it, (N,).
        layout: names and numbers of all these columns.
    """

    window: Window
    trajectory: Trajectory
    previous_train_loss: FloatArray
    previous_probe_loss: FloatArray
    initial_probe_loss: FloatArray
    progress: FloatArray
    positions: FloatArray
    previous_positions: FloatArray
    registers: FloatArray
    first: BoolArray
    layout: Layout


@dataclass(frozen=True)
class Feature:
    """One gauge.

    Attributes:
        read: Reading -> (N, k).
        low: smallest value.
        high: largest value.
        doc: meaning and unit.
        tier: what the plant must measure for it, a name of plant.TIERS; None for what every plant measures.
        columns: layout -> what tells its k columns apart (`layer_saturation/0`); None for a single column.
    """

    read: Callable[[Reading], FloatArray]
    low: float
    high: float
    doc: str
    tier: str | None = None
    columns: Callable[[Layout], Sequence[str]] | None = None


def _column(values: FloatArray) -> FloatArray:
    return values[:, None]


def relative(values: FloatArray, reading: Reading) -> FloatArray:
    """Losses (N,) in units of the untrained run's."""
    return values / np.maximum(reading.initial_probe_loss, 1e-6)


def _magnitude(values: FloatArray) -> FloatArray:
    """log10 over eight decades either way, in [-1, 1]."""
    return np.log10(np.maximum(values, 1e-8)) / 8.0


def _layers(layout: Layout) -> Sequence[str]:
    return [str(i) for i in range(layout.num_layers)]


FEATURES: dict[str, Feature] = {
    "progress": Feature(lambda r: _column(r.progress), 0.0, 1.0, "step / budget [1]"),
    "train_loss": Feature(
        lambda r: _column(relative(r.window.train_loss, r)), 0.0, 3.0, "mean training loss of the window / initial [1]"
    ),
    "loss_slope": Feature(
        lambda r: _column(NUM_LOSSES * relative(slope(r.trajectory.losses, r.trajectory.num_losses), r)),
        -1.0,
        1.0,
        "least-squares slope of the last 16 decisions' training losses, per 16 decisions / initial [1]",
    ),
    "loss_curvature": Feature(
        lambda r: _column(relative(curvature(r.trajectory.losses, r.trajectory.num_losses), r)),
        -1.0,
        1.0,
        "second difference of the means of three thirds of the last 16 decisions' training losses / initial [1]",
    ),
    "loss_ema_deviation": Feature(
        lambda r: _column(relative(r.trajectory.losses[:, -1] - r.trajectory.mean_before, r)),
        -1.0,
        1.0,
        "training loss minus the exponential mean of those before it (decay 0.95) / initial [1]",
    ),
    "probe_loss": Feature(
        lambda r: _column(relative(r.window.probe_loss, r)), 0.0, 3.0, "probe loss / initial [1]", "probe"
    ),
    "probe_loss_change": Feature(
        lambda r: _column(relative(r.previous_probe_loss - r.window.probe_loss, r)),
        -1.0,
        1.0,
        "decrease of the probe loss over the window / initial [1]",
        "probe",
    ),
    "gradient_norm": Feature(
        lambda r: _column(_magnitude(r.window.gradient_norm)), -1.0, 1.0, "log10 of the last gradient's norm / 8 [1]"
    ),
    "momentum_norm": Feature(
        lambda r: _column(_magnitude(r.window.momentum_norm)),
        -1.0,
        1.0,
        "log10 of the first moments' norm / 8 [1]",
        "momentum",
    ),
    "layer_gradient_norm": Feature(
        lambda r: _magnitude(r.window.layer_gradient_norm),
        -1.0,
        1.0,
        "log10 of the Frobenius norm of each layer's last gradient / 8 [1]",
        columns=_layers,
    ),
    "layer_gradient_max": Feature(
        lambda r: _magnitude(r.window.layer_gradient_max),
        -1.0,
        1.0,
        "log10 of the largest magnitude in each layer's last gradient / 8 [1]",
        "gradient_max",
        _layers,
    ),
    "layer_activation_mean": Feature(
        lambda r: r.window.layer_activation_mean / (1.0 + np.abs(r.window.layer_activation_mean)),
        -1.0,
        1.0,
        "m / (1 + |m|), m the mean of each layer's last activations [1]",
        "activations",
        _layers,
    ),
    "layer_activation_variance": Feature(
        lambda r: _magnitude(r.window.layer_activation_variance),
        -1.0,
        1.0,
        "log10 of the variance of each layer's last activations / 8 [1]",
        "activations",
        _layers,
    ),
    "layer_saturation": Feature(
        lambda r: r.window.layer_saturation,
        0.0,
        1.0,
        "part of each layer's feed-forward units that is saturated [1]",
        "activations",
        _layers,
    ),
    "registers": Feature(
        lambda r: r.registers,
        -1.0,
        1.0,
        "the controller's own accumulators [1]",
        columns=lambda layout: [str(i) for i in range(layout.num_registers)],
    ),
    "position": Feature(
        lambda r: r.positions,
        -1.0,
        1.0,
        "the action in force, one column per cell [1]",
        columns=lambda layout: layout.cell_names,
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


def feature_tiers(names: Sequence[str]) -> set[str]:
    """What the plant must measure for these features, names of plant.TIERS."""
    return {tier for name in names if (tier := FEATURES[name].tier) is not None}


def column_names(names: Sequence[str], layout: Layout) -> tuple[str, ...]:
    """Name of every column of the observation."""
    columns: list[str] = []
    for name in names:
        naming = FEATURES[name].columns
        columns += [name] if naming is None else [f"{name}/{own}" for own in naming(layout)]
    return tuple(columns)


def bounds(names: Sequence[str], layout: Layout) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest value of every column of the observation, (F,) each."""
    widths = [len(column_names([name], layout)) for name in names]
    low = np.repeat([FEATURES[name].low for name in names], widths)
    high = np.repeat([FEATURES[name].high for name in names], widths)
    return low, high


def observe(names: Sequence[str], reading: Reading) -> FloatArray:
    """The features side by side, clipped to their bounds, (N, F)."""
    values = [FEATURES[name].read(reading) for name in names]
    low = [FEATURES[name].low for name in names]
    high = [FEATURES[name].high for name in names]
    widths = [value.shape[1] for value in values]
    # One clip for all: a decision may be every step, and a call of numpy costs microseconds.
    return np.minimum(np.maximum(np.concatenate(values, axis=1), np.repeat(low, widths)), np.repeat(high, widths))
