"""stable-baselines3 and sb3-contrib on every kind of VecEnv, over the ends of episodes."""

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from hpenv.integrations.sb3 import SB3VecEnv

SIZES = {"n_steps": 4, "batch_size": 4, "n_epochs": 1, "seed": 0, "device": "cpu"}


def population(id, arguments, num_envs=2):
    return SB3VecEnv(gym.make_vec(id, num_envs=num_envs, autoreset_mode="DISABLED", **arguments))


def _train(env, timesteps, algorithm=PPO, policy="MlpPolicy", callback=None, **arguments):
    model = algorithm(policy, env, **(arguments or SIZES))
    model.learn(timesteps, callback=callback)
    assert model.num_timesteps >= timesteps and len(model.ep_info_buffer) > 0
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    return model


def _save_and_load(model, env, folder):
    """A saved model acts as it did, and goes on."""
    observations = env.reset()
    expected, _ = model.predict(observations, deterministic=True)
    model.save(folder / "model")
    loaded = type(model).load(folder / "model", env=env, device="cpu")
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    loaded.learn(8, reset_num_timesteps=False)
    assert loaded.num_timesteps > model.num_timesteps


def single(id, arguments, folder):
    """PPO on one run."""
    _train(gym.make(id, **arguments), 8).env.close()


def dummy(id, arguments, folder):
    """PPO on a DummyVecEnv, saved, loaded and continued."""
    env = make_vec_env(id, n_envs=2, env_kwargs=arguments)
    _save_and_load(_train(env, 8), env, folder)
    env.close()


def processes(id, arguments, folder):
    """PPO on a SubprocVecEnv, whose processes start without the ids."""
    spawn = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "spawn"}}
    env = make_vec_env(f"hpenv:{id}", n_envs=2, env_kwargs=arguments, **spawn)
    try:
        _train(env, 8)
    finally:
        env.close()


def adapter(id, arguments, folder):
    """PPO on a population, saved, loaded and continued."""
    env = population(id, arguments)
    _save_and_load(_train(env, 8), env, folder)
    env.close()


def normalized(id, arguments, folder):
    """PPO under VecNormalize with an EvalCallback, and its statistics on disk."""
    env = VecNormalize(population(id, arguments))
    eval_env = VecNormalize(population(id, arguments, 1), training=False, norm_reward=False)
    callback = EvalCallback(
        eval_env, n_eval_episodes=1, eval_freq=4, best_model_save_path=str(folder), verbose=0
    )
    _train(env, 8, callback=callback)
    assert np.isfinite(callback.best_mean_reward) and (folder / "best_model.zip").exists()
    assert np.array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    env.save(str(folder / "statistics.pkl"))
    loaded = VecNormalize.load(str(folder / "statistics.pkl"), population(id, arguments))
    assert np.array_equal(loaded.obs_rms.var, env.obs_rms.var)
    for each in (env, eval_env, loaded):
        each.close()


def contrib(id, arguments, folder):
    """TQC, TRPO and RecurrentPPO of sb3-contrib on a population."""
    import sb3_contrib

    env = population(id, arguments)
    replay = {"learning_starts": 4, "batch_size": 4, "buffer_size": 64, "device": "cpu"}
    _train(env, 12, sb3_contrib.TQC, **replay)
    _train(env, 8, sb3_contrib.TRPO, n_steps=4, batch_size=4, device="cpu")
    _train(env, 8, sb3_contrib.RecurrentPPO, "MlpLstmPolicy", **SIZES)
    env.close()
