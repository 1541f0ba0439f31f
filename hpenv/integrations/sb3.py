"""Adapter from a population to the VecEnv of stable-baselines3, and export of its policies.

A VecEnv differs from Gymnasium's vector env in four points. It has one `done` in place of
terminated and truncated. It resets within the step, and the last observation goes to
`infos[i]["terminal_observation"]`. Rewards are float32, and the caller may write into them. Each
row has one dictionary of information.
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
from hpenv.policies.sb3_controller import SB3Controller as SB3Controller
from hpenv.policies.sb3_mlp import SB3MLP

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import (
        VecEnvIndices,
        VecEnvObs,
        VecEnvStepReturn,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.sb3 needs stable-baselines3; "
        "install it with: pip install 'hpenv[agents]'",
        name=error.name,
    ) from error

#: Key of the held-out score in the last info of an episode, if the env has evaluate_at_end=True.
HELD_OUT = "held_out"


class SB3VecEnv(VecEnv):
    """Adapter from a Gymnasium vector env without autoreset to the VecEnv of stable-baselines3.

    Rows that end are reset within the same step, through `options={"reset_mask": mask}`. Other rows
    are not reset. At the end of an episode, `infos[i]["episode"]` holds its sum of rewards ("r")
    and its number of decisions ("l"), as with VecMonitor. Wall-clock time ("t") is left out. The
    held-out score ("held_out") is added if the env was made with `evaluate_at_end=True`. These are
    the entries of stable-baselines3's Monitor, so `env_is_wrapped(Monitor)` is True.

    The rows of a population are one object: they share every attribute, and a method is called
    once. The rows of a SyncVectorEnv are separate envs with separate attributes and methods.

    Args:
        env: vector env with `autoreset_mode` DISABLED: a population, or a SyncVectorEnv.

    Raises:
        ValueError: the env is no vector env, resets rows by itself, or is an AsyncVectorEnv.

    Example:
        >>> options = {"num_envs": 8, "autoreset_mode": "DISABLED"}
        >>> env = gym.make_vec("TrainLoop-JEL-v0", **options)  # doctest: +SKIP
        >>> PPO("MlpPolicy", SB3VecEnv(env), n_steps=12).learn(400 * 12)  # doctest: +SKIP
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"env must be a vector env; got a {type(env).__name__}; use gym.make_vec(..., "
                "autoreset_mode='DISABLED'), or give the single env to stable-baselines3 as it is"
            )

        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"env must be made with autoreset_mode='DISABLED'; got autoreset_mode {mode}"
            )

        base = env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            raise ValueError(
                "env must be a population or a SyncVectorEnv; got an AsyncVectorEnv; for a process "
                "per env, give single envs to stable-baselines3's SubprocVecEnv"
            )

        self.env = env
        self._envs = base.envs if isinstance(base, SyncVectorEnv) else None  # one per row
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets and returns the rows' seeds of the next reset: seed, seed + 1, ...

        With None the env continues with its generators. The method of stable-baselines3 would draw
        a seed from numpy's global generator in place of None.
        """
        self._seeds = [None if seed is None else seed + row for row in range(self.num_envs)]
        return self._seeds

    def reset(self) -> VecEnvObs:
        """Starts a new episode in every row and returns the observations, (N, F).

        Seeds and options are those that were set since the last reset.
        """
        first = self._options[0]
        if not all(_equal(options, first) for options in self._options):
            raise ValueError(
                "options must be the same for all rows, because one call resets them; "
                f"got {self._options}"
            )

        rows = np.array(first.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        seeds: Any = None if self._seeds[0] is None else list(self._seeds)
        obs, infos = self.env.reset(seed=seeds, options=first or None)

        self._begin_episodes(rows, infos)
        self._reset_seeds()
        self._reset_options()
        return np.array(obs)

    def _begin_episodes(self, rows: NDArray[np.bool_], infos: dict[str, Any]) -> None:
        """Resets the returns and lengths of the rows that were reset."""
        for row in np.flatnonzero(rows).tolist():
            self.reset_infos[row] = row_info(infos, row, self.num_envs)
        self._returns[rows] = 0.0
        self._lengths[rows] = 0

    def step_async(self, actions: np.ndarray) -> None:
        """Stores the actions, (N, A), for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes one decision in every row, then resets the rows that ended.

        Returns:
            obs: observations, (N, F). Those of the new episode where one ended.
            rewards: (N,) float32.
            dones: (N,) bool.
            infos: one dictionary per row.
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
            self._begin_episodes(dones, new_infos)

        return obs, np.array(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        """Closes the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns the images of the rows. Each is None without render_mode `rgb_array`."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"the env was made with render_mode {self.render_mode!r}; images need 'rgb_array'",
                stacklevel=2,
            )
            return [None] * self.num_envs
        frames: Any = self.env.render()
        return list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the chosen rows."""
        if self._envs is not None:
            return [
                self._envs[row].get_wrapper_attr(attr_name) for row in self._get_indices(indices)
            ]
        value = getattr(self.env.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the chosen rows.

        Raises:
            ValueError: if some rows of a population are chosen, because they share the attribute.
        """
        if self._envs is not None:
            for row in self._get_indices(indices):
                self._envs[row].set_wrapper_attr(attr_name, value)
            return
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"indices of set_attr({attr_name!r}) must be all rows, which are one environment; "
                f"got {indices}"
            )

        setattr(self.env.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method of the chosen rows.

        A population's method is called once. If it returns an array (N, ...), each chosen row gets
        its entry.
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
        """Returns True for each chosen row whose vector env or single env has this wrapper.

        Always True for Monitor, because the infos have its entries.
        """
        env, found = self.env, issubclass(wrapper_class, Monitor)
        while isinstance(env, VectorWrapper):
            found = found or isinstance(env, wrapper_class)
            env = env.env

        of_rows = (
            [False] * self.num_envs
            if self._envs is None
            else [is_wrapped(e, wrapper_class) for e in self._envs]
        )
        return [found or of_rows[row] for row in self._get_indices(indices)]


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Returns True if two options are the same. Their values may be arrays."""
    return left.keys() == right.keys() and all(
        np.array_equal(left[key], right[key]) for key in left
    )


def from_sb3(model: BaseAlgorithm) -> SB3MLP:
    """Returns a copy of a model's actor as a policy of hpenv, which is saved without pickle.

    It is `SB3MLP.from_sb3(model)`, whose arguments give statistics and a spec.

    Raises:
        ValueError: for another algorithm, policy, network or action space.
    """
    return SB3MLP.from_sb3(model)
