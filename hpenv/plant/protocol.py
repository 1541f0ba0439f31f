"""The protocol of a plant, and the records it returns: Window, Snapshot and Score."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from hpenv.arrays import FloatArray, IntArray
from hpenv.control.panel import Panel

#: Reasons for which a run ends before its budget. The empty string: it has not diverged.
DIVERGENCE_REASONS = (
    "",
    "loss_nonfinite",
    "gradient_nonfinite",
    "loss_above_limit",
    "kl_above_limit",
)

#: Measurement groups. They cost time, so `advance` measures a group only if asked to.
TIERS = ("probe", "momentum", "gradient_max", "activations", "same_batch")


class Score(NamedTuple):
    """Names and units of a plant's score and losses, for result files and plots.

    Attributes:
        key: name of the score that `evaluate` returns, in result files.
        label: name of the score in plots, with its unit or with the direction that is better.
        loss_unit: unit of the training and the probe loss. `1` for a fraction.
    """

    key: str
    label: str
    loss_unit: str


@dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to continue bitwise: named tensors, and the rest as JSON.

    Attributes:
        tensors: name -> tensor. They share no memory with the state that they were copied from.
        metadata: JSON-able values (counters, seeds, configuration).
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def check_tensors(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Checks that a snapshot has tensors of the expected names, shapes and dtypes.

    Raises:
        ValueError: naming the first tensors that are missing or unknown, or the first tensor of
            another shape or dtype.
    """
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"the snapshot must have exactly the expected tensors; missing are {missing[:5]}, "
            f"unknown are {unknown[:5]}; restore another snapshot"
        )

    for name, tensor in expected.items():
        theirs, ours = ((tuple(t.shape), t.dtype) for t in (given[name], tensor))
        if theirs != ours:
            raise ValueError(
                f"tensor {name!r} of the snapshot must be of shape {ours[0]} and {ours[1]}; "
                f"got {theirs[0]} and {theirs[1]}; restore another snapshot"
            )


@dataclass(frozen=True)
class Window:
    """Measurements that were taken while every run advanced by its number of steps.

    A row that did not move keeps the numbers of its last window. All values are finite. Unmeasured
    values are 0, except the probe loss, which keeps its last value. A field that belongs to a
    measurement group names the group in brackets.

    Attributes:
        steps: optimizer steps each run has taken, (N,).
        train_loss: mean training loss over the window's steps, (N,) [nats per token]. Of a
            post-training run: fraction of the largest reward that was not earned [1].
        probe_loss: loss on the fixed probe batches at the end of the window, (N,) [nats per token].
            Of a post-training run: fraction of the probe's problems that are not solved [1].
            (`probe`)
        gradient_norm: global L2 norm of the last step's gradient, before the optimizer, (N,).
        momentum_norm: global L2 norm of the optimizer's first moments at the end of the window,
            (N,). (`momentum`)
        divergence: index into DIVERGENCE_REASONS, (N,).
        same_batch_loss: loss of the window's last batch after the update on that batch, (N,)
            [nats per token]. (`same_batch`)
        layer_gradient_norm: L2 norm of the last step's gradient of each layer's matrices, (N, L).
        layer_gradient_max: largest magnitude of that gradient, (N, L). (`gradient_max`)
        layer_activation_mean: mean of the residual stream after each layer at the last step,
            (N, L). (`activations`)
        layer_activation_variance: variance of the residual stream, (N, L). (`activations`)
        layer_saturation: fraction of each layer's feed-forward units that are saturated, (N, L) in
            [0, 1]. (`activations`)
        gauges: further measurements of this kind of plant, (N, K). The columns are named by
            `gauge_names`.
        privileged: true values that no feature and no reward term may read, (N, Q). The columns
            are named by `privileged_names`.
    """

    steps: IntArray
    train_loss: FloatArray
    probe_loss: FloatArray
    gradient_norm: FloatArray
    momentum_norm: FloatArray
    divergence: IntArray
    same_batch_loss: FloatArray
    layer_gradient_norm: FloatArray
    layer_gradient_max: FloatArray
    layer_activation_mean: FloatArray
    layer_activation_variance: FloatArray
    layer_saturation: FloatArray
    gauges: FloatArray
    privileged: FloatArray

    @staticmethod
    def empty(
        num_rows: int, num_layers: int, num_gauges: int = 0, num_privileged: int = 0
    ) -> Window:
        """Returns the window of runs before any measurement."""
        per_run, per_layer = np.zeros(num_rows), np.zeros((num_rows, num_layers))
        counts, gauges = np.zeros(num_rows, dtype=np.int64), np.zeros((num_rows, num_gauges))
        privileged = np.zeros((num_rows, num_privileged))
        per_layers = (per_layer, per_layer, per_layer, per_layer, per_layer)
        return Window(
            counts,
            per_run,
            per_run,
            per_run,
            per_run,
            counts,
            per_run,
            *per_layers,
            gauges,
            privileged,
        )


class Plant(Protocol):
    """A population of N training runs that a panel steers.

    Attributes:
        kind: name of the plant in channels, features and reward terms.
        gauge_names: names of the columns of Window.gauges.
        privileged_names: names of the columns of Window.privileged.
        score: names and units of the plant's score and losses.
        stacked: True if the runs are computed together, False if one after the other.
        panel: current value of every cell of every run, read at every step.
        num_rows: N, runs in the population.
        num_layers: L, layers of the model.
        all_tiers: groups of TIERS that the plant can measure.
        tiers: measurement groups that `advance` measures.
        corpus_digest: sha256 of the text of the runs, or of the student that they begin with.
    """

    kind: str
    gauge_names: tuple[str, ...]
    privileged_names: tuple[str, ...]
    score: Score
    all_tiers: tuple[str, ...]
    stacked: bool
    panel: Panel
    num_rows: int
    num_layers: int
    tiers: frozenset[str]
    corpus_digest: str

    def measure(self, tiers: Collection[str]) -> None:
        """Sets the groups of TIERS that `advance` measures. The default is `probe`, `momentum`."""

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Starts new runs in the given rows (default: all), with their panel at neutral."""

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps and measures.

        A row with 0 steps, or that has diverged, is only measured.
        """

    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), as described by `score`.

        No other method reads the validation slice.
        """

    def report(self) -> dict[str, FloatArray]:
        """Returns further held-out measurements by name, (N,) each."""

    def snapshot(self) -> Snapshot:
        """Returns the whole state: weights, moments, data cursor, counters, panel."""

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot. With `keep_panel` the panel keeps its current values."""

    def spawn(self, num_rows: int) -> Plant:
        """Returns a new plant of the same configuration with another number of rows."""
