"""Discounted Thompson sampling with Gaussian posteriors, as functions of arrays.

Arm k has a discounted count n_k and a discounted sum s_k of its rewards z. After a reward of arm a,
both are multiplied by the discount g for all arms, and then n_a <- n_a + 1 and s_a <- s_a + z. The
posterior of arm k is

    N(m, v)   m = (c m0 + s_k) / (c + n_k)   v = noise^2 / (c + n_k)

with a prior of mean m0 that counts as c rewards. The arm with the largest of one draw each is
played. An arm that is not played is forgotten: its posterior goes back to the prior.

The reward z of a window is the decrease of the loss over it, minus the mean of all windows so far,
over their standard deviation (both discounted, the newest included), within [-3, 3].

References:
    Qi, Wang and Zhu, "Discounted Thompson Sampling for Non-Stationary Bandit Problems" (arXiv
    2305.10718), for Gaussian posteriors. Raj and Kalyani, "Taming Non-stationary Bandits: A
    Bayesian Approach" (arXiv 1707.09727), who discount all arms at every round. "AdaptiveRL: a
    control-theoretic scheduler for alpha, mu, sigma", section 9: the reward.

Departures: AdaptiveRL names a normalized loss drop and no formula. A drop over its mean size alone
falls over a run for all arms, which favors the arm that was played first, so the mean is
subtracted. A prior (c > 0) gives an arm that was never played a finite variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.base import BoolArray, FloatArray

#: Largest size of a standardized reward.
LARGEST_REWARD = 3.0


@dataclass(frozen=True)
class BanditConfig:
    """Constants of the bandit. All are ours."""

    window: int = 3  # decisions of a choice
    discount: float = 0.95  # g, of a window [1]
    prior_mean: float = 0.0  # m0, of a standardized reward: that of an average window
    prior_count: float = 2.0  # c [windows]
    noise: float = 1.0  # standard deviation of a standardized reward within an arm

    def __post_init__(self) -> None:
        """Checks the constants.

        Raises:
            ValueError: a constant is out of its range.
        """
        if self.window < 1:
            raise ValueError(f"window must be at least 1; got {self.window}")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount must be in (0, 1]; got {self.discount}")
        if not (self.prior_count > 0.0 and self.noise > 0.0):
            raise ValueError(
                f"prior_count and noise must be above 0; got {self.prior_count} and {self.noise}"
            )


def add_reward(
    counts: FloatArray,
    sums: FloatArray,
    arms: np.ndarray,
    rewards: FloatArray,
    alive: BoolArray,
    discount: float,
) -> tuple[FloatArray, FloatArray]:
    """Returns counts and sums after one reward per run.

    Args:
        counts: discounted counts, (N, K).
        sums: discounted sums of rewards, (N, K).
        arms: arm that each run has played, (N,) int.
        rewards: (N,).
        alive: runs that have played. The others do not change, (N,).
        discount: factor of all earlier counts and sums.

    Returns:
        Counts and sums, (N, K) each.
    """
    played = np.eye(counts.shape[1])[arms]  # (N, K)
    after = discount * counts + played, discount * sums + played * rewards[:, None]
    rows = alive[:, None]
    return np.where(rows, after[0], counts), np.where(rows, after[1], sums)


def posterior(
    counts: FloatArray, sums: FloatArray, prior_mean: float, prior_count: float, noise: float
) -> tuple[FloatArray, FloatArray]:
    """Returns mean and standard deviation of every arm's mean reward, (N, K) each.

    Args:
        counts: discounted counts, (N, K).
        sums: discounted sums of rewards, (N, K).
        prior_mean: mean of the prior.
        prior_count: number of rewards that the prior counts as.
        noise: standard deviation of a reward.
    """
    total = prior_count + counts
    return (prior_count * prior_mean + sums) / total, noise / np.sqrt(total)


def thompson_arms(means: FloatArray, deviations: FloatArray, normals: FloatArray) -> np.ndarray:
    """Returns the arm with the largest draw, (N,) int, from standard normal numbers (N, K)."""
    return np.argmax(means + deviations * normals, axis=1)


def standardize_reward(
    moments: FloatArray, rewards: FloatArray, alive: BoolArray, discount: float
) -> tuple[FloatArray, FloatArray]:
    """Returns standardized rewards, and the moments after them.

    Args:
        moments: discounted count, mean and sum of squared distances from it, (3, N).
        rewards: (N,).
        alive: runs with a reward. The others do not change, and get 0, (N,).
        discount: factor of all earlier rewards' weights.

    Returns:
        (reward - mean) / standard deviation within [-LARGEST_REWARD, LARGEST_REWARD], (N,), 0
        where all rewards were equal, and moments (3, N).
    """
    count, mean, squares = moments
    count = discount * count + 1.0
    distance = rewards - mean
    mean = mean + distance / count
    squares = discount * squares + distance * (rewards - mean)

    deviation = np.sqrt(np.maximum(squares / count, 0.0))
    # A relative bound: rounding alone must not look like a difference.
    differs = deviation > 1e-9 * np.abs(mean)
    scores = np.where(differs, (rewards - mean) / np.where(differs, deviation, 1.0), 0.0)
    scores = np.clip(scores, -LARGEST_REWARD, LARGEST_REWARD)
    after = np.stack([count, mean, squares])
    return np.where(alive, scores, 0.0), np.where(alive, after, moments)
