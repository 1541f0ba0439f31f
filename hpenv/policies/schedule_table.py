"""A schedule written out: one row of positions for every decision, read by the progress of the run alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from hpenv.policies.policy import Float32Array, as_observations

#: Progress arrives as float32, whose rounding (3e-8 below 1) may put k/K just under k/K. The next
#: decision is further away than this in any run of fewer than ten million steps.
PROGRESS_TOLERANCE = 1e-7


class ScheduleTable:
    """Open-loop policy: at progress p it takes row floor(p K) of a table of K rows, and at p = 1
    the last row.

    With decisions every `interval` steps of a run of `num_steps`, and K = ceil(num_steps /
    interval), decision k reads row k, also when the last window is short.

    Args:
        positions: table, (K, A), in [-1, 1].
        progress_column: the column of the observation that holds the progress of the run, t / T in
            [0, 1].

    Raises:
        ValueError: the table is not two-dimensional, is empty, or leaves [-1, 1].
    """

    def __init__(self, positions: ArrayLike, progress_column: int = 0) -> None:
        table = np.array(positions, dtype=np.float32)
        if table.ndim != 2 or table.size == 0:
            raise ValueError(
                f"positions of shape {table.shape}; expected (K, A): decisions by cells"
            )
        if not (np.abs(table) <= 1.0).all():  # false for a NaN too
            raise ValueError(
                f"positions from {table.min()} to {table.max()}; expected numbers in [-1, 1]"
            )
        if progress_column < 0:
            raise ValueError(f"progress_column {progress_column}; expected 0 or more")
        self.positions: Float32Array = table
        self.progress_column = progress_column
        self.action_size = int(table.shape[1])

    def act_mean(self, obs: np.ndarray) -> Float32Array:
        """The row of each run's decision, (N, A) float32, at observations (N, F)."""
        batch = as_observations(obs)
        if self.progress_column >= batch.shape[1]:
            raise ValueError(
                f"observations of shape {batch.shape}; expected more than {self.progress_column} columns"
            )
        num_decisions = len(self.positions)
        progress = batch[:, self.progress_column].astype(np.float64)
        rows = np.floor((progress + PROGRESS_TOLERANCE) * num_decisions).astype(np.int64)
        return self.positions[np.clip(rows, 0, num_decisions - 1)]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments but for the table."""
        return {"progress_column": self.progress_column}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The table, as a copy."""
        return {"positions": torch.tensor(self.positions)}

    @classmethod
    def from_saved(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The policy whose `arguments` and `tensors` these are."""
        return cls(tensors["positions"].numpy(), **arguments)
