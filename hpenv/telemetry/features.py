"""Features: the gauges of the observation, each a bounded function of the measurements.

A feature maps a Reading to (N, k) numbers within its bounds, whatever the run does. A new feature
is an entry of FEATURES. A per-layer feature has one column per layer, named by the layer's index
(`layer_gradient_norm/3`). The module is one table, and longer than 300 lines for that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.plant.measurements import Measurement
from hpenv.telemetry.reading import Layout, Reading, check_readable, relative_loss
from hpenv.telemetry.trajectory import NUM_LOSSES, curvature, slope


@dataclass(frozen=True)
class Feature:
    """One gauge.

    Attributes:
        read: Reading -> (N, k).
        low: smallest value.
        high: largest value.
        doc: meaning and unit.
        reads: measurements that the feature reads. A plant without them cannot have the feature.
        columns: function from the layout to the k column suffixes (`layer_saturation/0`). None if
            there is one column.
        estimates: statistic of all steps so far that the feature reads, `trends` or `power_law`.
            None: neither.
    """

    read: Callable[[Reading], FloatArray]
    low: float
    high: float
    doc: str
    reads: tuple[str, ...] = ()
    columns: Callable[[Layout], Sequence[str]] | None = None
    estimates: Literal["trends", "power_law"] | None = None


def _column(values: FloatArray) -> FloatArray:
    return values[:, None]


def _magnitude(values: FloatArray) -> FloatArray:
    """Returns log10 of the values / 8: in [-1, 1] over eight decades either way."""
    return np.log10(np.maximum(values, 1e-8)) / 8.0


def _same_as(name: str, low: float, high: float, doc: str) -> Feature:
    """Returns the feature that is a measurement, unchanged."""
    return Feature(lambda r: _column(r.window[name]), low, high, doc, reads=(name,))


def _estimate(name: str, low: float, high: float, doc: str) -> Feature:
    """Returns the feature that is a field of `Estimates`, which is of the losses of all steps."""
    return Feature(
        lambda r: _column(getattr(r.estimates, name)),
        low,
        high,
        doc,
        reads=("step_losses",),
        estimates="trends",
    )


def _order_of(name: str, doc: str) -> Feature:
    """Returns the feature that is the order of magnitude of a measurement."""
    return Feature(
        lambda r: _column(_magnitude(r.window[name])),
        -1.0,
        1.0,
        f"log10 of {doc} / 8 [1]",
        reads=(name,),
    )


def _component_bias(reading: Reading) -> FloatArray:
    """Returns mean c / mean |c| of the gradient's component c along the direction, (N,).

    It is near 0 if c is noise around zero.
    """
    positive, negative = reading.window["mean_positive_c"], reading.window["mean_negative_c"]
    return (positive + negative) / np.maximum(np.abs(positive) + np.abs(negative), 1e-30)


def _spread(reading: Reading) -> FloatArray:
    """Returns s / (1 + s) of the gradient norm's relative standard deviation s, (N,)."""
    mean = reading.window["mean_gradient_norm"]
    variance = np.maximum(reading.window["mean_squared_gradient_norm"] - np.square(mean), 0.0)
    deviation = np.sqrt(variance) / np.maximum(mean, 1e-30)
    return deviation / (1.0 + deviation)


def _layers(layout: Layout) -> Sequence[str]:
    return [str(i) for i in range(layout.num_layers)]


