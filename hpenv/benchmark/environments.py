"""Makes populations of training runs from ids, and what a controller needs to know of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

import hpenv
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.spec import UnknownArgumentError
from hpenv.policies.controller import Columns, ControllerSpec

gym.register_envs(hpenv)

#: Python literals that are not JSON. Read as strings they would all be truthy, so they are refused.
NOT_JSON = {"True": "true", "False": "false", "None": "null"}
#: Arguments that the programs set. A user cannot give them.
RESERVED = (
    "id",
    "num_envs",
    "vectorization_mode",
    "vector_kwargs",
    "wrappers",
    "autoreset_mode",
    "render_mode",
)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Returns keyword arguments from `key=value` texts. A value that is not JSON is a string.

    Example:
        >>> texts = ("batch_tokens=256", "schedule=none", 'reward={"smoothness": 0.1}')
        >>> parse_assignments(texts)
        {'batch_tokens': 256, 'schedule': 'none', 'reward': {'smoothness': 0.1}}

    Raises:
        ValueError: a text has no `=`, a key is no identifier or comes twice, or a value is True,
            False or None.
    """
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"env_kwargs must be key=value; got {text!r}")
        if key in result:
            raise ValueError(f"{key} must be given once; got {result[key]!r} and {value!r}")
        if value in NOT_JSON:
            raise ValueError(f"{key} must be JSON; got {value}; write {key}={NOT_JSON[value]}")
        try:
            result[key] = json.loads(value)
        except json.JSONDecodeError:
            result[key] = value

    return result


def make_population(env_id: str, num_envs: int, arguments: Mapping[str, Any]) -> TrainLoopVectorEnv:
    """Makes a vector env of N training runs, without autoreset.

    Args:
        env_id: a registered id of a training loop.
        num_envs: N.
        arguments: keyword arguments of the id.

    Raises:
        ValueError: the id is not registered or makes another environment, or does not accept the
            arguments.
    """
    try:
        entry_point = gym.spec(env_id).vector_entry_point
    except gym.error.Error as error:
        raise ValueError(f"env must be a registered id; got {env_id!r}; {error}") from error

    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if creator is None or "autoreset_mode" not in inspect.signature(creator).parameters:
        raise ValueError(
            f"env must be the id of a TrainLoopVectorEnv; got {env_id!r}, which makes another env"
        )

    reserved = sorted(set(arguments) & set(RESERVED))
    if reserved:
        raise ValueError(f"env_kwargs must leave out {list(RESERVED)}; got {reserved}")

    try:
        env = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode="DISABLED", **arguments)
    except UnknownArgumentError:  # its message names the arguments of the id
        raise
    except TypeError as error:  # an argument has another type than the id expects
        raise ValueError(
            f"env_kwargs must be arguments of {env_id}; got {dict(arguments)}; {error}"
        ) from error

    if not isinstance(env, TrainLoopVectorEnv):
        raise ValueError(
            f"env must be the id of a TrainLoopVectorEnv; got {env_id!r}, "
            f"which makes a {type(env).__name__}"
        )

    return env


def columns_of(env: TrainLoopVectorEnv) -> Columns:
    """Returns the number of runs and the columns of an env, for its controller."""
    return Columns(
        env.num_envs,
        env.num_decisions,
        env.observation_names,
        env.action_names,
        env.action_kinds,
        env.action_immediate,
    )


def spec_of(env: TrainLoopVectorEnv) -> ControllerSpec:
    """Returns the spec of a controller that was made for an env."""
    return ControllerSpec(
        channels=tuple(env.plant.panel.banks),
        observation=env.features,
        interval=env.interval,
        num_registers=len(env.action_names) - len(env.plant.panel.names),
        observation_names=env.observation_names,
        action_names=env.action_names,
        mapping=env.arguments["mapping"],
        max_moves=env.arguments["max_moves"] if env.moves else None,
        estimators=env.arguments["estimators"],
    )
