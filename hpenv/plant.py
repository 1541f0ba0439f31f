"""The plant's protocol: what evolves, what is measured while it does, and what a snapshot of it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hpenv.panel import Panel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: Why a run ended before its budget; the empty string means that it did not.
DIVERGENCE_REASONS = ("", "loss_nonfinite", "gradient_nonfinite", "loss_above_limit")


@dataclass(frozen=True)
class Snapshot:
    """All that is needed to continue bitwise: arrays under flat names, and everything else as JSON.

    Attributes:
        tensors: name -> tensor; the snapshot owns them (they share no memory with what they were taken from).
        metadata: JSON-able values (counters, seeds, configuration).
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """What was measured while every run advanced by its number of steps.

    A row that did not move keeps the numbers of its last window.

    Attributes:
        steps: optimizer steps each run stands at, (N,).
        train_loss: mean training loss over the window's steps, (N,) [nats per token].
        probe_loss: loss on the fixed probe batches at the window's end, (N,) [nats per token].
        gradient_norm: global L2 norm of the last step's gradient, before the optimizer saw it, (N,).
        momentum_norm: global L2 norm of the optimizer's first moments at the window's end, (N,).
        divergence: index into DIVERGENCE_REASONS, (N,).
    """

    steps: IntArray
    train_loss: FloatArray
    probe_loss: FloatArray
    gradient_norm: FloatArray
    momentum_norm: FloatArray
    divergence: IntArray


class Plant(Protocol):
    """A population of N training runs that a panel steers.

    Attributes:
        panel: current value of every cell of every run; read at every step.
        num_rows: N, runs in the population.
        corpus_digest: sha256 of what the runs are trained on.
    """

    panel: Panel
    num_rows: int
    corpus_digest: str

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Gives all rows, or some, new weights and a new data order, and puts their panel at neutral."""

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps and measures; 0 only measures. A row that is done does not move."""

    def evaluate(self) -> FloatArray:
        """Held-out score of every run, (N,); the only road to the validation slice."""

    def snapshot(self) -> Snapshot:
        """Everything: weights, moments, data cursor, counters, panel."""

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot; `keep_panel` leaves the panel's current values in force."""

    def spawn(self, num_rows: int) -> Plant:
        """A new plant of the same configuration with another number of rows."""
