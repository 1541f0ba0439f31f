"""Credit assignment of the Sidecar: turns a stream of rewards into advantages of past decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agents.returns import (
    STD_EPSILON,
    BoolArray,
    FloatArray,
    corrected_mean,
    credit_weights,
    leave_one_out,
)
from agents.sidecar_config import SidecarConfig


class Advantages(NamedTuple):
    """Advantages of one decision, per run and cell.

    Attributes:
        values: (credits - baseline) / rms, bounded, (N, M) [1]. 0 where there is no baseline yet.
        credits: weighted sums of the rewards that count for a cell, (N, M) [reward].
        baseline: baselines of the credits, (N, M) [reward].
        rms: root mean square of the advantages so far, (N, M) [reward].
        slopes: with estimated effects one array, the expectation of advantage x noise that is known
            without a sample, (N, M) [1]. It is added to the policy gradient.
    """

    values: FloatArray
    credits: FloatArray
    baseline: FloatArray
    rms: FloatArray
    slopes: tuple[FloatArray, ...] = ()

    def metrics(self, alive: BoolArray) -> dict[str, float]:
        """Returns means over the rows that are alive, (N,) [reward]."""
        return {
            "train/credit": float(self.credits[alive].mean()),
            "train/baseline": float(self.baseline[alive].mean()),
            "train/advantage_rms": float(self.rms[alive].mean()),
        }


class LinearPart(NamedTuple):
    """The estimated part of the credits of one decision, and the sample that it is a function of.

    Attributes:
        effects: estimated effects of the cells, (N, M) [reward per unit of position].
        noise: (raw - mean) / std, (N, M) [1].
        std: standard deviation, (N, M) [position].
    """

    effects: FloatArray
    noise: FloatArray
    std: FloatArray


class CreditStream:
    """Computes advantages of past decisions from the rewards of N runs, one decision at a time.

    An advantage is credit - baseline, divided by the root mean square of the advantages so far
    (this one included), and bounded. Baseline and mean square are kept per cell, as in the paper.
    The reward is one number per run, so they are equal for cells of a row with equal weights.
    A decision's baseline is the one at the time of the decision. A later baseline would contain
    rewards that the decision has influenced, and would cancel a fraction of its effect. A run's
    first credits have no baseline, and their advantage is 0.

    Args:
        num_rows: N.
        immediate: True for cells whose effect shows in the reward of the same decision, (M,). See
            `returns.credit_weights`.
        config: its `delay`, `horizon` and `gamma` define a credit, and its `baseline`,
            `baseline_decay`, `scale_decay` and `advantage_clip` the advantage.
    """

    #: Names of the arrays that the next push depends on.
    _STATE = ("rewards", "baselines", "known", "mean", "mean_count", "square", "square_count")

    def __init__(self, num_rows: int, immediate: Sequence[bool], config: SidecarConfig) -> None:
        size = (num_rows, len(immediate))
        self._config = config
        # (M, D): one row of weights per cell
        self._weights = np.stack(
            [credit_weights(config.delay, config.horizon, config.gamma, flag) for flag in immediate]
        )
        # Of the waiting decisions, the oldest first: rewards (at most D - 1, N), baselines, and 1
        # where a baseline was known.
        self._rewards = np.zeros((0, num_rows))
        self._baselines = np.zeros((0, *size))
        self._known = np.zeros((0, num_rows, 1))

        self._mean = np.zeros(size)
        self._mean_count = np.zeros((num_rows, 1))
        self._square = np.zeros(size)
        self._square_count = np.zeros((num_rows, 1))

    @property
    def num_waiting(self) -> int:
        """Number of decisions whose credit is not complete."""
        return len(self._rewards)

    @property
    def span(self) -> int:
        """Number of decisions from a decision to the last reward of its credit."""
        return self._weights.shape[1] - 1

    @property
    def bound(self) -> float:
        """Largest magnitude of an advantage."""
        return self._config.advantage_clip

    def push(
        self,
        rewards: FloatArray,
        alive: BoolArray,
        part: LinearPart | None = None,
        controls: FloatArray | None = None,
    ) -> Advantages | None:
        """Adds the rewards of the newest decision.

        Args:
            rewards: (N,).
            alive: True for runs that took the decision, (N,) bool. The rewards of ended runs are
                not read, and their means do not change.
            part: not read. See `estimates.ControlledStream`.
            controls: numbers that the credits of the decision are reduced by, (N, M) [reward].

        Returns:
            Advantages of the decision `delay + horizon - 1` back, 0 for runs that have ended. None
            while there are fewer decisions.
        """
        baseline_decay, scale_decay = self._config.baseline_decay, self._config.scale_decay
        waiting = np.concatenate([self._rewards, np.where(alive, rewards, 0.0)[None]])  # (<= D, N)
        newest = corrected_mean(self._mean, self._mean_count, baseline_decay)
        baselines = np.concatenate([self._baselines, newest[None]])
        is_known = np.concatenate([self._known, (self._mean_count > 0)[None]])
        if len(waiting) < self._weights.shape[1]:
            self._rewards, self._baselines, self._known = waiting, baselines, is_known
            return None

        self._rewards, self._baselines, self._known = waiting[1:], baselines[1:], is_known[1:]

        credits = np.where(alive[:, None], (self._weights @ waiting).T, 0.0)  # (N, M)
        if controls is not None:
            credits = credits - np.where(alive[:, None], controls, 0.0)
        if self._config.baseline == "population":
            baseline = leave_one_out(credits.T, np.broadcast_to(alive, credits.T.shape)).T
            known = (alive & (alive.sum() > 1))[:, None]
        else:
            baseline, known = baselines[0], alive[:, None] & (is_known[0] > 0)

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
        bound = self._config.advantage_clip
        values = np.clip(difference / (rms + STD_EPSILON), -bound, bound)
        return Advantages(values, credits, baseline, rms)

    def restart(self) -> None:
        """Drops the waiting decisions, whose runs have ended. Means and mean squares stay."""
        self._rewards = self._rewards[:0]
        self._baselines = self._baselines[:0]
        self._known = self._known[:0]

    def arrays(self) -> dict[str, FloatArray]:
        """Returns copies of the state that the next push depends on."""
        return {name: getattr(self, f"_{name}").copy() for name in self._STATE}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restores the state that `arrays` returned."""
        for name in self._STATE:
            setattr(self, f"_{name}", arrays[name].copy())


