"""Registers the ids with Ray, so that the workers of RLlib find them.

Gymnasium's registry is one per process. A worker of RLlib has not imported hpenv, so it does not
know an id by its name alone. Ray's own registry is sent to the workers, together with the function
that makes the env.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

try:
    from ray.tune.registry import register_env
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.rllib needs RLlib; install it with: pip install 'ray[rllib]'",
        name=error.name,
    ) from error


@dataclass(frozen=True)
class EnvCreator:
    """Maker of an id's environments, as Ray's registry holds it.

    Attributes:
        id: id in Gymnasium's registry.
    """

    id: str

    def __call__(self, config: Mapping[str, Any]) -> Any:
        """Returns one run, or a population if RLlib asks for a vector env.

        Args:
            config: keyword arguments of the id, from `env_config`. With `gym_env_vectorize_mode`
                VECTOR_ENTRY_POINT, RLlib adds `num_envs`.
        """
        arguments = dict(config)
        num_envs = arguments.pop("num_envs", None)
        name = f"hpenv:{self.id}"  # imports hpenv where that has not been done
        if num_envs is None:
            return gym.make(name, **arguments)
        return gym.make_vec(name, num_envs=num_envs, **arguments)


def register() -> tuple[str, ...]:
    """Registers every id of hpenv with Ray under its own name, and returns the names.

    Example:
        >>> register()  # doctest: +SKIP
        >>> config = PPOConfig().environment("TrainLoop-JEL-v0")  # doctest: +SKIP
        >>> mode = gym.VectorizeMode.VECTOR_ENTRY_POINT  # doctest: +SKIP
        >>> config.env_runners(gym_env_vectorize_mode=mode)  # doctest: +SKIP
    """
    ids = tuple(
        sorted(
            id
            for id, spec in gym.registry.items()
            if str(spec.vector_entry_point).startswith("hpenv.envs.")
        )
    )
    for id in ids:
        register_env(id, EnvCreator(id))
    return ids
