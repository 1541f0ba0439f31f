"""Environments by their ids: keyword arguments from a command line's texts, and populations of training runs."""

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

gym.register_envs(hpenv)

#: What Python calls these; as a string each would be true.
NOT_JSON = {"True": "true", "False": "false", "None": "null"}
#: Arguments that the programs give by themselves, and that a user's would collide with.
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
    """Returns keyword arguments from `key=value` texts; a value is JSON, or, if it is not, a
    string.

    Example:
        >>> parse_assignments(("batch_tokens=256", "schedule=none", 'reward={"smoothness": 0.1}'))
        {'batch_tokens': 256, 'schedule': 'none', 'reward': {'smoothness': 0.1}}

    Raises:
        ValueError: for a text without `=`, a key that is no name or comes twice, and for True,
            False and None.
    """
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{text!r}; expected key=value")
        if key in result:
            raise ValueError(f"{key!r} is given twice, as {result[key]!r} and {value!r}")
        if value in NOT_JSON:
            raise ValueError(f"{text!r}; values are JSON, so write {key}={NOT_JSON[value]}")
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
        ValueError: the id is not registered or is that of something else, or the arguments are not
            the id's.
    """
    try:
        entry_point = gym.spec(env_id).vector_entry_point
    except gym.error.Error as error:
        raise ValueError(f"unknown env {env_id!r}: {error}") from error
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if creator is None or "autoreset_mode" not in inspect.signature(creator).parameters:
        raise ValueError(
            f"env {env_id!r} must be the id of a TrainLoopVectorEnv; it makes something else"
        )
    reserved = sorted(set(arguments) & set(RESERVED))
    if reserved:
        raise ValueError(f"env_kwargs {reserved} must be left out; the program sets them itself")
    try:
        env = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode="DISABLED", **arguments)
    except UnknownArgumentError:  # it names the arguments of the id
        raise
    except TypeError as error:  # of an argument of another type than the id expects
        raise ValueError(f"{env_id} cannot be made with {dict(arguments)}: {error}") from error
    if not isinstance(env, TrainLoopVectorEnv):
        raise ValueError(
            f"env {env_id!r} must be the id of a TrainLoopVectorEnv; it makes a {type(env).__name__}"
        )
    return env
