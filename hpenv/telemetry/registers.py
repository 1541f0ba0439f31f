"""Registers: leaky accumulators that the environment keeps as the controller's working memory."""

from __future__ import annotations

import numpy as np

from hpenv.arrays import BoolArray, FloatArray


class Registers:
    """R leaky accumulators of every run: r <- leak r + (1 - leak) a.

    No channel reads them, so they move no weight. A controller writes them with one action and
    reads them in the next observation. (Reward-Driven Training Control, section 2.1: a small bank
    of accumulator state.)

    Attributes:
        values: (N, R) in [-1, 1], 0 at a run's start.
        leak: fraction of a register that a decision keeps, in [0, 1).
    """

    def __init__(self, num_rows: int, num_registers: int, leak: float) -> None:
        """Creates registers of value 0.

        Raises:
            ValueError: for a negative number of registers or a leak outside [0, 1).
        """
        if (
            isinstance(num_registers, bool)
            or not isinstance(num_registers, int | np.integer)
            or num_registers < 0
        ):
            raise ValueError(
                f"num_registers must be a whole number of at least 0; got {num_registers!r}"
            )

        number = isinstance(leak, int | float | np.floating) and not isinstance(leak, bool)
        if not (number and 0.0 <= leak < 1.0):
            raise ValueError(f"register_leak must be at least 0 and below 1; got {leak!r}")

        self.values: FloatArray = np.zeros((num_rows, num_registers))
        self.leak = float(leak)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each action column that writes a register."""
        return tuple(f"register/{i}" for i in range(self.values.shape[1]))

    def write(self, actions: FloatArray, rows: BoolArray) -> None:
        """Accumulates the actions of the chosen rows.

        Args:
            actions: (N, R), clipped to [-1, 1].
            rows: the rows that are written, (N,) bool.
        """
        written = self.leak * self.values + (1.0 - self.leak) * np.clip(actions, -1.0, 1.0)
        self.values = np.where(rows[:, None], written, self.values)

    def clear(self, rows: BoolArray) -> None:
        """Sets the registers of the chosen rows to 0."""
        self.values = np.where(rows[:, None], 0.0, self.values)
