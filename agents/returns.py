"""Returns, baselines and advantages as pure functions of arrays (T, N): T decisions of N episodes.

`alive` is True for decisions that were taken. An episode that ended early keeps its column. Its
entries after the end are never read, they count in no mean, and their result is 0. Standard
deviations are the population's (divided by the number of samples, not by one less), so that a group
of one has 0 and not a NaN. 1e-8 is added to them, as in stable-baselines3.
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
    """Returns the mean over the runs alive at each decision, (T, 1), or 0 where no run is alive."""
    count = np.maximum(alive.sum(axis=1, keepdims=True), 1)
    return np.where(alive, values, 0.0).sum(axis=1, keepdims=True) / count


def discounted_returns(rewards: NDArray[np.floating], alive: BoolArray, gamma: float) -> FloatArray:
    """Returns the discounted reward-to-go of every decision.

    R[t, n] = sum over t' >= t of gamma^(t' - t) r[t', n] (JEL, equation 1).

    Args:
        rewards: (T, N).
        alive: True for decisions that were taken, (T, N) bool.
        gamma: discount per decision, in [0, 1].

    Returns:
        (T, N) [reward], 0 where not alive.
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

    A[t, n] = R[t, n] - mean over alive m of R[t, m] (JEL, equations 2 and 3). It is divided neither
    by the group's standard deviation nor by the episode's length (JEL, section 3.5). The mean
    includes the run itself, as in the paper.

    Args:
        returns: discounted reward-to-go, (T, N) [reward].
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N). At every decision they sum to zero over the runs that are alive, and are
        0 if only one run is alive.
    """
    _assert_pair(returns, alive)
    values = np.asarray(returns, dtype=np.float64)
    return np.where(alive, values - _alive_mean(values, alive), 0.0)


def standardize_per_step(returns: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Centers returns, and divides them by the standard deviation over the runs at each decision.

    The mean and the standard deviation (plus 1e-8) are over the runs that are alive. All decisions
    get the same weight. Without the division, the first windows, where most of the loss falls,
    weigh most.

    Args:
        returns: discounted reward-to-go, (T, N) [reward].
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N) [1].
    """
    centered = centered_returns(returns, alive)
    std = np.sqrt(_alive_mean(centered**2, alive))
    return centered / (std + STD_EPSILON)


def standardize_batch(advantages: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Standardizes all advantages of a batch together.

    (A - mean) / (std + 1e-8), with mean and std over all decisions that were taken.

    Args:
        advantages: (T, N).
        alive: True for decisions that were taken, (T, N) bool. At least one is True.

    Returns:
        (T, N) [1], with mean 0 over the decisions that were taken.
    """
    _assert_pair(advantages, alive)
    values = np.asarray(advantages, dtype=np.float64)
    taken = values[alive]
    assert taken.size > 0, "no decision was taken"
    return np.where(alive, (values - taken.mean()) / (taken.std() + STD_EPSILON), 0.0)


def grpo_outcome(rewards: NDArray[np.floating], alive: BoolArray) -> FloatArray:
    """Returns the advantages of standard GRPO with outcome supervision.

    All decisions of an episode get its total reward, z-scored over the group. The total is not
    discounted, because an outcome is one number at the episode's end (Shao et al. 2024, section
    4.1.2). Use it with `episode_weights`. Departs from that paper: there a group shares a prompt,
    here the N episodes share the task.

    Args:
        rewards: (T, N).
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        Advantages, (T, N) [1], constant along an episode.
    """
    _assert_pair(rewards, alive)
    totals = np.where(alive, rewards, 0.0).astype(np.float64).sum(axis=0, keepdims=True)  # (1, N)
    scores = standardize_per_step(totals, np.asarray(alive.any(axis=0, keepdims=True)))
    return np.where(alive, scores, 0.0)


def episode_weights(alive: BoolArray) -> FloatArray:
    """Returns the weights that turn a mean over decisions into a mean over episodes' means.

    This is standard GRPO's 1/|o_i|: w[t, n] = (decisions / episodes) / length[n]. The weights' mean
    is 1, so a minibatch's weighted mean is an unbiased estimate. If all episodes have the same
    length, all weights are 1.

    Args:
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        (T, N) [1], 0 where not alive.
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
    alive: BoolArray,
    gamma: float,
    gae_lambda: float,
) -> FloatArray:
    """Returns generalized advantage estimates (Schulman et al. 2016, equation 16).

    A[t] = delta[t] + gamma lambda A[t + 1], delta[t] = r[t] + gamma V[t + 1] - V[t]. V is 0 after
    an episode's end. With lambda 1 this is `discounted_returns` minus the values.

    Args:
        rewards: (T, N).
        values: the critic's value of each decision's observation, (T, N).
        alive: True for decisions that were taken, (T, N) bool.
        gamma: discount per decision.
        gae_lambda: lambda, in [0, 1].

    Returns:
        Advantages, (T, N) [reward], 0 where not alive.
    """
    _assert_pair(rewards, alive)
    _assert_pair(values, alive)

    advantages = np.zeros(alive.shape)
    next_value = np.zeros(alive.shape[1])
    following = np.zeros(alive.shape[1])

    for t in reversed(range(len(alive))):
        value = np.where(alive[t], values[t], 0.0).astype(np.float64)
        delta = np.where(alive[t], rewards[t], 0.0) + gamma * next_value - value
        following = np.where(alive[t], delta + gamma * gae_lambda * following, 0.0)
        advantages[t] = following
        next_value = value

    return advantages


def credit_weights(delay: int, horizon: int, gamma: float, immediate: bool) -> FloatArray:
    """Returns the weights of the rewards in a decision's credit, starting at the same decision.

    Reward k after the decision weighs gamma^max(0, k - delay) for k = delay ... delay + horizon -
    1. The first reward that the decision affects comes `delay` decisions after it. For an immediate
    cell with a delay, the rewards before that, k = 0 ... delay - 1, also count in full, and the
    reward of the decision itself, k = 0, counts twice.

    The reason: let the reward be the fall of the training loss, r(t) = L(t - 1) - L(t). Decision t
    shapes an update that shows in r(t + 1), so the delay is 1. But a channel of the forward pass
    has also moved L(t), and r(t + 1) alone would pay the channel for spoiling L(t). The sum r(t) +
    r(t + 1) = L(t - 1) - L(t + 1) is the effect that the decision left in the weights. The second
    r(t) is the effect of the channel's value on the loss, which it has at every decision.

    Args:
        delay: decisions between an action and the first reward that it affects.
        horizon: number of rewards in the sum from there.
        gamma: discount per decision after the first of them.
        immediate: True if the cell already affects the loss of the decision's own step.

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
    """Returns the mean of the other runs' values at the same decision.

    Args:
        values: (T, N).
        alive: True for decisions that were taken, (T, N) bool.

    Returns:
        (T, N), 0 for a run that is not alive or is alone. It is independent of the run's value, so
        it is an unbiased baseline.
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
    """Returns a bias-corrected exponential mean.

    m <- decay m + (1 - decay) x starts at 0. The mean is m / (1 - decay^count), as Adam corrects
    its moments (Kingma & Ba 2015, section 3), and 0 where the count is 0.

    Args:
        accumulated: m, (...).
        count: number of values in m. It broadcasts against m.
        decay: in [0, 1).
    """
    return np.where(count > 0, accumulated / (1.0 - decay ** np.maximum(count, 1)), 0.0)
