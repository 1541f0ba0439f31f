"""Collects episodes of a population of runs, from the first decision to the last.

The episodes of an update are collected in waves of as many runs as train together. A wave is a pure
function of the agent, its seeds and its number, so that an executor may compute waves anywhere.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.base import Agent, Rollout
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.executors import run_all
from hpenv.benchmark.workers import Executor
from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.protocol import DIVERGENCE_REASONS


class Episodes(NamedTuple):
    """A rollout with further measurements.

    Attributes:
        rollout: the agent's input for an update.
        positions: actions, (T, N, A).
        train_losses: mean training loss of the window of each decision, (T, N), in the plant's
            unit.
        probe_losses: loss on the probe before the first decision and after each, (T + 1, N), in the
            plant's unit. None if neither reward nor observation measures the probe.
        reasons: reason of each episode's divergence, or None, (N,).
    """

    rollout: Rollout
    positions: NDArray[np.float64]
    train_losses: NDArray[np.float64]
    probe_losses: NDArray[np.float64] | None
    reasons: tuple[str | None, ...]

    @property
    def returns(self) -> NDArray[np.float64]:
        """The undiscounted return of each episode, (N,)."""
        return np.where(self.rollout.alive, self.rollout.rewards, 0.0).sum(0)


def episode_seeds(seed: int, update: int, num_episodes: int) -> list[int]:
    """Returns the seeds of an update's episodes, a pure function of training seed and update."""
    first = int(np.random.SeedSequence([seed, update]).generate_state(1)[0])
    return [first + i for i in range(num_episodes)]


class Wave(NamedTuple):
    """Arguments of a wave of episodes.

    Attributes:
        env_id: a registered id.
        arguments: keyword arguments of the env, as JSON.
        agent: the agent, pickled.
        seeds: one per run, (N,).
        number: of the wave in its update.
    """

    env_id: str
    arguments: str
    agent: bytes
    seeds: list[int]
    number: int


def collect(env: TrainLoopVectorEnv, agent: Agent, seeds: list[int]) -> Episodes:
    """Runs one episode per seed, in waves of as many episodes as the env has rows.

    Args:
        env: made with autoreset_mode DISABLED.
        agent: decides with exploration.
        seeds: one per episode. Their number is a multiple of the number of rows.

    Raises:
        ValueError: the number of seeds is not a positive multiple of the number of rows.
    """
    return join_waves([_wave(env, agent, part) for part in _parts(seeds, env.num_envs)])


def collect_on(
    executor: Executor,
    env: TrainLoopVectorEnv,
    env_id: str,
    arguments: Mapping[str, Any],
    agent: Agent,
    seeds: list[int],
) -> Episodes:
    """Runs the same episodes as `collect`, bit for bit, with an executor.

    Args:
        executor: where the waves are computed.
        env: an env of the id with these arguments. It is not stepped.
        env_id: a registered id.
        arguments: its keyword arguments, in JSON's types.
        agent: decides with exploration. Its random numbers move on as with `collect`.
        seeds: one per episode. Their number is a multiple of the number of rows.

    Raises:
        ValueError: see `collect`.
        WorkError: naming the waves that failed.
    """
    saved, text = pickle.dumps(agent), json.dumps(dict(arguments))
    waves = [
        Wave(env_id, text, saved, part, number)
        for number, part in enumerate(_parts(seeds, env.num_envs))
    ]
    found = {
        wave.number: episodes
        for wave, episodes in run_all(
            compute_wave, waves, executor, name=lambda wave: f"wave {wave.number}"
        )
    }
    _skip(agent, env, len(waves))
    return join_waves([found[wave.number] for wave in waves])


def compute_wave(wave: Wave) -> Episodes:
    """Runs the episodes of a wave, in whatever process."""
    env = _env(wave.env_id, wave.arguments, len(wave.seeds))
    agent = pickle.loads(wave.agent)
    _skip(agent, env, wave.number)
    return _wave(env, agent, wave.seeds)


@lru_cache(maxsize=1)
def _env(env_id: str, arguments: str, num_rows: int) -> TrainLoopVectorEnv:
    """Makes the env of a process's waves, once."""
    return make_population(env_id, num_rows, json.loads(arguments))


def _skip(agent: Agent, env: TrainLoopVectorEnv, num_waves: int) -> None:
    """Draws the random numbers that an agent needs for a number of waves."""
    nothing = np.zeros((env.num_envs, len(env.observation_names)), dtype=np.float32)
    for _ in range(num_waves * env.num_decisions):
        agent.sample(nothing)


def _parts(seeds: list[int], num_rows: int) -> list[list[int]]:
    if not seeds or len(seeds) % num_rows:
        raise ValueError(
            f"seeds must be a positive multiple of the {num_rows} rows; got {len(seeds)}"
        )
    return [seeds[i : i + num_rows] for i in range(0, len(seeds), num_rows)]


def join_waves(waves: list[Episodes]) -> Episodes:
    """Returns the episodes of all waves, side by side."""
    columns = [
        [part for part in parts if part is not None]
        for parts in zip(*(wave.rollout for wave in waves), strict=True)
    ]
    rollout = Rollout(*(np.concatenate(parts, axis=1) for parts in columns if parts))
    measured = [wave.probe_losses for wave in waves if wave.probe_losses is not None]
    probes = measured if len(measured) == len(waves) else None

    return Episodes(
        rollout,
        np.concatenate([wave.positions for wave in waves], axis=1),
        np.concatenate([wave.train_losses for wave in waves], axis=1),
        None if probes is None else np.concatenate(probes, axis=1),
        tuple(chain.from_iterable(wave.reasons for wave in waves)),
    )


def _wave(env: TrainLoopVectorEnv, agent: Agent, seeds: list[int]) -> Episodes:
    observations, infos = env.reset(seed=seeds)
    alive = np.ones(env.num_envs, dtype=bool)
    names = ("obs", "raw", "log_prob", "rewards", "alive", "positions", "train_losses")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    probes = [infos["probe_loss"]] if "probe_loss" in infos else []
    reasons: list[str | None] = [None] * env.num_envs

    for _ in range(env.num_decisions):
        decision = agent.sample(observations)
        before = observations
        observations, rewards, terminated, truncated, infos = env.step(decision.action)
        values = (
            before,
            decision.raw,
            decision.log_prob,
            rewards,
            alive.copy(),
            decision.action,
            infos["train_loss"],
        )

        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)

        if "probe_loss" in infos:
            probes.append(infos["probe_loss"])
        for row in np.flatnonzero(alive & (infos["divergence"] > 0)):
            reasons[row] = DIVERGENCE_REASONS[infos["divergence"][row]]

        alive &= ~(terminated | truncated)

    stacked = {name: np.stack(values) for name, values in columns.items()}
    rollout = Rollout(
        stacked["obs"], stacked["raw"], stacked["log_prob"], stacked["rewards"], stacked["alive"]
    )
    measured = np.stack(probes) if len(probes) == env.num_decisions + 1 else None

    return Episodes(
        rollout, stacked["positions"], stacked["train_losses"], measured, tuple(reasons)
    )
