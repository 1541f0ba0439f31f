"""Writes whole populations of runs as data sets of Minari.

A population trains its runs together, so an episode of a data set is one row of it, up to the end
of that row. Nothing of Minari's collector is used: it steps one env at a time, and needs jax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hpenv.env import TrainLoopVectorEnv
from hpenv.infos import row_info
from hpenv.policies.controller import Columns, Controller, begin, check_controller, teach

try:
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import MinariDataset
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.minari needs Minari; install it with: pip install minari pyarrow",
        name=error.name,
    ) from error


def record_episodes(
    controller: Controller, envs: TrainLoopVectorEnv, seeds: Sequence[int], first_id: int = 0
) -> list[EpisodeBuffer]:
    """Runs one episode in every row of a population, and returns each as a buffer.

    Args:
        controller: it acts, and learns if it can.
        envs: population of N runs with `autoreset_mode` DISABLED.
        seeds: one per row.
        first_id: number of the first episode.

    Returns:
        N buffers. Row n has T_n decisions, T_n + 1 observations and infos, and the seed under which
        `env.reset(seed=...)` begins the same run.
    """
    observations, infos = envs.reset(seed=[int(seed) for seed in seeds])
    begin(controller, _columns(envs))
    buffers = []
    for row, seed in enumerate(seeds):
        info = {key: [value] for key, value in row_info(infos, row, envs.num_envs).items()}
        buffer = EpisodeBuffer(first_id + row, int(seed), None, [observations[row]], [])
        buffers.append(EpisodeBuffer(**{**vars(buffer), "infos": info}))

    alive = np.ones(envs.num_envs, dtype=bool)
    while alive.any():
        actions = np.clip(controller.act(observations), -1.0, 1.0).astype(np.float32)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        teach(controller, rewards, alive)
        for row in np.flatnonzero(alive).tolist():
            _append(
                buffers[row],
                observations[row],
                actions[row],
                float(rewards[row]),
                (bool(terminated[row]), bool(truncated[row])),
                # Keys that a row does not have are 0, so that every step has the same keys.
                {key: infos[key][row] for key in buffers[row].infos or {}},
            )
        alive = alive & ~(terminated | truncated)

    return buffers


def _append(
    buffer: EpisodeBuffer,
    observation: np.ndarray,
    action: np.ndarray,
    reward: float,
    ends: tuple[bool, bool],
    info: Mapping[str, Any],
) -> None:
    lists: Any = buffer
    lists.observations.append(observation.copy())
    lists.actions.append(action.copy())
    lists.rewards.append(reward)
    lists.terminations.append(ends[0])
    lists.truncations.append(ends[1])
    for key, value in info.items():
        lists.infos[key].append(value)


def export(
    dataset_id: str,
    controller: Controller,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    name: str | None = None,
    description: str = "",
    author: str = "unknown",
    author_email: str = "unknown",
    code_permalink: str = "unknown",
    max_rows: int = 10,
    data_format: str = "arrow",
) -> MinariDataset:
    """Runs a controller once per seed, and writes the episodes as one data set.

    `load_dataset(dataset_id).recover_environment()` makes an env of one run. Its episodes are those
    of the data set: observations are equal up to the reassociation of floating-point sums, and
    bitwise in a population of as many rows.

    Args:
        dataset_id: name of the data set, as `hpenv/jel/cosine-v0`.
        controller: it acts, and learns if it can.
        env_id: a registered id of a training loop.
        env_kwargs: keyword arguments of the env. They override the controller's spec. Minari saves
            them as JSON, so a schedule is a name or a mapping.
        seeds: one episode each.
        name: name of the controller in the data set's metadata. None: the name of its class.
        description: description in the metadata.
        author: author in the metadata.
        author_email: address in the metadata.
        code_permalink: address of the code in the metadata.
        max_rows: largest number of runs that train together. It bounds the memory.
        data_format: Minari's format, `arrow` (needs pyarrow) or `hdf5` (needs h5py).

    Raises:
        ValueError: there are no seeds, max_rows is below 1, the controller was made for other
            columns, or the data set exists.

    Example:
        >>> export("hpenv/jel/mine-v0", policy, "TrainLoop-JEL-v0", {}, range(8))  # doctest: +SKIP
    """
    check_controller(controller)
    if not seeds or max_rows < 1:
        raise ValueError(
            "seeds must be a list of at least one seed, and max_rows must be >= 1; "
            f"got seeds {seeds!r} and max_rows {max_rows}"
        )

    arguments = controller.spec.arguments() | dict(env_kwargs)
    single = gym.make(env_id, **arguments)
    buffers: list[EpisodeBuffer] = []
    for first in range(0, len(seeds), max_rows):
        chunk = seeds[first : first + max_rows]
        envs: Any = gym.make_vec(
            env_id, num_envs=len(chunk), autoreset_mode="DISABLED", **arguments
        )
        controller.spec.check(_columns(envs))
        buffers += record_episodes(controller, envs, chunk, first)
        envs.close()

    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=single.spec,
        eval_env=single.spec,
        algorithm_name=type(controller).__name__ if name is None else name,
        author=author,
        author_email=author_email,
        code_permalink=code_permalink,
        description=description,
        data_format=data_format,
        requirements=["hpenv"],
    )


def _columns(envs: TrainLoopVectorEnv) -> Columns:
    return Columns(
        envs.num_envs,
        envs.num_decisions,
        envs.observation_names,
        envs.action_names,
        envs.action_kinds,
        envs.action_immediate,
    )
