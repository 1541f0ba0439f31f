"""Discounted Thompson sampling: numbers by hand, and planted bandits."""

import numpy as np

from agents.thompson import (
    BanditConfig,
    add_reward,
    posterior,
    standardize_reward,
    thompson_arms,
)


def test_counts_and_sums_are_those_by_hand():
    counts, sums = np.zeros((2, 3)), np.zeros((2, 3))
    for arms, rewards in (((0, 2), (1.0, -2.0)), ((1, 2), (3.0, 4.0)), ((0, 2), (5.0, 9.0))):
        alive = np.array([True, rewards[1] != 9.0])  # the second run ends after two windows
        counts, sums = add_reward(
            counts, sums, np.array(arms), np.array(rewards), alive, discount=0.5
        )
    # The first: arm 0 at windows 1 and 3, arm 1 at window 2.
    assert counts.tolist() == [[1.25, 0.5, 0.0], [0.0, 0.0, 1.5]]
    assert sums.tolist() == [[5.25, 1.5, 0.0], [0.0, 0.0, 3.0]]

    means, deviations = posterior(counts, sums, prior_mean=2.0, prior_count=1.0, noise=3.0)
    assert np.allclose(means, [[7.25 / 2.25, 3.5 / 1.5, 2.0], [2.0, 2.0, 2.0]])
    assert np.allclose(deviations, 3.0 / np.sqrt([[2.25, 1.5, 1.0], [1.0, 1.0, 2.5]]))


def test_the_posterior_without_discount_is_that_of_the_normal_distribution():
    rewards = np.random.default_rng(0).normal(1.0, 0.5, 40)
    counts, sums = np.zeros((1, 2)), np.zeros((1, 2))
    for reward in rewards:
        counts, sums = add_reward(
            counts, sums, np.array([1]), np.array([reward]), np.array([True]), discount=1.0
        )
    (means,), (deviations,) = posterior(counts, sums, 0.0, 4.0, 0.5)
    # A prior N(0, 0.5^2 / 4) and 40 rewards of variance 0.5^2.
    precision = 4.0 / 0.25 + 40 / 0.25
    assert np.isclose(means[1], rewards.sum() / 0.25 / precision)
    assert np.isclose(deviations[1], precision**-0.5)


def test_an_arm_that_is_not_played_goes_back_to_the_prior():
    counts, sums = np.array([[5.0, 5.0]]), np.array([[10.0, 10.0]])
    for _ in range(100):
        counts, sums = add_reward(
            counts, sums, np.array([0]), np.array([2.0]), np.array([True]), 0.9
        )
    means, deviations = posterior(counts, sums, 0.0, 2.0, 1.0)
    assert abs(means[0, 1]) < 1e-3 and np.isclose(deviations[0, 1], 2.0**-0.5, atol=1e-3)
    assert np.isclose(counts[0, 0], 10.0, atol=1e-3)


def test_the_largest_draw_is_played():
    means, deviations = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.5], [1.0, 0.5]])
    normals = np.array([[0.9, 0.0], [1.0, -0.2]])
    assert thompson_arms(means, deviations, normals).tolist() == [1, 0]


def test_standardized_rewards_are_those_by_hand_and_have_no_unit():
    moments, scaled = np.zeros((3, 1)), np.zeros((3, 1))
    found = []
    for reward in (1.0, 3.0, 5.0):
        arguments = np.array([True]), 1.0
        scores, moments = standardize_reward(moments, np.array([reward]), *arguments)
        others, scaled = standardize_reward(scaled, np.array([1000.0 * reward]), *arguments)
        assert np.isclose(scores, others)
        found.append(float(scores[0]))
    # 1, 3 have mean 2 and deviation 1. 1, 3, 5 have mean 3 and variance 8 / 3.
    assert np.allclose(found, [0.0, 1.0, 2.0 / np.sqrt(8.0 / 3.0)])

    scores, after = standardize_reward(moments, np.array([9.0]), np.array([False]), 1.0)
    assert scores == 0.0 and np.array_equal(after, moments)


def play(discount: float, switches: bool, seed: int, rounds: int = 400) -> float:
    """Returns how often the best of five Gaussian arms is played, over 20 runs."""
    random, runs = np.random.default_rng(seed), 20
    config = BanditConfig(discount=discount)
    counts, sums = np.zeros((runs, 5)), np.zeros((runs, 5))
    hits = 0.0
    for number in range(rounds):
        best = (number // 100) % 5 if switches else 3
        values = np.where(np.arange(5) == best, 1.0, -0.5)
        beliefs = posterior(counts, sums, config.prior_mean, config.prior_count, config.noise)
        arms = thompson_arms(*beliefs, random.standard_normal((runs, 5)))
        rewards = values[arms] + random.standard_normal(runs)
        counts, sums = add_reward(
            counts, sums, arms, rewards, np.ones(runs, dtype=bool), config.discount
        )
        hits += float(np.mean(arms == best)) / rounds
    return hits


def test_the_best_arm_of_a_stationary_bandit_is_found():
    assert np.mean([play(1.0, False, seed) for seed in range(3)]) > 0.9
    # Chance is 0.2. Forgetting costs exploration.
    assert np.mean([play(0.95, False, seed) for seed in range(3)]) > 0.6


def test_a_switching_bandit_is_followed_better_with_discount():
    for seed in range(3):
        discounted, plain = play(0.95, True, seed), play(1.0, True, seed)
        assert discounted > 0.5
        assert discounted > plain + 0.1
