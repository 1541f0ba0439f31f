"""Runs and their sidecars: one decision after another, held-out scores, and checkpoints that hold all of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agents.base import Rollout
from agents.reinforce import SidecarAgent
from hpenv import snapshots
from hpenv.env import TrainLoopVectorEnv
from hpenv.plant import DIVERGENCE_REASONS, Snapshot
from train_agents.evaluate import probe_loss

#: Decimals of positions in a trace.
DECIMALS = 4

FloatArray = NDArray[np.float64]


class Population:
    """Runs and their sidecars, a decision at a time, and all that the next decision depends on.

    Attributes:
        env: the runs.
        agent: their sidecars.
        observations: what the next decision is taken on, (N, F).
        alive: False for rows that have ended, (N,).
        decision: decisions taken.
        reasons: why each row diverged, or None, (N,).
        returns: sum of the rewards of each row, and the number of its decisions, (2, N).
        losses: sums of the training loss since the curve's, and since the log's last line, and the
            number of windows in each sum, (4, N) [nats per token].
    """

    def __init__(self, env: TrainLoopVectorEnv, agent: SidecarAgent, seeds: Sequence[int]) -> None:
        """Begins the runs."""
        self.env, self.agent = env, agent
        self.observations, _ = env.reset(seed=[int(seed) for seed in seeds])
        self.alive = np.ones(env.num_envs, dtype=bool)
        self.decision = 0
        self.reasons: list[str | None] = [None] * env.num_envs
        self.losses: FloatArray = np.zeros((4, env.num_envs))
        self.returns: FloatArray = np.zeros((2, env.num_envs))
        self.agent_seconds, self.env_seconds, self.timed = (
            0.0,
            0.0,
            0,
        )  # of this process; never saved

    @property
    def step(self) -> int:
        """Steps that a row which never diverged has taken."""
        return min(self.decision * self.env.interval, self.env.horizon)

    @property
    def timesteps(self) -> int:
        """Decisions taken, summed over the rows: stable-baselines3's num_timesteps."""
        return self.decision * self.env.num_envs

    def episode_metrics(self) -> dict[str, float]:
        """Returns mean return and mean length of the rows' episodes, which have come as far as they have."""
        total, length = self.returns.mean(1).tolist()
        return {"rollout/ep_rew_mean": total, "rollout/ep_len_mean": length}

    @property
    def done(self) -> bool:
        """Whether there is no row that another decision would move."""
        return self.decision >= self.env.num_decisions or not self.alive.any()

    def decide(self, trace: bool) -> tuple[dict[str, float], dict[str, Any] | None]:
        """One decision of every row, and the update that its reward leads to.

        Args:
            trace: also report the positions.

        Returns:
            Metrics of the agent and of the runs; with `trace`, `mean` and `sampled` positions (N,
            A) of this decision.
        """
        means = self.means().round(DECIMALS).tolist() if trace else None
        start = time.perf_counter()
        decided = self.agent.act(self.observations)
        acted = time.perf_counter()
        taken, alive = self.observations, self.alive.copy()
        self.observations, rewards, terminated, truncated, infos = self.env.step(decided.action)
        stepped = time.perf_counter()
        rollout = Rollout(
            taken[None], decided.raw[None], decided.log_prob[None], rewards[None], alive[None]
        )
        metrics = self.agent.update(rollout)
        self.agent_seconds += acted - start + time.perf_counter() - stepped
        self.env_seconds += stepped - acted
        self.timed += 1

        losses = np.where(alive, infos["train_loss"], 0.0)
        self.losses += np.stack([losses, alive, losses, alive])
        self.returns += np.stack([np.where(alive, rewards, 0.0), alive])
        for row in np.flatnonzero(alive & (infos["divergence"] > 0)):
            self.reasons[row] = DIVERGENCE_REASONS[infos["divergence"][row]]
        self.alive = alive & ~(terminated | truncated)
        self.decision += 1
        sampled = np.round(decided.action.astype(np.float64), DECIMALS).tolist()
        return metrics, {"mean": means, "sampled": sampled} if trace else None

    def means(self) -> FloatArray:
        """Positions that the next decision would have without exploration, (N, A)."""
        return self.agent.act(self.observations, deterministic=True).action.astype(np.float64)

    def evaluate(self) -> FloatArray:
        """Held-out score, (N,), with the forward dials at the policies' means instead of their last samples."""
        with self._at_means():
            return self.env.evaluate()

    def probe(self) -> FloatArray:
        """Loss on the probe, (N,), in the plant's unit, with the dials as in `evaluate`; for the end."""
        with self._at_means():
            return probe_loss(self.env)

    @contextmanager
    def _at_means(self) -> Iterator[None]:
        """Sets the panel to the policies' means, and back."""
        panel = self.env.plant.panel
        sampled = panel.positions.copy()
        rows = np.ones(self.env.num_envs, dtype=bool)
        panel.move(self.means()[:, : sampled.shape[1]], rows)
        yield
        panel.move(sampled, rows)

    def mean_loss(self, purpose: Literal["curve", "log"]) -> FloatArray:
        """Mean training loss since the last call for the same purpose, (N,); NaN for rows that had ended before."""
        first = 0 if purpose == "curve" else 2
        total, count = self.losses[first], self.losses[first + 1]
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        self.losses[first : first + 2] = 0.0
        return mean

    def save(self, folder: Path) -> None:
        """Writes env, agent and itself to a folder, which appears whole or not at all."""
        new = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        snapshots.save(new / "env", self.env.snapshot())
        self.agent.save(new / "agent")
        tensors = {"observations": self.observations, "alive": self.alive, "losses": self.losses}
        tensors |= {"returns": self.returns}
        own = {name: torch.as_tensor(value.copy()) for name, value in tensors.items()}
        snapshots.save(
            new / "program",
            Snapshot(own, {"decision": self.decision, "reasons": list(self.reasons)}),
        )
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)

    def load(self, folder: Path) -> None:
        """Continues from a folder that `save` wrote.

        Raises:
            SnapshotError: a part of it is damaged; nothing has been restored then, if it is the
                env's or the program's.
        """
        program, env = snapshots.load(folder / "program"), snapshots.load(folder / "env")
        missing = {"observations", "alive", "losses", "returns"} - set(program.tensors)
        if missing or not {"decision", "reasons"} <= set(program.metadata):
            raise snapshots.SnapshotError(
                f"{folder / 'program'} is of another version of this program"
            )
        self.agent.load(folder / "agent")
        self.env.restore(env)
        self.observations = program.tensors["observations"].numpy().copy()
        self.alive = program.tensors["alive"].numpy().copy()
        self.losses = program.tensors["losses"].numpy().copy()
        self.returns = program.tensors["returns"].numpy().copy()
        self.decision, self.reasons = (
            program.metadata["decision"],
            list(program.metadata["reasons"]),
        )
