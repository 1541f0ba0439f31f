"""Trajectories: the last losses of every run, and statistics that gauges and terms read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpenv.arrays import BoolArray, FloatArray, IntArray

#: Number of training losses, and of probe losses, that a trajectory keeps [decisions].
NUM_LOSSES, NUM_PROBE_LOSSES = 16, 8

#: Decay of the exponential mean of the training loss: a memory of some twenty decisions.
MEAN_DECAY = 0.95


@dataclass(frozen=True)
class Trajectory:
    """The last losses of every run, and exponential means of them.

    A [loss] is in the plant's unit, `score.loss_unit`.

    Attributes:
        losses: training losses of the last decisions, newest last, (N, 16) [loss].
        num_losses: number of valid entries of `losses`, (N,). The columns before them are 0.
        mean: exponential mean of the training losses, starting at the first, (N,) [loss].
        mean_before: `mean` before the newest loss was added, or the newest loss if it is the only
            one, (N,) [loss].
        lowest_mean: smallest `mean` so far, (N,) [loss].
        probe_losses: last probe losses, newest last, with that of the untrained run, (N, 8) [loss].
        num_probe_losses: number of valid entries of `probe_losses`, (N,).
    """

    losses: FloatArray
    num_losses: IntArray
    mean: FloatArray
    mean_before: FloatArray
    lowest_mean: FloatArray
    probe_losses: FloatArray
    num_probe_losses: IntArray

    @staticmethod
    def empty(num_rows: int) -> Trajectory:
        """Returns the trajectory of runs that have not begun."""
        scalars, counts = np.zeros(num_rows), np.zeros(num_rows, dtype=np.int64)
        losses = np.zeros((num_rows, NUM_LOSSES))
        probe_losses = np.zeros((num_rows, NUM_PROBE_LOSSES))
        return Trajectory(losses, counts, scalars, scalars, scalars, probe_losses, counts)

    def with_reset(self, rows: BoolArray) -> Trajectory:
        """Returns a trajectory in which these rows have no losses yet."""
        return Trajectory(
            **{
                key: np.where(rows.reshape(-1, *[1] * (a.ndim - 1)), 0, a)
                for key, a in vars(self).items()
            }
        )

    def with_losses(self, rows: BoolArray, losses: FloatArray) -> Trajectory:
        """Returns a trajectory with one more training loss of these rows, (N,) [loss]."""
        first = self.num_losses == 0
        before = np.where(first, losses, self.mean)
        mean = MEAN_DECAY * before + (1.0 - MEAN_DECAY) * losses
        lowest_mean = np.where(first, mean, np.minimum(mean, self.lowest_mean))
        recent, count = _append(self.losses, self.num_losses, rows, losses)

        return replace(
            self,
            losses=recent,
            num_losses=count,
            mean=np.where(rows, mean, self.mean),
            mean_before=np.where(rows, before, self.mean_before),
            lowest_mean=np.where(rows, lowest_mean, self.lowest_mean),
        )

    def with_probe_losses(self, rows: BoolArray, losses: FloatArray) -> Trajectory:
        """Returns a trajectory with one more probe loss of these rows, (N,) [loss]."""
        recent, count = _append(self.probe_losses, self.num_probe_losses, rows, losses)
        return replace(self, probe_losses=recent, num_probe_losses=count)


def _append(
    recent: FloatArray, count: IntArray, rows: BoolArray, values: FloatArray
) -> tuple[FloatArray, IntArray]:
    shifted = np.concatenate([recent[:, 1:], values[:, None]], axis=1)
    return np.where(rows[:, None], shifted, recent), np.minimum(count + rows, recent.shape[1])


def _slope_weights(count: int, width: int) -> FloatArray:
    """Returns w such that w . x is the least-squares slope of the last `count` of x, (width,)."""
    weights = np.zeros(width)
    if count > 1:
        time = np.arange(count) - (count - 1) / 2
        weights[width - count :] = time / np.square(time).sum()
    return weights


def _curvature_weights(count: int, width: int) -> FloatArray:
    """Returns w such that w . x is the curvature of the last `count` of x, (width,).

    The curvature is the second difference of the means of the first, middle and last third.
    """
    weights = np.zeros(width)
    third = count // 3
    if third:
        first, last = width - count, width - third
        weights[first : first + third] = weights[last:] = 1.0 / third
        weights[first + third : last] = -2.0 / (count - 2 * third)
    return weights


# Indexed by the number of losses: (count + 1, width).
_SLOPES = {
    w: np.stack([_slope_weights(i, w) for i in range(w + 1)])
    for w in (NUM_LOSSES, NUM_PROBE_LOSSES)
}
_CURVATURES = np.stack([_curvature_weights(i, NUM_LOSSES) for i in range(NUM_LOSSES + 1)])


def slope(recent: FloatArray, count: IntArray) -> FloatArray:
    """Returns the least-squares slope of the last `count` numbers of each row (0 if fewer than 2).

    Args:
        recent: newest last, (N, 16) or (N, 8).
        count: number of valid entries, (N,).

    Returns:
        (N,) [unit of recent per decision].
    """
    return (recent * _SLOPES[recent.shape[1]][count]).sum(1)


def curvature(recent: FloatArray, count: IntArray) -> FloatArray:
    """Returns a second difference of the last `count` numbers of each row (0 if fewer than 3).

    The numbers are divided into three parts with means m1, m2 and m3, and the result is m1 - 2 m2 +
    m3. The first and the last part hold a third of the numbers, rounded down.

    Args:
        recent: newest last, (N, 16).
        count: number of valid entries, (N,).

    Returns:
        (N,) [unit of recent].
    """
    return (recent * _CURVATURES[count]).sum(1)
