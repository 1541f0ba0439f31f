"""Wrappers of Gymnasium around one run and around a population, and PPO in CleanRL's form."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector

from tests.hpenv.integrations.small_ppo import train

LOW, HIGH = np.float32(-1.0), np.float32(1.0)


def _doubled(space):
    return gym.spaces.Box(2 * space.low, 2 * space.high, dtype=space.dtype)


#: Wrappers of one run. Those that are left out want a picture as an observation, another array
#: library, or a window.
SINGLE = {
    "Autoreset": wrappers.Autoreset,
    "ClipAction": wrappers.ClipAction,
    "ClipReward": lambda env: wrappers.ClipReward(env, -1.0, 1.0),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "DiscretizeAction": lambda env: wrappers.DiscretizeAction(env, 3, multidiscrete=True),
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float64),
    "FlattenObservation": wrappers.FlattenObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "MaxAndSkipObservation": lambda env: wrappers.MaxAndSkipObservation(env, 2),
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "NumpyToTorch": wrappers.NumpyToTorch,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "RepeatAction": lambda env: wrappers.RepeatAction(env, 2),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(0.0), HIGH),
    "RescaleObservation": lambda env: wrappers.RescaleObservation(env, LOW, HIGH),
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(
        env, (1, *env.observation_space.shape)
    ),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 9)),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 1),
    "TransformAction": lambda env: wrappers.TransformAction(
        env, lambda action: -action, env.action_space
    ),
    "TransformObservation": lambda env: wrappers.TransformObservation(
        env, lambda obs: 2 * obs, _doubled(env.observation_space)
    ),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: -reward),
}
PICTURES = {
    "AddRenderObservation": lambda env: wrappers.AddRenderObservation(env, render_only=False),
    "AddWhiteNoise": lambda env: wrappers.AddWhiteNoise(env, 0.5),
    "ObstructView": lambda env: wrappers.ObstructView(env, 0.1, 8),
    "RenderCollection": wrappers.RenderCollection,
}

#: Wrappers of a population that act on rewards, actions or infos.
VECTOR = {
    "ClipAction": vector.ClipAction,
    "ClipReward": lambda env: vector.ClipReward(env, -1.0, 1.0),
    "DictInfoToList": vector.DictInfoToList,
    "NormalizeReward": vector.NormalizeReward,
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "RescaleAction": lambda env: vector.RescaleAction(env, np.float32(0.0), HIGH),
    "TransformAction": lambda env: vector.TransformAction(env, lambda actions: -actions),
    "TransformReward": lambda env: vector.TransformReward(env, lambda rewards: -rewards),
}
#: Gymnasium refuses these for a vector env that resets within the step.
VECTOR_OBSERVATIONS = {
    "DtypeObservation": lambda env: vector.DtypeObservation(env, np.float64),
    "FlattenObservation": vector.FlattenObservation,
    "RescaleObservation": lambda env: vector.RescaleObservation(env, LOW, HIGH),
    "ReshapeObservation": lambda env: vector.ReshapeObservation(
        env, (1, *env.single_observation_space.shape)
    ),
    "TransformObservation": lambda env: vector.TransformObservation(env, lambda obs: obs),
}
#: Gymnasium refuses this one for every vector env but those that reset in the next step.
VECTOR_NEXT_STEP = {"NormalizeObservation": vector.NormalizeObservation}
BY_MODE = {
    AutoresetMode.NEXT_STEP: VECTOR | VECTOR_OBSERVATIONS | VECTOR_NEXT_STEP,
    AutoresetMode.SAME_STEP: VECTOR,
    AutoresetMode.DISABLED: VECTOR | VECTOR_OBSERVATIONS,
}


def _as_numpy(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _torch_actions(env, actions):
    return torch.from_numpy(np.asarray(actions)) if "ToTorch" in type(env).__name__ else actions


def play(env, seed=0):
    """Plays an episode of sampled actions, checks all it sees, and returns the decisions."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    count, over = 0, False
    while not over:
        assert env.observation_space.contains(_as_numpy(observation))
        action = _torch_actions(env, env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(action)
        assert np.isfinite(_as_numpy(reward))
        count, over = count + 1, terminated or truncated
    assert count > 0
    return count


def single_wrappers(id, arguments, folder):
    """All wrappers of one run."""
    env = gym.make(id, **arguments)
    for wrap in SINGLE.values():
        play(wrap(env))
    env.close()
    pictured = gym.make(id, render_mode="rgb_array", **arguments)
    for wrap in PICTURES.values():
        wrapped = wrap(pictured)
        play(wrapped)
        assert wrapped.render() is not None
    pictured.close()


def vector_wrappers(id, arguments, folder):
    """All wrappers of a population, in all modes of autoreset, over the end of an episode."""
    for mode, table in BY_MODE.items():
        envs = gym.make_vec(id, num_envs=2, autoreset_mode=mode, **arguments)
        for wrap in table.values():
            wrapped = wrap(envs)
            observations, _ = wrapped.reset(seed=0)
            over = np.zeros(2, dtype=bool)
            for _ in range(envs.unwrapped.num_decisions + 1):
                if over.all() and mode == AutoresetMode.DISABLED:
                    observations, _ = wrapped.reset(options={"reset_mask": over})
                assert wrapped.observation_space.contains(observations)
                observations, rewards, terminated, truncated, _ = wrapped.step(
                    wrapped.action_space.sample()
                )
                over = terminated | truncated
                assert np.isfinite(rewards).all() and rewards.shape == (2,)
        envs.close()


def cleanrl(id, arguments, folder):
    """PPO in CleanRL's form, over `gym.make`: thunks in a SyncVectorEnv, wrappers per env."""

    def make():
        env = wrappers.RecordEpisodeStatistics(gym.make(id, **arguments))
        env = wrappers.NormalizeObservation(wrappers.ClipAction(wrappers.FlattenObservation(env)))
        env = wrappers.TransformObservation(
            env, lambda obs: np.clip(obs, -10, 10), env.observation_space
        )
        return wrappers.ClipReward(wrappers.NormalizeReward(env), -10, 10)

    envs = SyncVectorEnv([make] * 2)
    train(envs, num_updates=2)
    envs.close()


def cleanrl_vector(id, arguments, folder):
    """The same PPO over `gym.make_vec`: one population, wrappers of populations."""
    envs = vector.RecordEpisodeStatistics(gym.make_vec(id, num_envs=2, **arguments))
    envs = vector.NormalizeObservation(vector.ClipAction(vector.FlattenObservation(envs)))
    envs = vector.TransformObservation(envs, lambda obs: np.clip(obs, -10, 10))
    train(vector.ClipReward(vector.NormalizeReward(envs), -10, 10), num_updates=2)
    envs.close()


def worker_processes(id, arguments, folder):
    """Gymnasium's AsyncVectorEnv, in processes that start without the ids."""
    envs = gym.make_vec(
        f"hpenv:{id}",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        **arguments,
    )
    try:
        envs.reset(seed=0)
        for _ in range(3):
            _, rewards, *_ = envs.step(envs.action_space.sample())
            assert np.isfinite(rewards).all()
    finally:
        envs.close()
