import numpy as np
import pytest

from agents import returns

# Two episodes of five decisions; the second ends after three, and what stands after its end must
# never be read.
REWARDS = np.array([[1.0, 2.0, 0.0, -1.0, 4.0], [0.0, 4.0, -2.0, np.nan, 7.0]]).T  # (5, 2)
ALIVE = np.array([[True, True, True, True, True], [True, True, True, False, False]]).T
# gamma 1/2, from the back: 4; -1 + 2 = 1; 0 + 0.5 = 0.5; 2 + 0.25; 1 + 1.125 | -2; 4 - 1 = 3; 0 +
# 1.5
RETURNS = np.array([[2.125, 2.25, 0.5, 1.0, 4.0], [1.5, 3.0, -2.0, 0.0, 0.0]]).T


def random_batch(seed=0, T=12, N=8):
    generator = np.random.default_rng(seed)
    alive = np.arange(T)[:, None] < generator.integers(1, T + 1, N)
    return np.where(alive, generator.normal(size=(T, N)), np.nan), alive


def test_discounted_returns_by_hand():
    assert np.array_equal(returns.discounted_returns(REWARDS, ALIVE, 0.5), RETURNS)


def test_with_gamma_1_the_first_return_is_the_sum_and_with_0_the_reward():
    rewards, alive = random_batch()
    taken = np.where(alive, rewards, 0.0)
    assert np.allclose(returns.discounted_returns(rewards, alive, 1.0)[0], taken.sum(axis=0))
    assert np.array_equal(returns.discounted_returns(rewards, alive, 0.0), taken)


def test_centered_returns_by_hand():
    # means over the alive: 1.8125, 2.625, -0.75; alone, an episode is its own baseline
    expected = np.array([[0.3125, -0.375, 1.25, 0.0, 0.0], [-0.3125, 0.375, -1.25, 0.0, 0.0]]).T
    assert np.array_equal(returns.centered_returns(RETURNS, ALIVE), expected)


def test_per_step_standardized_by_hand():
    # of two numbers, each is one standard deviation from their mean
    expected = np.array([[1.0, -1.0, 1.0, 0.0, 0.0], [-1.0, 1.0, -1.0, 0.0, 0.0]]).T
    assert np.allclose(returns.standardize_per_step(RETURNS, ALIVE), expected, atol=1e-7)


def test_batch_standardized_by_hand():
    advantages = np.array([[1.0, 3.0, np.nan]]).T
    alive = np.array([[True, True, False]]).T
    assert np.allclose(
        returns.standardize_batch(advantages, alive), [[-1.0], [1.0], [0.0]], atol=1e-7
    )


def test_grpo_outcome_by_hand():
    # totals 6 and 2, mean 4, standard deviation 2
    expected = np.where(ALIVE, [[1.0, -1.0]], 0.0)
    assert np.allclose(returns.grpo_outcome(REWARDS, ALIVE), expected, atol=1e-7)


def test_episode_weights_by_hand():
    # 8 decisions, 2 episodes: 4 / 5 and 4 / 3
    assert np.allclose(returns.episode_weights(ALIVE), np.where(ALIVE, [[0.8, 4 / 3]], 0.0))


def test_gae_by_hand():
    values = np.array([[1.0, 2.0, 3.0]]).T
    rewards = np.array([[1.0, 0.0, 2.0]]).T
    alive = np.ones((3, 1), dtype=bool)
    # gamma 1/2, lambda 1/2: deltas 1 + 1 - 1 = 1, 0 + 1.5 - 2 = -0.5, 2 - 3 = -1
    advantages = returns.gae(rewards, values, alive, 0.5, 0.5)
    assert np.array_equal(advantages, [[1.0 + 0.25 * (-0.5 - 0.25)], [-0.75], [-1.0]])


def test_centered_returns_sum_to_zero_over_the_runs_alive_at_every_decision():
    rewards, alive = random_batch()
    advantages = returns.centered_returns(returns.discounted_returns(rewards, alive, 0.99), alive)
    assert np.allclose(advantages.sum(axis=1), 0.0, atol=1e-12)
    assert not advantages[~alive].any()


def test_a_lone_survivors_advantage_is_exactly_zero():
    rewards, alive = random_batch()
    alive[6:] = False
    alive[6:, 2] = alive[:6, 2] = True
    rewards = np.where(alive & np.isnan(rewards), 0.1, rewards)
    togo = returns.discounted_returns(rewards, alive, 0.99)
    for advantages in (
        returns.centered_returns(togo, alive),
        returns.standardize_per_step(togo, alive),
    ):
        assert not advantages[6:].any()


def test_per_step_standardized_has_standard_deviation_one_at_every_decision():
    rewards, alive = random_batch(T=6, N=50)
    alive[:] = True
    rewards = np.nan_to_num(rewards, nan=0.3)
    advantages = returns.standardize_per_step(rewards, alive)
    assert np.allclose(advantages.mean(axis=1), 0.0) and np.allclose(advantages.std(axis=1), 1.0)


