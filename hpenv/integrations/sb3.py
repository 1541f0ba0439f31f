"""A population as a VecEnv, the interface that stable-baselines3 asks for in place of Gymnasium's
vector env.

Between the two interfaces lie: one `done` in place of terminated and truncated, a reset that
happens within the step (the last observation goes to `infos[i]["terminal_observation"]`), float32
rewards that the caller may write into, and one dictionary of information per row in place of one of
arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from hpenv.infos import row_info, row_value
from hpenv.policies.sb3_mlp import SB3MLP

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.distributions import DiagGaussianDistribution
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import (
        VecEnvIndices,
        VecEnvObs,
        VecEnvStepReturn,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.sb3 needs stable-baselines3; install it with: pip install 'hpenv[agents]'",
        name=error.name,
    ) from error

HELD_OUT = "held_out"  # key of the score that an env made with evaluate_at_end=True has in the last info of an episode


class SB3VecEnv(VecEnv):
    """Adapter from a gymnasium vector env with autoreset disabled to the VecEnv of
    stable-baselines3.

    Rows that end are reset within the same step, alone, through `options={"reset_mask": mask}`. As
    VecMonitor does, the end of an episode carries its sum of rewards and its number of decisions in
    `infos[i]["episode"]` ("r", "l"); wall-clock time ("t") is left out, and the held-out score
    ("held_out") is there if the env was made with `evaluate_at_end=True`. These are what
    stable-baselines3's Monitor writes, so `env_is_wrapped(Monitor)` is True.

    The rows of a population are one object: an attribute is the same for all of them, and a method
    is called once. The rows of a SyncVectorEnv are envs of their own, and each has its own
    attributes and methods.

    Args:
        env: vector env with `autoreset_mode` DISABLED: a population, or a SyncVectorEnv.

    Raises:
        ValueError: no vector env, one that resets rows by itself, or an AsyncVectorEnv.

    Example:
        >>> env = gym.make_vec("TrainLoop-JEL-v0", num_envs=8, autoreset_mode="DISABLED")  # doctest: +SKIP
        >>> PPO("MlpPolicy", SB3VecEnv(env), n_steps=12).learn(400 * 12)  # doctest: +SKIP
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"a {type(env).__name__} is no vector env; expected gym.make_vec(..., autoreset_mode='DISABLED'), or "
                "give the single env to stable-baselines3 as it is"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"an env with autoreset_mode {mode}; expected one made with autoreset_mode='DISABLED'"
            )
        base = env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            raise ValueError(
                "an AsyncVectorEnv; expected a population or a SyncVectorEnv; for a process per env, give single envs "
                "to stable-baselines3's SubprocVecEnv"
            )
        self.env = env
        self._envs = base.envs if isinstance(base, SyncVectorEnv) else None  # those of the rows
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds of the rows at the next reset: seed, seed + 1, ...; None: the env goes on with its
        own generators.

        stable-baselines3's own would draw a seed from numpy's global generator in place of None.
        """
        self._seeds = [None if seed is None else seed + row for row in range(self.num_envs)]
        return self._seeds

    def reset(self) -> VecEnvObs:
        """Starts a new episode in every row, with the seeds and options given since the last reset; (N, F)."""
        first = self._options[0]
        if not all(_equal(options, first) for options in self._options):
            raise ValueError(
                f"options must be the same for all rows, one call resets them; got {self._options}"
            )
        rows = np.array(first.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds: Any = None if self._seeds[0] is None else list(self._seeds)
        obs, infos = self.env.reset(seed=seeds, options=first or None)
        self._begin(rows, infos)
        self._reset_seeds()
        self._reset_options()
        return np.array(obs)

    def _begin(self, rows: NDArray[np.bool_], infos: dict[str, Any]) -> None:
        """Starts to count the episodes of the rows that were reset."""
        for row in np.flatnonzero(rows).tolist():
            self.reset_infos[row] = row_info(infos, row, self.num_envs)
        self._returns[rows] = 0.0
        self._lengths[rows] = 0

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions, (N, A), for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One decision in every row, then a reset of the rows that it ended.

        Returns:
            obs (N, F), of the new episode where one ended; rewards (N,) float32; dones (N,) bool;
            infos, one per row.
        """
        assert self._actions is not None, "step_wait without step_async"
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self._actions = None
        obs = np.array(obs)
        dones = np.logical_or(terminated, truncated)
        self._returns += rewards
        self._lengths += 1
        rows = [row_info(infos, row, self.num_envs) for row in range(self.num_envs)]
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            if dones[row]:
                info["terminal_observation"] = obs[row].copy()
                info["episode"] = {"r": float(self._returns[row]), "l": int(self._lengths[row])}
                if HELD_OUT in info:
                    info["episode"][HELD_OUT] = float(info[HELD_OUT])
        if dones.any():
            new_obs, new_infos = self.env.reset(options={"reset_mask": dones.copy()})
            obs[dones] = np.array(new_obs)[dones]
            self._begin(dones, new_infos)
        return obs, np.array(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        """Closes the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Images of the rows, each None if the env was not made with render_mode `rgb_array`."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"the env was made with render_mode {self.render_mode!r}; images need 'rgb_array'",
                stacklevel=2,
            )
            return [None] * self.num_envs
        frames: Any = self.env.render()
        return list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attribute of each of the rows asked for."""
        if self._envs is not None:
            return [
                self._envs[row].get_wrapper_attr(attr_name) for row in self._get_indices(indices)
            ]
        value = getattr(self.env.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of each of the rows asked for.

        Raises:
            ValueError: some rows of a population are asked for; they share the attribute.
        """
        if self._envs is not None:
            for row in self._get_indices(indices):
                self._envs[row].set_wrapper_attr(attr_name, value)
            return
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"set_attr({attr_name!r}) for rows {indices}; expected all rows, they are one environment"
            )
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method of each of the rows asked for.

        That of a population is called once, and an array (N, ...) that it returns is dealt out to
        the rows asked for.
        """
        rows = self._get_indices(indices)
        if self._envs is not None:
            return [
                self._envs[row].get_wrapper_attr(method_name)(*method_args, **method_kwargs)
                for row in rows
            ]
        result = getattr(self.env.unwrapped, method_name)(*method_args, **method_kwargs)
        return [row_value(result, row, self.num_envs) for row in rows]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tells of each of the rows asked for whether the vector env, or the row's own env, wears
        this wrapper.

        True for Monitor: what it would add to the infos is there.
        """
        env, found = self.env, issubclass(wrapper_class, Monitor)
        while isinstance(env, VectorWrapper):
            found = found or isinstance(env, wrapper_class)
            env = env.env
        own = (
            [False] * self.num_envs
            if self._envs is None
            else [is_wrapped(e, wrapper_class) for e in self._envs]
        )
        return [found or own[row] for row in self._get_indices(indices)]


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Tells whether two options are the same, where a value may be an array."""
    return left.keys() == right.keys() and all(
        np.array_equal(left[key], right[key]) for key in left
    )


def from_sb3(model: BaseAlgorithm) -> SB3MLP:
    """Returns a copy of a model's actor as a policy of hpenv, which is saved without pickle.

    Args:
        model: PPO or A2C with an MlpPolicy of tanh layers, the default. A model that was loaded
            without its env does not know whether its observations were normalized.

    Raises:
        ValueError: for another algorithm or policy, or observations that VecNormalize normalizes.

    Example:
        >>> save_policy(from_sb3(model), "policy")  # doctest: +SKIP
    """
    actor = model.policy
    if type(actor) is not ActorCriticPolicy:  # a subclass has another network
        raise ValueError(
            f"the policy must be that of an MlpPolicy of PPO or A2C; got a {type(actor).__name__}"
        )
    if type(actor.action_dist) is not DiagGaussianDistribution:
        name = type(actor.action_dist).__name__
        raise ValueError(
            f"the policy's distribution must be a DiagGaussianDistribution; got a {name}"
        )
    body, head = actor.mlp_extractor.policy_net, actor.action_net
    others = {type(layer).__name__ for layer in body} - {"Linear", "Tanh"}
    if others:
        raise ValueError(
            f"the actor's hidden layers must be tanh; got {sorted(others)}; give PPO "
            "policy_kwargs={'activation_fn': nn.Tanh}"
        )
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        raise ValueError(
            "the model's observations must not be normalized; the statistics of VecNormalize are no part of the "
            "network; train with VecNormalize(env, norm_obs=False)"
        )
    return SB3MLP.from_layers(body, head, actor.log_std)
