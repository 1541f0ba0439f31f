"""The environment as stable-baselines3 knows it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

import hpenv  # noqa: F401  registers the ids
from hpenv.infos import row_info
from hpenv.integrations.sb3 import SB3VecEnv
from tests.hpenv.integrations.tracked import ZEROS, make
from tests.probe_envs import TargetTrackingVectorEnv


def test_types_and_shapes_are_those_stable_baselines3_expects():
    env = make()
    obs = env.reset()
    assert obs.shape == (4, 1) and obs.dtype == np.float32
    obs, rewards, dones, infos = env.step(ZEROS)
    assert obs.shape == (4, 1) and obs.dtype == np.float32
    assert rewards.shape == (4,) and rewards.dtype == np.float32
    assert dones.shape == (4,) and dones.dtype == np.bool_
    assert [type(info) for info in infos] == [dict] * 4
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_a_finished_episode_hands_over_its_last_observation_and_starts_the_next():
    env = make(noise=0.0)
    env.reset()
    total = np.zeros(4)
    for _ in range(4):
        _, rewards, dones, infos = env.step(ZEROS)
        total += rewards
        assert (
            not dones.any() and "terminal_observation" not in infos[0] and "episode" not in infos[0]
        )
    obs, rewards, dones, infos = env.step(ZEROS)
    total += rewards
    assert dones.all()
    assert np.array_equal(obs, np.zeros((4, 1)))
    for row, info in enumerate(infos):
        assert info["terminal_observation"] == np.float32(1.0)
        assert info["TimeLimit.truncated"] is False
        assert info["episode"] == {"r": pytest.approx(total[row]), "l": 5}
    assert env.step(ZEROS)[0] == pytest.approx(0.2)


def test_only_the_row_that_ended_is_reset():
    env = make(ends={2: 2})
    env.reset()
    env.step(ZEROS)
    obs, _, dones, infos = env.step(ZEROS)
    assert dones.tolist() == [False, False, True, False]
    assert obs[:, 0].tolist() == pytest.approx([0.4, 0.4, 0.0, 0.4])
    assert infos[2]["terminal_observation"] == np.float32(0.4)
    assert infos[2]["divergence"] == 1 and "divergence" not in infos[0]
    assert infos[2]["episode"]["l"] == 2 and "episode" not in infos[1]
    obs, _, dones, infos = env.step(ZEROS)
    assert obs[:, 0].tolist() == pytest.approx([0.6, 0.6, 0.2, 0.6])


def test_a_truncation_is_marked_and_a_termination_is_not():
    env = make(ends={2: 2}, truncates=True)
    env.reset()
    env.step(ZEROS)
    infos = env.step(ZEROS)[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 4
    for _ in range(3):
        infos = env.step(ZEROS)[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True, False, True]


def test_what_is_returned_is_the_callers_to_write_into():
    env, twin = make(noise=0.0), make(noise=0.0)
    for each in (env, twin):
        each.reset()
    for _ in range(6):
        result, expected = env.step(ZEROS), twin.step(ZEROS)
        for array, same in zip(result[:3], expected[:3], strict=True):
            assert np.array_equal(array, same)
            array[:] = 1


def test_a_seed_is_used_at_the_next_reset_and_once():
    env = make()
    assert env.seed(10) == [10, 11, 12, 13]
    env.reset()
    assert env.env.last_seeds == [10, 11, 12, 13]
    first = env.step(ZEROS)[1]
    env.reset()
    assert env.env.last_seeds == []
    env.seed(10)
    env.reset()
    assert np.array_equal(env.step(ZEROS)[1], first)


def test_no_seed_draws_nothing_from_the_global_generator():
    env = make()
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert env.seed() == [None] * 4
    env.reset()
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]) and before["pos"] == after["pos"]


def test_options_reach_the_env_and_must_be_the_same_for_all_rows():
    env = make()
    env.reset()
    env.step(ZEROS)
    env.set_options({"reset_mask": np.array([True, False, False, False])})
    assert env.reset()[:, 0].tolist() == pytest.approx([0.0, 0.2, 0.2, 0.2])
    env.set_options([{"a": 1}, {}, {}, {}])
    with pytest.raises(ValueError, match="same for all"):
        env.reset()


def test_information_is_dealt_out_to_the_rows():
    infos = {
        "step": np.array([50, 100]),
        "_step": np.array([True, True]),
        "reason": np.array([None, "loss"], dtype=object),
        "_reason": np.array([False, True]),
        "panel": {"lr": np.array([1.0, 2.0]), "group": np.array([[1.0, 2.0], [3.0, 4.0]])},
        "_panel": np.array([True, True]),
        "corpus": "abc",
        "_private": 3,
    }
    assert row_info({**infos, "panel": {"lr": np.array([1.0, 2.0])}}, 0, 2) == {
        "step": 50,
        "panel": {"lr": 1.0},
        "corpus": "abc",
        "_private": 3,
    }
    second = row_info(infos, 1, 2)
    assert second["reason"] == "loss"
    assert type(second["step"]) is np.int64 and type(second["panel"]["lr"]) is np.float64
    assert second["panel"]["group"].tolist() == [3.0, 4.0]


def test_attributes_and_methods_are_those_of_the_env():
    env = make()
    assert env.get_attr("horizon") == [5] * 4 and env.get_attr("horizon", indices=[1, 2]) == [5] * 2
    assert not env.has_attr("horizont") and env.has_attr("horizon")
    assert env.env_method("evaluate") == [0.0, 1.0, 2.0, 3.0]
    assert env.env_method("evaluate", indices=2) == [2.0]
    env.set_attr("noise", 0.0)
    assert env.env.noise == 0.0
    with pytest.raises(ValueError, match="all rows"):
        env.set_attr("noise", 1.0, indices=[0])
    assert env.render_mode is None


def test_wrappers_of_the_vector_env_are_found():
    env = make()
    assert env.env_is_wrapped(RecordEpisodeStatistics) == [False] * 4
    wrapped = SB3VecEnv(RecordEpisodeStatistics(TargetTrackingVectorEnv(num_envs=4)))
    assert wrapped.env_is_wrapped(RecordEpisodeStatistics, indices=[0]) == [True]
    assert wrapped.get_attr("horizon", indices=0) == [12]


def test_stable_baselines3s_wrappers_agree_with_its_own_episode_statistics():
    inner = make()
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        env = VecCheckNan(VecMonitor(inner), raise_exception=True)
    env.seed(3)
    env.reset()
    for _ in range(5):
        infos = env.step(ZEROS)[3]
    twin = make()
    twin.seed(3)
    twin.reset()
    for _ in range(5):
        expected = twin.step(ZEROS)[3]
    for info, own in zip(infos, expected, strict=True):
        assert info["episode"]["r"] == pytest.approx(own["episode"]["r"], rel=1e-6)
        assert info["episode"]["l"] == own["episode"]["l"]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, None])
def test_an_env_that_resets_by_itself_is_refused(mode):
    inner = TargetTrackingVectorEnv()
    inner.metadata = {"autoreset_mode": mode}
    with pytest.raises(ValueError, match="DISABLED"):
        SB3VecEnv(inner)


def test_a_single_env_is_refused_with_what_to_make_instead():
    with pytest.raises(
        ValueError,
        match=r"must be a vector env; got .*; use gym\.make_vec\(\.\.\., autoreset_mode='DIS",
    ):
        SB3VecEnv(gym.make("CartPole-v1"))


def test_an_async_vector_env_is_refused_with_what_to_make_instead():
    class Elsewhere(AsyncVectorEnv):
        metadata = {"autoreset_mode": AutoresetMode.DISABLED}

        def __init__(self) -> None:
            self.closed = True

    with pytest.raises(ValueError, match="give single envs to stable-baselines3's SubprocVecEnv"):
        SB3VecEnv(Elsewhere())


def test_closing_closes_the_env():
    env = make()
    env.close()
    assert env.env.closed
