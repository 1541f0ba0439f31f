"""The bandit plays the control law, learns from its rewards, and goes on from its state."""

import numpy as np
import pytest

from agents.bandit import PRESETS, Preset, ThompsonSampling, modulating_bandit
from agents.thompson import BanditConfig
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
