"""Registers: the controller's own working memory, leaky accumulators that the environment keeps for it."""

from __future__ import annotations

import numpy as np

from hpenv.plant import BoolArray, FloatArray


class Registers:
    """R leaky accumulators of every run: r <- leak r + (1 - leak) a.

    No channel reads them, so they move no weight: what a controller writes in one decision is what
    it reads in the next observations. (Reward-Driven Training Control, section 2.1: a small bank of
    accumulator state.)

    Attributes:
        values: (N, R) in [-1, 1]; 0 at a run's start.
        leak: part of a register that is kept, in [0, 1).
    """

    def __init__(self, num_rows: int, num_registers: int, leak: float) -> None:
        """Empty registers.

        Raises:
            ValueError: for a negative number of registers or a leak outside [0, 1).
        """
        if (
            isinstance(num_registers, bool)
            or not isinstance(num_registers, int | np.integer)
            or num_registers < 0
        ):
            raise ValueError(f"num_registers={num_registers!r} must be at least 0, a whole number")
        number = isinstance(leak, int | float | np.floating) and not isinstance(leak, bool)
        if not (number and 0.0 <= leak < 1.0):
            raise ValueError(f"register_leak={leak!r} must be at least 0 and below 1")
        self.values: FloatArray = np.zeros((num_rows, num_registers))
        self.leak = float(leak)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each column that writes one."""
        return tuple(f"register/{i}" for i in range(self.values.shape[1]))

    def write(self, actions: FloatArray, rows: BoolArray) -> None:
        """Lets the chosen rows accumulate: actions (N, R), clipped to [-1, 1]; rows (N,) bool."""
        written = self.leak * self.values + (1.0 - self.leak) * np.clip(actions, -1.0, 1.0)
        self.values = np.where(rows[:, None], written, self.values)

    def clear(self, rows: BoolArray) -> None:
        """Sets the chosen rows to 0."""
        self.values = np.where(rows[:, None], 0.0, self.values)
