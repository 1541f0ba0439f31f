"""Tiny vector environments whose optimum is known, for tests of everything that learns.

They have the interface of the real environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from agents.base import Agent, Rollout


class TargetTrackingVectorEnv(gym.vector.VectorEnv):
    """An open-loop schedule that must be found, from the observation [t / T].

    The reward is -|u - target(t)|^2 at each of 12 decisions.

    The best policy plays `targets`, and its return is the sum of the noise alone. A row ends after
    `horizon` decisions, or after the number that `ends` has for it; with autoreset disabled a row
    that has ended does not move.

    Args:
        num_envs: N.
        horizon: T, decisions per episode.
        noise: standard deviation of a number added to each reward, drawn from the row's own
            generator.
        ends: row -> decisions after which its episodes end, short of the horizon.
        truncates: the end at the horizon is a truncation, not a termination.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 8,
        horizon: int = 12,
        noise: float = 0.1,
        ends: Mapping[int, int] | None = None,
        truncates: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.horizon = horizon
        self.noise = noise
        self.truncates = truncates
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        progress = np.arange(horizon) / horizon
        self.targets = np.stack(
            [0.6 * np.cos(np.pi * progress), 0.5 - 0.8 * progress], axis=1
        )  # (T, 2)
        self.lengths = np.full(num_envs, horizon)
        for row, length in (ends or {}).items():
            self.lengths[row] = length
        self.decisions = np.zeros(num_envs, dtype=np.int64)
        self.generators = [np.random.default_rng(row) for row in range(num_envs)]
        self.last_seeds: list[int | None] = []

    @property
    def neutral_return(self) -> float:
        """Return of the policy that plays 0, without noise."""
        return -float((self.targets**2).sum())

    def _observe(self) -> np.ndarray:
        return (self.decisions[:, None] / self.horizon).astype(np.float32)

    def _infos(self) -> dict[str, Any]:
        return {
            "step": self.decisions * 50,
            "_step": np.ones(self.num_envs, dtype=bool),
            "corpus": "none",
        }

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
        seeds = (
            [seed + row for row in range(self.num_envs)]
            if isinstance(seed, int)
            else list(seed or [])
        )
        self.last_seeds = list(seeds)
        for row, row_seed in enumerate(seeds):
            if mask[row]:
                self.generators[row] = np.random.default_rng(row_seed)
        self.decisions[mask] = 0
        return self._observe(), self._infos()

    def step(self, actions: np.ndarray) -> Any:
        assert actions.shape == (self.num_envs, 2) and np.abs(actions).max() <= 1.0
        moves = self.decisions < self.lengths
        targets = self.targets[np.minimum(self.decisions, self.horizon - 1)]
        noise = np.array(
            [
                g.normal(0.0, self.noise) if m else 0.0
                for g, m in zip(self.generators, moves, strict=True)
            ]
        )
        rewards = np.where(moves, noise - ((actions - targets) ** 2).sum(axis=1), 0.0)
        self.decisions += moves
        ended = self.decisions >= self.lengths
        truncated = ended & (self.lengths == self.horizon) & self.truncates
        infos = self._infos()
        early = ended & (self.lengths < self.horizon)
        if early.any():
            infos |= {"divergence": early.astype(np.int64), "_divergence": early}
        infos |= {
            "panel/lr": np.exp(actions[:, 0]),
            "_panel/lr": np.ones(self.num_envs, dtype=bool),
        }
        return self._observe(), rewards, ended & ~truncated, truncated, infos

    def evaluate(self) -> np.ndarray:
        """A number for every row, (N,)."""
        return np.arange(self.num_envs, dtype=np.float64)


def collect(env: TargetTrackingVectorEnv, agent: Agent, seed: int | None = None) -> Rollout:
    """One episode in every row.

    Rows that have ended are marked as not alive and wait for the others.
    """
    obs, _ = env.reset(seed=seed)
    alive = np.ones(env.num_envs, dtype=bool)
    rows: list[tuple[np.ndarray, ...]] = []
    while alive.any():
        decision = agent.sample(obs)
        new_obs, rewards, terminated, truncated, _ = env.step(decision.action)
        rows.append((obs, decision.raw, decision.log_prob, rewards, alive))
        obs, alive = new_obs, alive & ~(terminated | truncated)
    return Rollout(*(np.stack(column) for column in zip(*rows, strict=True)))


def regret(env: TargetTrackingVectorEnv, policy: Any) -> float:
    """Distance of a policy's noiseless return from the best return.

    It is a fraction of the neutral policy's distance.
    """
    positions = policy.act(
        (np.arange(env.horizon)[:, None] / env.horizon).astype(np.float32)
    )  # (T, 2)
    return float(((positions - env.targets) ** 2).sum()) / -env.neutral_return
