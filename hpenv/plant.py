"""The plant's protocol: what evolves, what is measured while it does, and what a snapshot of it holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hpenv.panel import Panel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: Why a run ended before its budget; the empty string means that it did not.
DIVERGENCE_REASONS = (
    "",
    "loss_nonfinite",
    "gradient_nonfinite",
    "loss_above_limit",
    "kl_above_limit",
)

#: What `advance` measures only if asked to, since it costs something.
TIERS = ("probe", "momentum", "gradient_max", "activations", "same_batch")


class Score(NamedTuple):
    """How a plant's numbers are called where they are kept or printed.

    Attributes:
        key: of what `evaluate` gives, in result files.
        label: the same, for people; with its unit, or with which way is better.
        loss_unit: of the training and the probe loss; `1` for a part of a whole.
    """

    key: str
    label: str
    loss_unit: str


@dataclass(frozen=True)
class Snapshot:
    """All that is needed to continue bitwise: arrays under flat names, and everything else as JSON.

    Attributes:
        tensors: name -> tensor; the snapshot owns them (they share no memory with what they were
            taken from).
        metadata: JSON-able values (counters, seeds, configuration).
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def check_tensors(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuses a snapshot whose tensors are not those that are expected, by name, shape and dtype.

    Raises:
        ValueError: naming the first that is missing, unknown, or of another shape or dtype.
    """
    missing, unknown = (
        sorted(expected.keys() - given.keys()),
        sorted(given.keys() - expected.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"the snapshot must have exactly the tensors of what it is restored to; missing are {missing[:5]}, "
            f"unknown are {unknown[:5]}: restore another snapshot"
        )
    for name, tensor in expected.items():
        theirs, ours = ((tuple(t.shape), t.dtype) for t in (given[name], tensor))
        if theirs != ours:
            raise ValueError(
                f"tensor {name!r} of the snapshot must be of shape {ours[0]} and {ours[1]}; got {theirs[0]} and "
                f"{theirs[1]}: restore another snapshot"
            )


@dataclass(frozen=True)
class Window:
    """What was measured while every run advanced by its number of steps.

    A row that did not move keeps the numbers of its last window. Everything is finite; what is not
    measured is 0, and a probe that is not measured keeps its last value.

    Attributes:
        steps: optimizer steps each run stands at, (N,).
        train_loss: mean training loss over the window's steps, (N,) [nats per token]; of a
            post-training run the part of the largest reward that was not earned [1].
        probe_loss: loss on the fixed probe batches at the window's end, (N,) [nats per token]; of a
            post-training run the part of the probe's problems that is not solved [1]; tier `probe`.
        gradient_norm: global L2 norm of the last step's gradient, before the optimizer saw it,
            (N,).
        momentum_norm: global L2 norm of the optimizer's first moments at the window's end, (N,);
            tier `momentum`.
        divergence: index into DIVERGENCE_REASONS, (N,).
        same_batch_loss: loss of the window's last batch after its own update, (N,) [nats per
            token]; tier `same_batch`.
        layer_gradient_norm: L2 norm of the last step's gradient of each layer's matrices, (N, L).
        layer_gradient_max: its largest magnitude, (N, L); tier `gradient_max`.
        layer_activation_mean: mean of the residual stream after each layer at the last step, (N,
            L); tier `activations`.
        layer_activation_variance: its variance, (N, L); tier `activations`.
        layer_saturation: part of each layer's feed-forward units that are saturated, (N, L) in [0,
            1]; tier `activations`.
        gauges: what this kind of plant measures beside, (N, K) under the plant's `gauge_names`.
        privileged: what is true and neither a feature nor a reward term may see, (N, Q) under
            `privileged_names`.
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
        """The window of runs that nothing was measured of."""
        per_run, per_layer = np.zeros(num_rows), np.zeros((num_rows, num_layers))
        counts, own = np.zeros(num_rows, dtype=np.int64), np.zeros((num_rows, num_gauges))
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
            own,
            privileged,
        )


class Plant(Protocol):
    """A population of N training runs that a panel steers.

    Attributes:
        kind: what channels, features and reward terms name it by.
        gauge_names: of the columns of Window.gauges.
        privileged_names: of the columns of Window.privileged.
        score: how its numbers are called.
        stacked: whether the runs are computed together; else one after the other.
        panel: current value of every cell of every run; read at every step.
        num_rows: N, runs in the population.
        num_layers: L, layers of the model.
        all_tiers: those of TIERS that it can measure.
        tiers: what `advance` measures beside what is free.
        corpus_digest: sha256 of what the runs are trained on, or of the student that they begin
            with.
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
        """From now on `advance` measures these of TIERS; before, a plant measures `probe` and `momentum`."""

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Gives all rows, or some, new weights and a new data order, and puts their panel at neutral."""

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps and measures; 0 only measures. A row that is done does not move."""

    def evaluate(self) -> FloatArray:
        """Held-out score of every run, (N,), as `score` says; the only road to the validation slice."""

    def report(self) -> dict[str, FloatArray]:
        """What else is true of every run on held-out data, (N,) each, by name."""

    def snapshot(self) -> Snapshot:
        """Everything: weights, moments, data cursor, counters, panel."""

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot; `keep_panel` leaves the panel's current values in force."""

    def spawn(self, num_rows: int) -> Plant:
        """A new plant of the same configuration with another number of rows."""
