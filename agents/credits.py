"""Credits of the Sidecar: from a stream of rewards to the advantages of decisions that lie some rewards back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from agents.returns import (
    STD_EPSILON,
    BoolArray,
    FloatArray,
    corrected_mean,
    credit_weights,
    leave_one_out,
)

Baseline = Literal["own", "population"]
BASELINES: tuple[Baseline, ...] = ("own", "population")


class Advantages(NamedTuple):
    """What a decision was worth, cell by cell.

    Attributes:
        values: divided by `rms` and bounded; 0 where there is no baseline yet, (N, M) [1].
        credits: sums of the rewards that count for a cell, (N, M) [reward].
        baseline: what was subtracted from them, (N, M) [reward].
        rms: root mean square of the advantages so far, (N, M) [reward].
    """

    values: FloatArray
    credits: FloatArray
    baseline: FloatArray
    rms: FloatArray


class CreditStream:
    """Takes N runs' rewards decision by decision; gives the advantages of the decision whose credit
    they complete.

    credit - baseline, divided by the root mean square of advantages so far (this one included), and
    bounded. Baseline and mean square are kept per cell, as the paper has it; the reward being one
    number per run, they are equal among the cells of a row that answer equally fast. The baseline
    of a decision is that of the moment it was taken: one made later holds rewards that the decision
    itself has shaped, and would take part of its effect away. A run's first credits have no
    baseline, and teach nothing.

    Args:
        num_rows: N.
        immediate: cells whose effect the decision's own reward shows, (M,); see
            `returns.credit_weights`.
        delay: decisions between an action and the first reward that answers it.
        horizon: rewards added up to a credit.
        gamma: discount per decision beyond the delay.
        baseline: `own`, an exponential mean of the cell's credits before this one, or `population`,
            the mean of the other rows' credits of the same decision.
        baseline_decay: of that exponential mean.
        scale_decay: of the mean square.
        bound: advantages are clipped to [-bound, bound] after the division.
    """

    def __init__(
        self,
        num_rows: int,
        immediate: Sequence[bool],
        delay: int,
        horizon: int,
        gamma: float,
        baseline: Baseline,
        baseline_decay: float,
        scale_decay: float,
        bound: float,
    ) -> None:
        size = (num_rows, len(immediate))
        # (M, D): one row of weights per cell
        self._weights = np.stack(
            [credit_weights(delay, horizon, gamma, flag) for flag in immediate]
        )
        self._baseline = baseline
        self._decays = (baseline_decay, scale_decay)
        self._bound = bound
        self._rewards = np.zeros(
            (0, num_rows)
        )  # of the decisions that wait, the oldest first, (at most D - 1, N)
        self._baselines = np.zeros((0, *size))  # theirs, and whether there was one
        self._known = np.zeros((0, num_rows, 1))
        self._mean = np.zeros(size)
        self._mean_count = np.zeros((num_rows, 1))
        self._square = np.zeros(size)
        self._square_count = np.zeros((num_rows, 1))

    @property
    def num_waiting(self) -> int:
        """Decisions whose credit is not complete."""
        return len(self._rewards)

    def push(self, rewards: FloatArray, alive: BoolArray) -> Advantages | None:
        """Takes the rewards of the newest decision.

        Args:
            rewards: (N,).
            alive: runs that took it, (N,) bool; what a run that has ended holds is not read, and
                its means stay.

        Returns:
            Advantages of the decision `delay + horizon - 1` back, 0 for runs that have ended; None
            while there are fewer decisions.
        """
        baseline_decay, scale_decay = self._decays
        waiting = np.concatenate([self._rewards, np.where(alive, rewards, 0.0)[None]])  # (<= D, N)
        own = corrected_mean(self._mean, self._mean_count, baseline_decay)
        baselines = np.concatenate([self._baselines, own[None]])
        had_one = np.concatenate([self._known, (self._mean_count > 0)[None]])
        if len(waiting) < self._weights.shape[1]:
            self._rewards, self._baselines, self._known = waiting, baselines, had_one
            return None
        self._rewards, self._baselines, self._known = waiting[1:], baselines[1:], had_one[1:]
        credits = np.where(alive[:, None], (self._weights @ waiting).T, 0.0)  # (N, M)
        if self._baseline == "population":
            baseline = leave_one_out(credits.T, np.broadcast_to(alive, credits.T.shape)).T
            known = (alive & (alive.sum() > 1))[:, None]
        else:
            baseline, known = baselines[0], alive[:, None] & (had_one[0] > 0)
        difference = np.where(known, credits - baseline, 0.0)
        self._mean = np.where(
            alive[:, None],
            baseline_decay * self._mean + (1.0 - baseline_decay) * credits,
            self._mean,
        )
        self._mean_count += alive[:, None]
        self._square = np.where(
            known, scale_decay * self._square + (1.0 - scale_decay) * difference**2, self._square
        )
        self._square_count += known
        rms = np.sqrt(corrected_mean(self._square, self._square_count, scale_decay))
        values = np.clip(difference / (rms + STD_EPSILON), -self._bound, self._bound)
        return Advantages(values, credits, baseline, rms)

    def arrays(self) -> dict[str, FloatArray]:
        """Everything the next push depends on, as copies."""
        return {
            "rewards": self._rewards.copy(),
            "baselines": self._baselines.copy(),
            "known": self._known.copy(),
            "mean": self._mean.copy(),
            "mean_count": self._mean_count.copy(),
            "square": self._square.copy(),
            "square_count": self._square_count.copy(),
        }

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Puts back what `arrays` gave."""
        self._rewards = arrays["rewards"].copy()
        self._baselines = arrays["baselines"].copy()
        self._known = arrays["known"].copy()
        self._mean = arrays["mean"].copy()
        self._mean_count = arrays["mean_count"].copy()
        self._square = arrays["square"].copy()
        self._square_count = arrays["square_count"].copy()


class Evidence:
    """How sure it is that a statistic is not zero on average: t = sum w x / sqrt(sum w^2 x^2) of
    what was pushed.

    The weights w fall off exponentially; were x independent noise, t would have mean 0 and variance
    1 whatever the size of x.

    Args:
        shape: of one x, (N, ...).
        decay: of the weights per push.
    """

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        self._decay = decay
        self._sum = np.zeros(shape)
        self._squares = np.zeros(shape)

    def push(self, values: FloatArray, alive: BoolArray) -> None:
        """Takes one x, (N, ...); rows that are not alive (N,) stay as they are."""
        rows = alive.reshape(-1, *[1] * (values.ndim - 1))
        self._sum = np.where(rows, self._decay * self._sum + values, self._sum)
        self._squares = np.where(rows, self._decay**2 * self._squares + values**2, self._squares)

    def gates(self, z: float) -> FloatArray:
        """max(0, 1 - (z / t)^2): 0 up to |t| = z, and towards 1 beyond; 1 for z = 0 wherever anything was seen."""
        square = np.square(self._sum)
        inverse = np.divide(
            self._squares, square, out=np.full_like(square, np.inf), where=square > 0.0
        )  # 1 / t^2
        return (
            np.maximum(0.0, 1.0 - z * z * inverse) if z > 0.0 else np.where(square > 0.0, 1.0, 0.0)
        )

    def arrays(self) -> dict[str, FloatArray]:
        """Everything the next push depends on, as copies."""
        return {"sum": self._sum.copy(), "squares": self._squares.copy()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Puts back what `arrays` gave."""
        self._sum, self._squares = arrays["sum"].copy(), arrays["squares"].copy()
