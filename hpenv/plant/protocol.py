"""The protocol of a plant, and its records Snapshot and Score."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from hpenv.arrays import FloatArray, IntArray
from hpenv.control.panel import Panel
from hpenv.plant.measurements import Measurement, Window

#: Reasons for which a run ends before its budget. The empty string: it has not diverged.
DIVERGENCE_REASONS = (
    "",
    "loss_nonfinite",
    "gradient_nonfinite",
    "loss_above_limit",
    "kl_above_limit",
)


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


class Plant(Protocol):
    """A population of N training runs that a panel steers.

    Attributes:
        kind: name of the plant in channels.
        measurements: what the plant can measure.
        score: names and units of the plant's score and losses.
        stacked: True if the runs are computed together, False if one after the other.
        panel: current value of every cell of every run. It changes between windows only.
        num_rows: N, runs in the population.
        num_layers: L, layers of the model.
        measured_groups: measurement groups that `advance` measures.
        corpus_digest: sha256 of the text of the runs, or of the student that they begin with.
    """

    kind: str
    measurements: tuple[Measurement, ...]
    score: Score
    stacked: bool
    panel: Panel
    num_rows: int
    num_layers: int
    measured_groups: frozenset[str]
    corpus_digest: str

    def set_measured_groups(self, groups: Collection[str]) -> None:
        """Sets the groups that `advance` measures. The default is `probe`, `momentum`."""

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Starts new runs in the given rows (default: all), with their panel at neutral."""

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps and measures.

        A row with 0 steps, or that has diverged, is only measured.
        """

    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), as described by `score`.

        Only this method and `report` use held-out data.
        """

    def report(self) -> dict[str, FloatArray]:
        """Returns the score under its key, and further held-out measurements, (N,) each."""

    def snapshot(self) -> Snapshot:
        """Returns the whole state: weights, moments, data cursor, counters, panel."""

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot. With `keep_panel` the panel keeps its current values."""

    def spawn(self, num_rows: int) -> Plant:
        """Returns a new plant of the same configuration with another number of rows."""
