"""Episodes that end, are truncated and begin anew, in every autoreset mode."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from hpenv import branching
from hpenv.plant.protocol import DIVERGENCE_REASONS
from tests.fake_plant import INITIAL_LOSS
from tests.hpenv.closed_form import MODES, make, single, steps, still


def test_next_step_spends_one_call_on_the_new_episode_and_ignores_its_action():
    env = make(3, {1: 13}, "NEXT_STEP")
    env.reset(seed=7)
    env.step(still(env))
    obs, rewards, terminated, truncated, infos = env.step(still(env))
    assert terminated.tolist() == [False, True, False] and not truncated.any()
    assert steps(env) == [20, 13, 20] and infos["divergence"].tolist() == [0, 1, 0]
    assert DIVERGENCE_REASONS[1] == "loss_nonfinite" and obs[1, 0] == np.float32(13 / 23)
    obs, rewards, terminated, _, infos = env.step(still(env) + 0.5)
    assert steps(env) == [23, 0, 23] and terminated.tolist() == [True, False, True]
    assert rewards[1] == 0.0 and obs[1, 0] == 0.0 and not infos["divergence"].any()
    assert infos["panel/lr"].tolist() == pytest.approx([10.0, 1.0, 10.0])
    obs, rewards, terminated, _, _ = env.step(still(env) + 0.5)
    assert steps(env) == [0, 10, 0] and terminated.tolist() == [False] * 3
    assert rewards[[0, 2]].tolist() == [0.0, 0.0] and rewards[1] > 0
    env.step(still(env))
    assert steps(env) == [10, 20, 10]  # from here on the rows stand at different clocks
    assert env.step(still(env))[2].tolist() == [False, True, False] and steps(env) == [20, 23, 20]


def test_same_step_hands_over_the_end_and_the_beginning_together():
    env = make(3, {1: 13}, "SAME_STEP")
    env.reset(seed=7)
    _, earned, _, _, infos = env.step(still(env))
    assert "final_obs" not in infos and "final_info" not in infos
    obs, rewards, terminated, _, infos = env.step(still(env))
    assert terminated.tolist() == [False, True, False] and steps(env) == [20, 0, 20]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [False, True, False]
    assert infos["final_obs"][1].tolist() == [np.float32(13 / 23)] and infos["final_obs"][0] is None
    assert infos["final_obs"].dtype == object
    assert obs[:, 0].tolist() == [np.float32(20 / 23), 0.0, np.float32(20 / 23)]
    assert rewards[1] == pytest.approx(-1.0 - earned[1])
    final = infos["final_info"]
    assert final["step"][1] == 13 and final["_step"].tolist() == [False, True, False]
    assert final["divergence"][1] == DIVERGENCE_REASONS.index("loss_nonfinite")
    assert final["reward_terms/divergence"][1] == -1.0
    assert infos["step"].tolist() == [20, 0, 20] and infos["_step"].all()
    assert (
        infos["_gradient_norm"].tolist()
        == infos["_reward_terms/progress"].tolist()
        == [True, False, True]
    )
    assert (
        infos["gradient_norm"][1] == infos["reward_terms/divergence"][1] == 0.0
        and not infos["divergence"].any()
    )
    assert env.step(still(env))[2].tolist() == [True, False, True] and steps(env) == [0, 10, 0]


def test_disabled_lets_the_finished_wait_until_they_are_reset():
    env = make(3, {1: 13}, "DISABLED")
    env.reset(seed=7)
    env.step(still(env))
    last, _, _, _, _ = env.step(still(env))
    for _ in range(2):
        obs, rewards, terminated, _, infos = env.step(still(env) + 0.9)
        assert terminated.tolist() == [True] * 3 and steps(env) == [23, 13, 23]
        assert rewards[1] == 0.0 and obs[1].tolist() == last[1].tolist() and not infos["_step"][1]
        assert not infos["_probe_loss"][1] and infos["panel/lr"][1] == 1.0
    assert rewards.tolist() == [0.0] * 3
    obs, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert steps(env) == [23, 0, 23] and obs[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert infos["_step"].tolist() == [False, True, False]
    _, _, terminated, _, _ = env.step(still(env))
    assert steps(env) == [23, 10, 23] and terminated.tolist() == [True, False, True]


@pytest.mark.parametrize("mode", MODES)
def test_every_episode_is_measured_against_its_own_beginning(mode):
    env = make(3, {1: 13}, mode, features=["progress", "probe_loss"])
    env.reset(seed=7)
    for _ in range(3 if mode == "NEXT_STEP" else 2):
        obs, _, terminated, _, infos = env.step(still(env))
    if mode == "DISABLED":
        obs, infos = env.reset(options={"reset_mask": terminated})
    assert obs[1].tolist() == [0.0, 1.0]
    earlier, _, _, _, infos = env.step(still(env))
    assert earlier[1, 1] == pytest.approx(
        infos["probe_loss"][1] / (INITIAL_LOSS + env.plant.seeds[1] % 1000 / 1000)
    )


def test_a_seed_beside_a_mask_reaches_the_masked_rows_alone():
    env, whole = make(3, mode="DISABLED"), make(3, mode="DISABLED")
    env.reset(seed=7)
    before = list(env.plant.seeds)
    env.reset(seed=[50, 51, 52], options={"reset_mask": np.array([False, True, False])})
    whole.reset(seed=[50, 51, 52])
    assert env.plant.seeds == [before[0], whole.plant.seeds[1], before[2]]


@pytest.mark.parametrize(
    "mask", [[True, False], np.array([1, 0, 1]), np.zeros(3, dtype=bool), np.ones(4, dtype=bool)]
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    env = make(3, mode="DISABLED")
    env.reset(seed=7)
    with pytest.raises(
        ValueError, match=r"reset_mask must be .* of shape \(3,\) with at least one True; got"
    ):
        env.reset(options={"reset_mask": mask})


def test_grouped_rows_that_begin_anew_at_different_times_play_the_same_episodes():
    env = make(3, seed_mode="grouped")
    env.reset(seed=5)
    for row in (1, 0, 2):
        env.reset(options={"reset_mask": np.arange(3) == row})
    assert len(set(env.plant.seeds)) == 1


@pytest.mark.parametrize("diverges", [None, {0: 13}])
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_episode_is_truncated_where_gymnasiums_time_limit_truncates_it(mode, limit, diverges):
    """At 3 decisions an episode terminates by itself."""
    env = make(2, diverges and {0: 13, 1: 13}, mode, max_episode_steps=limit)
    twin = SyncVectorEnv(
        [lambda: TimeLimit(single(diverges=diverges), limit)] * 2, autoreset_mode=mode
    )
    assert env.num_decisions == min(limit, 3)
    assert np.array_equal(env.reset(seed=7)[0], twin.reset(seed=7)[0])
    for _ in range(7):
        ours, theirs = env.step(still(env)), twin.step(still(env))
        for left, right in zip(ours[:4], theirs[:4], strict=True):
            assert np.array_equal(left, right)
        assert ("final_info" in ours[4]) == ("final_info" in theirs[4])
        if mode == AutoresetMode.DISABLED and (ended := ours[2] | ours[3]).any():
            again = [each.reset(options={"reset_mask": ended.copy()})[0] for each in (env, twin)]
            assert np.array_equal(*again)


def test_a_truncated_run_waits_and_its_forks_and_snapshots_are_truncated_too():
    env = make(2, mode="DISABLED", max_episode_steps=2, evaluate_at_end=True)
    env.reset(seed=0)
    env.step(still(env))
    fork = branching.fork(env, 1)
    infos = env.step(still(env))[4]
    assert infos["_held_out"].all() and infos["held_out"].tolist() == env.plant.losses.tolist()
    other = make(2, mode="DISABLED", max_episode_steps=2, evaluate_at_end=True)
    branching.restore(other, branching.snapshot(env))
    for each in (env, other):
        terminated, truncated = each.step(still(env))[2:4]
        assert truncated.all() and not terminated.any() and steps(each) == [20, 20]
    assert fork.step(still(env)[:1])[3].tolist() == [True]


def test_after_close_nothing_is_stepped_or_reset():
    for env in (make(2), single()):
        env.reset(seed=0)
        env.close()
        env.close()
        for call in (env.reset, lambda env=env: env.step(np.zeros(env.action_space.shape))):
            with pytest.raises(
                gym.error.ClosedEnvironmentError, match=r"after close\(\); make a new environment"
            ):
                call()
