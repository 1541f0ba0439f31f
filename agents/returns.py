"""Returns, baselines and advantages as pure functions of arrays (T, N): T decisions of N episodes.

`alive` is True for decisions that were really taken. An episode that ended early keeps its column:
what its other entries hold is never read, they count in no mean, and their result is 0. Standard
deviations are the population's (divided by the number of samples, not by one less), so that a group
of one has 0 and not a NaN; 1e-8 is added as in stable-baselines3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STD_EPSILON = 1e-8


def _assert_pair(values: NDArray[np.floating], alive: BoolArray) -> None:
    assert values.ndim == 2, f"expected (T, N), got {values.shape}"
    assert values.shape == alive.shape, f"{values.shape} and alive {alive.shape} differ"
    assert alive.dtype == np.bool_, f"alive is {alive.dtype}, expected bool"


def _alive_mean(values: FloatArray, alive: BoolArray) -> FloatArray:
    """Mean over the runs alive at each decision, (T, 1); 0 where none is."""
    count = np.maximum(alive.sum(axis=1, keepdims=True), 1)
    return np.where(alive, values, 0.0).sum(axis=1, keepdims=True) / count


def discounted_returns(rewards: NDArray[np.floating], alive: BoolArray, gamma: float) -> FloatArray:
    """Discounted reward-to-go of every decision.

    R[t, n] = sum over t' >= t of gamma^(t' - t) r[t', n] (JEL, equation 1).

    Args:
        rewards: (T, N).
        alive: True for decisions that were taken, (T, N) bool.
        gamma: discount per decision, in [0, 1].

    Returns:
        (T, N) [reward]; 0 where not alive.
    """
    _assert_pair(rewards, alive)
    taken = np.where(alive, rewards, 0.0).astype(np.float64)
    returns = np.zeros_like(taken)
    following = np.zeros(taken.shape[1])
    for t in reversed(range(len(taken))):
        following = taken[t] + gamma * following
        returns[t] = following
    return returns


def centered_returns(returns: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Centers each run's return on the mean of the runs at the same decision.

    A[t, n] = R[t, n] - mean over alive m of R[t, m] (JEL, equations 2 and 3). Not divided by the
    group's standard deviation, and not by the episode's length (JEL, section 3.5). The mean
    includes the run itself, as in the paper.

    Args:
        returns: discounted reward-to-go, (T, N) [reward].
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N); at every decision they sum to zero over the runs that are alive, and are
        0 if only one is.
    """
    _assert_pair(returns, alive)
    values = np.asarray(returns, dtype=np.float64)
    return np.where(alive, values - _alive_mean(values, alive), 0.0)


def per_step_standardized(returns: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Centers and divides by the standard deviation of the runs alive at the same decision, plus
    1e-8.

    Gives every decision the same weight; without it the first windows, where most of the loss
    falls, weigh most.

    Args:
        returns: discounted reward-to-go, (T, N) [reward].
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N) [1].
    """
    centered = centered_returns(returns, alive)
    std = np.sqrt(_alive_mean(centered**2, alive))
    return centered / (std + STD_EPSILON)


def batch_standardized(advantages: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Standardizes all advantages of the batch together: (A - mean) / (std + 1e-8) over all
    decisions that were taken.

    Args:
        advantages: (T, N).
        alive: True for decisions that were taken, (T, N) bool; at least one.

    Returns:
        (T, N) [1]; mean 0 over what is alive.
    """
    _assert_pair(advantages, alive)
    values = np.asarray(advantages, dtype=np.float64)
    taken = values[alive]
    assert taken.size > 0, "no decision was taken"
    return np.where(alive, (values - taken.mean()) / (taken.std() + STD_EPSILON), 0.0)


def grpo_outcome(rewards: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Standard GRPO, outcome supervision: the episode's total reward, z-scored over the group, for
    all its decisions.

    The total is not discounted: an outcome is one number at the episode's end (Shao et al. 2024,
    section 4.1.2). To be used with `episode_weights`. Departs from it: there the group shares a
    prompt, here the N episodes share the task.

    Args:
        rewards: (T, N).
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N) [1]; constant along an episode.
    """
    _assert_pair(rewards, alive)
    totals = np.where(alive, rewards, 0.0).astype(np.float64).sum(axis=0, keepdims=True)  # (1, N)
    scores = per_step_standardized(totals, np.asarray(alive.any(axis=0, keepdims=True)))
    return np.where(alive, scores, 0.0)


def episode_weights(alive: BoolArray) -> FloatArray:
    """Weight of each decision in a mean over decisions that makes it a mean over episodes of their
    means.

    Standard GRPO's 1/|o_i|: w[t, n] = (decisions / episodes) / length[n], so that the weights' mean
    is 1 and a minibatch's weighted mean is an unbiased estimate. When all episodes have one length
    all weights are 1.

    Args:
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        (T, N) [1]; 0 where not alive.
    """
    assert alive.ndim == 2 and alive.dtype == np.bool_, (
        f"expected (T, N) bool, got {alive.shape} {alive.dtype}"
    )
    lengths = alive.sum(axis=0)  # (N,)
    num_episodes = max(int((lengths > 0).sum()), 1)
    return np.where(alive, lengths.sum() / num_episodes / np.maximum(lengths, 1), 0.0)


def gae(
    rewards: NDArray[np.floating],
    values: NDArray[np.floating],
    last_values: NDArray[np.floating],
    alive: BoolArray,
    gamma: float,
    gae_lambda: float,
) -> FloatArray:
    """Generalized advantage estimates (Schulman et al. 2016, equation 16).

    A[t] = delta[t] + gamma lambda A[t + 1], delta[t] = r[t] + gamma V[t + 1] - V[t]; V is 0 after
    an episode's end. With lambda 1 and last values 0 this is `discounted_returns` minus the values.

    Args:
        rewards: (T, N).
        values: the critic's value of each decision's observation, (T, N).
        last_values: value of the observation after the last row, (N,); 0 where the episode has
            ended there. Read only for the runs that are alive in the last row.
        alive: True for decisions that were taken, (T, N) bool.
        gamma: discount per decision.
        gae_lambda: in [0, 1].

    Returns:
        Advantages, (T, N) [reward]; 0 where not alive.
    """
    _assert_pair(rewards, alive)
    _assert_pair(values, alive)
    assert last_values.shape == alive.shape[1:], (
        f"last_values {last_values.shape}, expected {alive.shape[1:]}"
    )
    advantages = np.zeros(alive.shape)
    next_value = np.where(alive[-1], last_values, 0.0).astype(np.float64)
    following = np.zeros(alive.shape[1])
    for t in reversed(range(len(alive))):
        value = np.where(alive[t], values[t], 0.0).astype(np.float64)
        delta = np.where(alive[t], rewards[t], 0.0) + gamma * next_value - value
        following = np.where(alive[t], delta + gamma * gae_lambda * following, 0.0)
        advantages[t] = following
        next_value = value
    return advantages


def credit_weights(delay: int, horizon: int, gamma: float, immediate: bool) -> FloatArray:
    """How much each reward counts in the credit of a decision, from the decision's own reward on.

    Reward k after the decision weighs gamma^max(0, k - delay) for k = delay ... delay + horizon -
    1, where the first reward that answers the decision comes `delay` decisions after it. For an
    immediate cell with a delay the rewards before it, k = 0 ... delay - 1, count in full as well,
    and the decision's own, k = 0, twice.

    Why: with the fall of the training loss as reward, r(t) = L(t - 1) - L(t), the update that
    decision t shapes shows in r(t + 1), delay 1. But a dial that the forward pass reads has moved
    L(t) itself, and r(t + 1) alone would pay it for spoiling L(t). r(t) + r(t + 1) = L(t - 1) - L(t
    + 1) is what the decision left behind in the weights; the other r(t) is what the dial did to the
    loss while it stood there, and would do again wherever it stood.

    Args:
        delay: decisions between an action and the first reward that answers it.
        horizon: rewards added up from there.
        gamma: discount per decision beyond the first of them.
        immediate: whether the loss of the decision's own step answers to the cell already.

    Returns:
        (delay + horizon,).
    """
    assert delay >= 0 and horizon >= 1, f"delay {delay}, horizon {horizon}"
    after = np.arange(delay + horizon)
    weights = gamma ** np.maximum(after - delay, 0).astype(np.float64)
    if immediate:
        return weights + ((after == 0) & (delay > 0))
    return np.where(after >= delay, weights, 0.0)


def leave_one_out(values: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Mean of the other runs' values at the same decision; 0 for a run that is not alive or has no
    other.

    Args:
        values: (T, N).
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        (T, N); independent of the run's own value, so that as a baseline it biases nothing.
    """
    _assert_pair(values, alive)
    taken = np.where(alive, values, 0.0).astype(np.float64)
    others = alive.sum(axis=1, keepdims=True) - 1
    return np.where(
        alive & (others > 0),
        (taken.sum(axis=1, keepdims=True) - taken) / np.maximum(others, 1),
        0.0,
    )


def corrected_mean(
    accumulated: NDArray[np.floating],
    count: NDArray[np.integer] | NDArray[np.floating],
    decay: float,
) -> FloatArray:
    """Exponential mean of `count` values from its recursion m <- decay m + (1 - decay) x that began
    at 0.

    m / (1 - decay^count), as Adam corrects its moments (Kingma & Ba 2015, section 3); 0 where
    nothing was counted.

    Args:
        accumulated: m, (...).
        count: how many values it holds; broadcasts against m.
        decay: in [0, 1).
    """
    return np.where(count > 0, accumulated / (1.0 - decay ** np.maximum(count, 1)), 0.0)
