"""Algorithms of stable-baselines3 train."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecNormalize

import hpenv  # noqa: F401  registers the ids
from hpenv.envs.jel import ID as JEL
from hpenv.integrations.sb3 import SB3VecEnv


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (PPO, {"n_steps": 4, "batch_size": 8, "n_epochs": 1}),
        (SAC, {"learning_starts": 4, "batch_size": 8, "buffer_size": 100, "train_freq": 2}),
    ],
)
def test_its_algorithms_train_on_a_run_with_a_decision_every_step(algorithm, arguments, tiny):
    """Across the end of an episode, with every number that they see finite."""
    env = SB3VecEnv(
        gym.make_vec(
            "TrainLoop-Cell-v0",
            num_envs=2,
            autoreset_mode="DISABLED",
            **tiny | {"preset": "nano", "interval": 1, "num_steps": 5},
            observation="full_position",
        )
    )
    model = algorithm(
        "MlpPolicy", VecCheckNan(env, raise_exception=True), seed=0, device="cpu", **arguments
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(16)
    changed = [
        not left.equal(right) for left, right in zip(before, model.policy.parameters(), strict=True)
    ]
    assert any(changed) and all(
        parameter.isfinite().all() for parameter in model.policy.parameters()
    )
    assert model.num_timesteps == 16 and len(model.ep_info_buffer) == 2
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (2, len(env.get_attr("action_names", 0)[0])) and (abs(action) <= 1).all()


class Constant:
    """A predictor that plays one action."""

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        return np.full((len(obs), 2), 0.3, dtype=np.float32), state


@pytest.mark.parametrize("normalized", [False, True])
def test_evaluate_policy_gives_the_returns_of_the_env(normalized, tiny):
    """Without a warning, as with DummyVecEnv and Monitor.

    Under VecNormalize the numbers are those of before the normalization.
    """
    rewards = []
    for made in (
        SB3VecEnv(gym.make_vec(JEL, num_envs=2, autoreset_mode="DISABLED", **tiny)),
        DummyVecEnv([lambda: Monitor(gym.make(JEL, **tiny))] * 2),
    ):
        env = VecNormalize(made, norm_reward=True) if normalized else made
        env.seed(5)
        rewards.append(
            evaluate_policy(Constant(), env, n_eval_episodes=2, return_episode_rewards=True)
        )
    assert rewards[0][0] == pytest.approx(rewards[1][0], rel=1e-4) and rewards[0][1] == rewards[1][
        1
    ] == [3, 3]


@pytest.mark.parametrize(
    "route", ["population", "dummy", pytest.param("processes", marks=pytest.mark.slow)]
)
def test_ppo_is_trained_saved_loaded_and_continued(route, tiny, tmp_path):
    """On the three VecEnvs that one has.

    `hpenv:<id>` is known to a process that has not imported hpenv.
    """
    if route == "population":
        env = SB3VecEnv(gym.make_vec(f"hpenv:{JEL}", num_envs=2, autoreset_mode="DISABLED", **tiny))
    elif route == "dummy":
        env = make_vec_env(f"hpenv:{JEL}", n_envs=2, env_kwargs=tiny)
    else:
        processes = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "spawn"}}
        env = make_vec_env(f"hpenv:{JEL}", n_envs=2, env_kwargs=tiny, **processes)
    model = PPO("MlpPolicy", env, n_steps=3, batch_size=6, n_epochs=1, seed=0, device="cpu")
    model.learn(12)
    assert [episode["l"] for episode in model.ep_info_buffer] == [3] * 4
    observations = env.reset()
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    loaded.learn(6, reset_num_timesteps=False)
    assert loaded.num_timesteps == 18
    assert not np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    env.close()