def test_batch_standardized_has_mean_zero_and_standard_deviation_one_over_what_is_alive():
    rewards, alive = random_batch()
    advantages = returns.standardize_batch(rewards, alive)
    assert np.isclose(advantages[alive].mean(), 0.0) and np.isclose(advantages[alive].std(), 1.0)


def test_equal_episodes_have_no_advantage():
    rewards, alive = np.tile(np.linspace(0.1, 0.7, 5)[:, None], 3), np.ones((5, 3), dtype=bool)
    togo = returns.discounted_returns(rewards, alive, 0.99)
    for advantages in (
        returns.centered_returns(togo, alive),
        returns.standardize_per_step(togo, alive),
        returns.grpo_outcome(rewards, alive),
    ):
        assert np.allclose(advantages, 0.0, atol=1e-6)


def test_weights_have_mean_one_and_give_every_episode_the_same():
    _, alive = random_batch()
    weights = returns.episode_weights(alive)
    assert np.isclose(weights[alive].mean(), 1.0)
    assert np.allclose(weights.sum(axis=0), weights.sum() / 8)
    assert np.array_equal(returns.episode_weights(np.ones((12, 8), dtype=bool)), np.ones((12, 8)))


def test_gae_with_lambda_1_is_returns_minus_values():
    rewards, alive = random_batch()
    values = np.where(alive, np.random.default_rng(1).normal(size=alive.shape), np.nan)
    advantages = returns.gae(rewards, values, alive, 0.99, 1.0)
    expected = np.where(alive, returns.discounted_returns(rewards, alive, 0.99) - values, 0.0)
    assert np.allclose(advantages, expected)


def test_gae_with_lambda_0_is_the_one_step_error():
    rewards, alive = np.array([[1.0], [2.0]]), np.ones((2, 1), dtype=bool)
    advantages = returns.gae(rewards, np.array([[3.0], [4.0]]), alive, 0.5, 0.0)
    assert np.array_equal(advantages, [[1.0 + 2.0 - 3.0], [2.0 - 4.0]])


def test_gae_reads_nothing_of_an_episode_that_has_ended():
    values = np.where(ALIVE, 0.0, np.nan)
    advantages = returns.gae(REWARDS, values, ALIVE, 0.5, 1.0)
    assert np.array_equal(advantages, np.where(ALIVE, RETURNS, 0.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: returns.discounted_returns(np.zeros(5), np.ones(5, dtype=bool), 0.9),
        lambda: returns.discounted_returns(np.zeros((5, 2)), np.ones((5, 3), dtype=bool), 0.9),
        lambda: returns.centered_returns(np.zeros((5, 2)), np.ones((5, 2))),
        lambda: returns.grpo_outcome(np.zeros((5, 2)), np.ones((2, 5), dtype=bool)),
        lambda: returns.episode_weights(np.ones(5, dtype=bool)),
        lambda: returns.gae(
            np.zeros((5, 2)), np.zeros((5, 3)), np.ones((5, 2), dtype=bool), 0.9, 1.0
        ),
    ],
)
def test_shapes_are_asserted(call):
    with pytest.raises(AssertionError):
        call()


def test_credit_weights_by_hand():
    assert returns.credit_weights(0, 1, 1.0, False).tolist() == [1.0]
    assert returns.credit_weights(1, 1, 1.0, False).tolist() == [0.0, 1.0]
    assert returns.credit_weights(0, 3, 0.5, True).tolist() == [
        1.0,
        0.5,
        0.25,
    ]  # no reward before the first: no difference
    assert returns.credit_weights(1, 1, 1.0, True).tolist() == [2.0, 1.0]
    assert returns.credit_weights(1, 2, 0.5, True).tolist() == [2.0, 1.0, 0.5]
    assert returns.credit_weights(2, 3, 0.5, False).tolist() == [0.0, 0.0, 1.0, 0.5, 0.25]
    assert returns.credit_weights(2, 3, 0.5, True).tolist() == [2.0, 1.0, 1.0, 0.5, 0.25]


def test_leave_one_out_by_hand():
    values = np.array([[1.0, 2.0, 6.0], [1.0, np.nan, 6.0], [1.0, np.nan, np.nan]])
    expected = [[4.0, 3.5, 1.5], [6.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert returns.leave_one_out(values, np.isfinite(values)).tolist() == expected


def test_differences_from_the_others_are_centered_returns_but_for_a_factor():
    values, alive = random_batch()
    alive = np.ones_like(alive)
    values = np.nan_to_num(values)
    others = values - returns.leave_one_out(values, alive)
    assert np.allclose(others, 8 / 7 * returns.centered_returns(values, alive))


def test_corrected_mean_by_hand():
    # 4, then 2, decay 3/4: m = 1, then 1.25; corrected 4, then 1.25 / (7 / 16)
    accumulated, count = np.array([0.0, 1.0, 1.25]), np.array([0, 1, 2])
    assert np.allclose(returns.corrected_mean(accumulated, count, 0.75), [0.0, 4.0, 20 / 7])