class Evidence:
    """A t-statistic of a stream of values x: t = sum w x / sqrt(sum w^2 x^2).

    |t| is large if the mean of x is not zero. The weights w fall off exponentially. If x is
    independent noise, t has mean 0 and variance 1, whatever the scale of x.

    Args:
        shape: shape of one x, (N, ...).
        decay: decay of the weights per push.
    """

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        self._decay = decay
        self._sum = np.zeros(shape)
        self._squares = np.zeros(shape)

    def push(self, values: FloatArray, alive: BoolArray) -> None:
        """Adds one x, (N, ...). Rows that are not alive, (N,), do not change."""
        rows = alive.reshape(-1, *[1] * (values.ndim - 1))
        self._sum = np.where(rows, self._decay * self._sum + values, self._sum)
        self._squares = np.where(rows, self._decay**2 * self._squares + values**2, self._squares)

    def gates(self, z: float) -> FloatArray:
        """Returns max(0, 1 - (z / t)^2), the shape of x, in [0, 1].

        It is 0 up to |t| = z, and rises towards 1 beyond. For z = 0 it is 1 wherever the sum of x
        is not 0.
        """
        square = np.square(self._sum)
        inverse = np.divide(
            self._squares, square, out=np.full_like(square, np.inf), where=square > 0.0
        )  # 1 / t^2
        return (
            np.maximum(0.0, 1.0 - z * z * inverse) if z > 0.0 else np.where(square > 0.0, 1.0, 0.0)
        )

    def arrays(self) -> dict[str, FloatArray]:
        """Returns copies of the state that the next push depends on."""
        return {"sum": self._sum.copy(), "squares": self._squares.copy()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restores the state that `arrays` returned."""
        self._sum, self._squares = arrays["sum"].copy(), arrays["squares"].copy()
