"""Collects episodes of a population of runs, from the first decision to the last."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.base import Agent, Rollout
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


def collect(env: TrainLoopVectorEnv, agent: Agent, seeds: list[int]) -> Episodes:
    """Runs one episode per seed, in waves of as many episodes as the env has rows.

    Args:
        env: made with autoreset_mode DISABLED.
        agent: decides with exploration.
        seeds: one per episode. Their number is a multiple of the number of rows.

    Raises:
        ValueError: the number of seeds is not a positive multiple of the number of rows.
    """
    if not seeds or len(seeds) % env.num_envs:
        raise ValueError(
            f"seeds must be a positive multiple of the {env.num_envs} rows; got {len(seeds)}"
        )

    waves = [
        _wave(env, agent, seeds[i : i + env.num_envs]) for i in range(0, len(seeds), env.num_envs)
    ]
    columns = zip(*(wave.rollout for wave in waves), strict=True)
    rollout = Rollout(*(np.concatenate(parts, axis=1) for parts in columns))
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