FEATURES: dict[str, Feature] = {
    "progress": Feature(lambda r: _column(r.progress), 0.0, 1.0, "step / budget [1]"),
    "train_loss": Feature(
        lambda r: _column(relative_loss(r.window["train_loss"], r)),
        0.0,
        3.0,
        "mean training loss of the window / initial [1]",
        reads=("train_loss",),
    ),
    "loss_slope": Feature(
        lambda r: _column(
            NUM_LOSSES * relative_loss(slope(r.trajectory.losses, r.trajectory.num_losses), r)
        ),
        -1.0,
        1.0,
        "least-squares slope of the last 16 decisions' training losses, per 16 decisions / initial "
        "[1]",
        reads=("train_loss",),
    ),
    "loss_curvature": Feature(
        lambda r: _column(
            relative_loss(curvature(r.trajectory.losses, r.trajectory.num_losses), r)
        ),
        -1.0,
        1.0,
        "second difference of the means of three thirds of the last 16 decisions' training losses "
        "/ initial [1]",
        reads=("train_loss",),
    ),
    "loss_ema_deviation": Feature(
        lambda r: _column(relative_loss(r.trajectory.losses[:, -1] - r.trajectory.mean_before, r)),
        -1.0,
        1.0,
        "training loss minus the exponential mean of those before it (decay 0.95) / initial [1]",
        reads=("train_loss",),
    ),
    "loss_trend": _estimate(
        "loss_trend",
        -1.0,
        1.0,
        "change of the mean loss by the newest step / mean size of such changes (AdaptiveRL, 1) "
        "[1]",
    ),
    "reward_trend": _estimate(
        "reward_trend",
        -1.0,
        1.0,
        "the same of the mean reward, minus the training loss of each step (AdaptiveRL, 1) [1]",
    ),
    "loss_variance_ratio": _estimate(
        "loss_variance_ratio",
        0.0,
        10.0,
        "mean squared distance of the losses from their mean / its own mean (AdaptiveRL, 1) [1]",
    ),
    "plateau": _estimate(
        "plateau", 0.0, 1.0, "score of a flat loss with little variance (AdaptiveRL, 1) [1]"
    ),
    "loss_exponent": Feature(
        lambda r: _column(r.loss_exponent),
        -1.0,
        1.0,
        "slope of log training loss over log step, fitted to all steps with their numbers as "
        "weights [1]",
        reads=("step_losses",),
        estimates="power_law",
    ),
    "probe_loss": Feature(
        lambda r: _column(relative_loss(r.window["probe_loss"], r)),
        0.0,
        3.0,
        "probe loss / initial [1]",
        reads=("probe_loss",),
    ),
    "probe_loss_change": Feature(
        lambda r: _column(relative_loss(r.previous_probe_loss - r.window["probe_loss"], r)),
        -1.0,
        1.0,
        "decrease of the probe loss over the window / initial [1]",
        reads=("probe_loss",),
    ),
    "gradient_norm": Feature(
        lambda r: _column(_magnitude(r.window["gradient_norm"])),
        -1.0,
        1.0,
        "log10 of the last gradient's norm / 8 [1]",
        reads=("gradient_norm",),
    ),
    "momentum_norm": Feature(
        lambda r: _column(_magnitude(r.window["momentum_norm"])),
        -1.0,
        1.0,
        "log10 of the first moments' norm / 8 [1]",
        reads=("momentum_norm",),
    ),
    "layer_gradient_norm": Feature(
        lambda r: _magnitude(r.window["layer_gradient_norm"]),
        -1.0,
        1.0,
        "log10 of the Frobenius norm of each layer's last gradient / 8 [1]",
        reads=("layer_gradient_norm",),
        columns=_layers,
    ),
    "layer_gradient_max": Feature(
        lambda r: _magnitude(r.window["layer_gradient_max"]),
        -1.0,
        1.0,
        "log10 of the largest magnitude in each layer's last gradient / 8 [1]",
        reads=("layer_gradient_max",),
        columns=_layers,
    ),
    "layer_activation_mean": Feature(
        lambda r: (
            r.window["layer_activation_mean"] / (1.0 + np.abs(r.window["layer_activation_mean"]))
        ),
        -1.0,
        1.0,
        "m / (1 + |m|), m the mean of each layer's last activations [1]",
        reads=("layer_activation_mean",),
        columns=_layers,
    ),
    "layer_activation_variance": Feature(
        lambda r: _magnitude(r.window["layer_activation_variance"]),
        -1.0,
        1.0,
        "log10 of the variance of each layer's last activations / 8 [1]",
        reads=("layer_activation_variance",),
        columns=_layers,
    ),
    "layer_saturation": Feature(
        lambda r: r.window["layer_saturation"],
        0.0,
        1.0,
        "fraction of each layer's feed-forward units that are saturated [1]",
        reads=("layer_saturation",),
        columns=_layers,
    ),
    "update_ratio": Feature(
        lambda r: _magnitude(r.window["update_ratio"]),
        -1.0,
        1.0,
        "log10 of the norm of an update / that of the weights, of each optimizer group, / 8 [1]",
        reads=("update_ratio",),
        columns=lambda layout: layout.group_names,
    ),
    "layer_update_ratio": Feature(
        lambda r: _magnitude(r.window["layer_update_ratio"]),
        -1.0,
        1.0,
        "log10 of the norm of an update / that of the weights, of each layer, / 8 [1]",
        reads=("layer_update_ratio",),
        columns=_layers,
    ),
    "update_alignment": Feature(
        lambda r: r.window["update_alignment"],
        -1.0,
        1.0,
        "mean cosine of an optimizer group's gradient and the opposite of the update before it [1]",
        reads=("update_alignment",),
        columns=lambda layout: layout.group_names,
    ),
    "gradient_agreement": Feature(
        lambda r: r.window["gradient_agreement"],
        -1.0,
        1.0,
        "mean cosine of an optimizer group's gradients of two steps in a row: 1 / (1 + noise scale "
        "/ batch) of independent batches [1]",
        reads=("gradient_agreement",),
        columns=lambda layout: layout.group_names,
    ),
    "gradient_norm_spread": Feature(
        lambda r: _column(_spread(r)),
        0.0,
        1.0,
        "s / (1 + s), s the standard deviation of the gradient's norm over the window / its mean "
        "[1]",
        reads=("mean_gradient_norm", "mean_squared_gradient_norm"),
    ),
    "update_gain": Feature(
        lambda r: _column(r.window["update_gain"] / 2.0),
        -1.0,
        1.0,
        "half the decrease of the last batch's loss by its own update / the promised decrease: 0.5 "
        "where the loss is linear, 0 at the edge of stability [1]",
        reads=("update_gain",),
    ),
    "probe_gain": Feature(
        lambda r: _column(r.window["probe_gain"] / 2.0),
        -1.0,
        1.0,
        "half the decrease of the loss on a fixed batch by the last update / the promised decrease "
        "[1]",
        reads=("probe_gain",),
    ),
    "start_distance": Feature(
        lambda r: r.window["start_distance"] / (1.0 + r.window["start_distance"]),
        0.0,
        1.0,
        "d / (1 + d), d the change of an optimizer group's weights since the start / the norm of "
        "the initial weights [1]",
        reads=("start_distance",),
        columns=lambda layout: layout.group_names,
    ),
    "registers": Feature(
        lambda r: r.registers,
        -1.0,
        1.0,
        "the controller's accumulators [1]",
        columns=lambda layout: [str(i) for i in range(layout.num_registers)],
    ),
    "position": Feature(
        lambda r: r.positions,
        -1.0,
        1.0,
        "the current position of each cell, one column per cell [1]",
        columns=lambda layout: layout.cell_names,
    ),
    "probe_pass": Feature(
        lambda r: _column(r.window["probe_pass"]),
        0.0,
        1.0,
        "fraction of the probe's problems that are solved [1]",
        reads=("probe_pass",),
    ),
    "reward_mean": _same_as(
        "reward_mean", 0.0, 1.0, "mean reward that the grader paid / the largest reward [1]"
    ),
    "reward_spread": _same_as(
        "reward_spread", 0.0, 1.0, "mean standard deviation within a group / largest reward [1]"
    ),
    "flat_groups": _same_as(
        "flat_groups", 0.0, 1.0, "fraction of the groups whose rewards are all equal [1]"
    ),
    "kl": _order_of("kl", "the divergence from the untrained student per token"),
    "entropy": Feature(
        lambda r: _column(r.window["entropy"] / (1.0 + r.window["entropy"])),
        0.0,
        1.0,
        "h / (1 + h), h the policy's entropy per token [1]",
        reads=("entropy",),
    ),
    "completion_length": _same_as(
        "completion_length", 0.0, 1.0, "mean length of a completion / longest [1]"
    ),
    "compiled": _same_as("compiled", 0.0, 1.0, "fraction of the programs that compile [1]"),
    "flagged": _same_as(
        "flagged", 0.0, 1.0, "fraction of the programs that the weak detector flags [1]"
    ),
    "mean_cos": _same_as(
        "mean_cos", -1.0, 1.0, "mean cosine of the modules' gradients and the hacking direction [1]"
    ),
    "frac_fired": _same_as(
        "frac_fired",
        0.0,
        1.0,
        "fraction of the modules whose gradient has a component along the direction [1]",
    ),
    "removed_fraction": _same_as(
        "removed_fraction",
        0.0,
        1.0,
        "mean fraction of a gradient that a one-sided rule removes [1]",
    ),
    "component_bias": Feature(
        lambda r: _column(_component_bias(r)),
        -1.0,
        1.0,
        "mean / mean magnitude of the gradient's component along the direction [1]",
        reads=("mean_positive_c", "mean_negative_c"),
    ),
    "coefficient_norm": _order_of("coefficient_norm", "the norm of the adapter coefficients"),
}


def check_features(
    names: Sequence[str],
    measurements: Sequence[Measurement],
    features: Mapping[str, Feature] = FEATURES,
) -> None:
    """Checks that a plant of these measurements has the features, `progress` among them.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    check_readable("feature", names, features, measurements)
    if "progress" not in names:
        raise ValueError(f"features must include 'progress'; got {list(names)}")
