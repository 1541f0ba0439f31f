"""Discounted Thompson sampling: numbers by hand, planted bandits, and the laws that it plays."""

import numpy as np
import pytest

from agents.bandit import (
    PRESETS,
    BanditConfig,
    Preset,
    ThompsonSampling,
    add_reward,
    modulating_bandit,
    posterior,
    standardize_reward,
    thompson_arms,
)
from hpenv.benchmark.environments import columns_of
from hpenv.benchmark.evaluate import evaluate_controller, make_runs
from hpenv.policies.control_law import AdaptiveRL
from hpenv.policies.controller import begin, restore_state, state_of, teach

ADAPTIVE = "TrainLoop-Adaptive-v0"
TINY = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 40,
    "eval_tokens": 64,
}


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


def observed(count: int, trend: float) -> np.ndarray:
    """Returns observations of runs that all see the same trends, (N, 7), within a run."""
    row = [0.5, -trend, trend, 0.3, 0.1, -0.1, 0.2]
    return np.tile(np.array(row, dtype=np.float32), (count, 1))


def test_one_preset_twice_is_the_control_law_itself():
    law = {"rate_reward": 0.3, "rate_caps": (0.8, 1.3)}
    bandit = ThompsonSampling({"a": Preset(law), "b": Preset(law)})
    alone = AdaptiveRL(law)
    for trend in (0.5, -0.5, 0.7, -0.2, -0.9):
        seen = observed(3, trend)
        assert np.array_equal(bandit.act(seen), alone.act(seen))
        bandit.learn(np.zeros(3), np.ones(3, dtype=bool))


def test_arms_with_smaller_caps_move_the_dials_as_far_as_alone():
    bandit = ThompsonSampling()
    bandit.act(observed(40, 0.6))
    arms = bandit.arms
    assert len(set(arms.tolist())) > 2
    moves = bandit.act(observed(40, 0.6))
    for arm in set(arms.tolist()):
        name = bandit.names[arm]
        if PRESETS[name].every > 1:
            assert not moves[arms == arm].any()  # the second decision of its pace
            continue
        alone = AdaptiveRL(PRESETS[name].law)
        own = alone.act(observed(40, 0.6))[0]
        for column, channel in enumerate(("lr", "momentum", "exploration")):
            side = int(own[column] > 0)
            expected = own[column] * alone.spec.max_moves[channel][side]
            found = moves[arms == arm, column] * bandit.spec.max_moves[channel][side]
            assert np.allclose(found, expected, atol=1e-7)


def test_the_arm_that_is_paid_is_played():
    bandit = ThompsonSampling(config=BanditConfig(window=2))
    random, alive = np.random.default_rng(0), np.ones(10, dtype=bool)
    played = []
    for _ in range(120):
        bandit.act(observed(10, 0.2))
        bandit.learn(np.where(bandit.arms == 3, 1e-3, 0.0) + random.normal(0, 3e-4, 10), alive)
        played.append(bandit.arms == 3)
    assert np.mean(played[60:]) > 0.6


def test_a_choice_lasts_for_the_window_and_runs_choose_alone():
    bandit, first = ThompsonSampling(), ThompsonSampling()
    random, alive = np.random.default_rng(0), np.ones(6, dtype=bool)
    for decision in range(30):
        before = bandit.arms
        bandit.act(observed(6, 0.1))
        first.act(observed(2, 0.1))
        if decision % 3:
            assert np.array_equal(before, bandit.arms)
        rewards = random.normal(size=6)
        assert np.array_equal(bandit.arms[:2], first.arms)
        bandit.learn(rewards, alive)
        first.learn(rewards[:2], alive[:2])


def test_a_restored_bandit_goes_on_as_if_it_had_never_stopped():
    env = make_runs(ADAPTIVE, TINY, 2, ThompsonSampling())
    bandit, other = ThompsonSampling(), ThompsonSampling()
    observations, _ = env.reset(seed=0)
    begin(bandit, columns_of(env))
    begin(other, columns_of(env))
    alive = np.ones(2, dtype=bool)
    for decision in range(env.num_decisions):
        if decision == 2:
            restore_state(other, state_of(bandit))
        moves = bandit.act(observations)
        if decision >= 2:
            assert np.array_equal(moves, other.act(observations))
        observations, rewards, *_ = env.step(moves)
        teach(bandit, rewards, alive)
        if decision >= 2:
            teach(other, rewards, alive)


@pytest.mark.parametrize("make", [ThompsonSampling, modulating_bandit])
def test_the_benchmark_scores_it_with_and_without_a_base_schedule(make):
    for schedule in ("none", "cosine"):
        rows = evaluate_controller(make(), ADAPTIVE, TINY | {"schedule": schedule}, [1, 2])
        assert all(row["divergence_reason"] is None for row in rows)
        factors = [min(row["panel"]["lr"]) for row in rows]
        assert min(factors) >= (0.2 if make is modulating_bandit else 0.01) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BanditConfig(window=0), "window must be at least 1"),
        (lambda: BanditConfig(discount=0.0), "discount must be in"),
        (lambda: BanditConfig(prior_count=0.0), "prior_count and noise must be above 0"),
        (lambda: ThompsonSampling({"a": Preset({})}), "presets must be at least two"),
        (lambda: ThompsonSampling({"a": Preset({}), "b": Preset({}, 0)}), "every must be"),
    ],
)
def test_what_is_not_valid_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
