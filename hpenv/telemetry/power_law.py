"""The exponent of a power law that fits the loss of every run so far.

A loss l(t) = c t^b is a line of slope b in log l and log t. b is the least-squares slope over all
steps t = 1, 2, ... of a run, in which step t has the weight t. So it is mostly that of the last
half of the run: in log t, steps count by e^(2 log t). It depends neither on the unit of the loss
nor on that of the time. The floor of the loss is not subtracted, since it is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hpenv.arrays import BoolArray, FloatArray, IntArray

#: Smaller losses count as this one, so that every logarithm is finite.
SMALLEST_LOSS = 1e-30


@dataclass(frozen=True)
class PowerLaw:
    """Weighted sums over the steps of every run, (N,) each, with x = log t and y = log l.

    Attributes:
        weight: sum of the weights.
        time: sum of x.
        loss: sum of y.
        time_square: sum of x^2.
        time_loss: sum of x y.
    """

    weight: FloatArray
    time: FloatArray
    loss: FloatArray
    time_square: FloatArray
    time_loss: FloatArray

    @staticmethod
    def empty(num_rows: int) -> PowerLaw:
        """Returns the state of runs without a loss."""
        return PowerLaw(*(np.zeros(num_rows) for _ in fields(PowerLaw)))

    def with_reset(self, rows: BoolArray) -> PowerLaw:
        """Returns a state in which these rows have no loss yet."""
        return PowerLaw(**{key: np.where(rows, 0.0, value) for key, value in vars(self).items()})

    def with_losses(self, steps: IntArray, losses: FloatArray) -> PowerLaw:
        """Returns the state after the losses of some steps.

        Args:
            steps: steps that each run had taken before, (N,).
            losses: (S, N), in order. NaN where a run took no step.
        """
        counted = np.isfinite(losses)
        number = steps + np.arange(1.0, len(losses) + 1.0)[:, None]  # (S, N)
        x = np.log(number)
        y = np.log(np.where(counted, np.maximum(losses, SMALLEST_LOSS), 1.0))
        weight = np.where(counted, number, 0.0)
        terms = (1.0, x, y, x * x, x * y)
        sums = zip(vars(self).items(), terms, strict=True)
        return PowerLaw(**{key: old + (weight * term).sum(0) for (key, old), term in sums})

    def exponents(self) -> FloatArray:
        """Returns the exponents, (N,). They are 0 for runs with fewer than two losses."""
        spread = self.weight * self.time_square - np.square(self.time)
        product = self.weight * self.time_loss - self.time * self.loss
        is_fitted = spread > 1e-9 * np.square(self.weight)
        return np.where(is_fitted, product, 0.0) / np.where(is_fitted, spread, 1.0)
