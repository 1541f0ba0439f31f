"""A schedule as a table: one row of positions per decision, chosen by the run's progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.policy import as_observations

#: Progress arrives as float32, whose rounding (3e-8 below 1) may put it just under k/K. The
#: distance to the next decision is larger than this tolerance in any run of fewer than ten million
#: steps.
PROGRESS_TOLERANCE = 1e-7


class ScheduleTable:
    """Open-loop policy: at progress p it returns row floor(p K) of a table of K rows.

    At p = 1 it returns the last row. In a run of `num_steps` with a decision every `interval` steps
    and K = ceil(num_steps / interval), decision k reads row k, even if the last window is short.

    Args:
        positions: table, (K, A), in [-1, 1].
        progress_column: column of the observation with the run's progress, t / T in [0, 1].

    Raises:
        ValueError: the table is not two-dimensional, is empty, or leaves [-1, 1].
    """

    spec = ControllerSpec()

    def __init__(self, positions: ArrayLike, progress_column: int = 0) -> None:
        table = np.array(positions, dtype=np.float32)
        if table.ndim != 2 or table.size == 0:
            raise ValueError(
                f"positions must be of shape (K, A), decisions by cells; got {table.shape}"
            )
        if not (np.abs(table) <= 1.0).all():  # also refuses NaN
            raise ValueError(
                f"positions must be in [-1, 1]; got numbers from {table.min()} to {table.max()}"
            )
        if progress_column < 0:
            raise ValueError(f"progress_column must be at least 0; got {progress_column}")

        self.positions: Float32Array = table
        self.progress_column = progress_column
        self.action_size = int(table.shape[1])

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns the row of each run's decision, (N, A) float32, at observations (N, F)."""
        batch = as_observations(observations)
        if self.progress_column >= batch.shape[1]:
            raise ValueError(
                f"observations must have more than {self.progress_column} columns; "
                f"got shape {batch.shape}"
            )

        num_decisions = len(self.positions)
        progress = batch[:, self.progress_column].astype(np.float64)
        rows = np.floor((progress + PROGRESS_TOLERANCE) * num_decisions).astype(np.int64)
        return self.positions[np.clip(rows, 0, num_decisions - 1)]

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments without the table."""
        return {"progress_column": self.progress_column}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns a copy of the table."""
        return {"positions": torch.tensor(self.positions)}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""
        return cls(tensors["positions"].numpy(), **arguments)
