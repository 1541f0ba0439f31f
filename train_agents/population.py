"""A population of runs with a controller: decisions, held-out scores, and checkpoints."""

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

from hpenv import branching
from hpenv.arrays import FloatArray
from hpenv.benchmark.environments import columns_of
from hpenv.benchmark.evaluate import probe_loss, readings
from hpenv.env import TrainLoopVectorEnv
from hpenv.plant import snapshots
from hpenv.plant.protocol import DIVERGENCE_REASONS, Snapshot
from hpenv.policies.controller import begin, restore_state, state_of, teach

#: Number of decimals of positions in a trace.
DECIMALS = 4


class Population:
    """Runs with a controller, and all other state on which the next decision depends.

    Attributes:
        env: the runs.
        controller: it acts, and learns if it can. One that learns must also have `save` and `load`.
            One that explores has `mean(observations)`, its positions without exploration.
        observations: observations for the next decision, (N, F).
        alive: False for rows that have ended, (N,).
        decision: number of decisions so far.
        reasons: reason of each row's divergence, or None, (N,).
        returns: sum of rewards and number of decisions of each row, (2, N).
        losses: sum of the training loss and number of windows since the curve's last line, and both
            since the log's last line, (4, N) [nats per token].
    """

    def __init__(self, env: TrainLoopVectorEnv, controller: Any, seeds: Sequence[int]) -> None:
        """Begins the runs.

        Raises:
            ValueError: the controller learns, and cannot be saved.
        """
        if hasattr(controller, "learn") and not hasattr(controller, "save"):
            raise ValueError(
                "a controller that learns must have save(folder) and load(folder), so that its "
                f"runs can continue; got {type(controller).__name__}"
            )
        self.env, self.controller = env, controller
        self.observations, _ = env.reset(seed=[int(seed) for seed in seeds])
        begin(controller, columns_of(env))
        self.alive = np.ones(env.num_envs, dtype=bool)
        self.decision = 0
        self.reasons: list[str | None] = [None] * env.num_envs
        self.losses: FloatArray = np.zeros((4, env.num_envs))
        self.returns: FloatArray = np.zeros((2, env.num_envs))
        # Times of this process, and the number of their decisions. They are never saved.
        self.controller_seconds, self.env_seconds, self.timed = 0.0, 0.0, 0

    @property
    def step(self) -> int:
        """The number of steps of a row that has not diverged."""
        return min(self.decision * self.env.interval, self.env.num_steps)

    @property
    def timesteps(self) -> int:
        """The number of decisions, summed over the rows: stable-baselines3's num_timesteps."""
        return self.decision * self.env.num_envs

    def episode_metrics(self) -> dict[str, float]:
        """Returns mean return and mean length of the rows' episodes so far."""
        total, length = self.returns.mean(1).tolist()
        return {"rollout/ep_rew_mean": total, "rollout/ep_len_mean": length}

    @property
    def done(self) -> bool:
        """True if no row would move at another decision."""
        return self.decision >= self.env.num_decisions or not self.alive.any()

    def decide(self, trace: bool) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Takes one decision in every row, and gives the controller its reward.

        Args:
            trace: also return the positions.

        Returns:
            Metrics of the controller, and with `trace` the `mean` and `sampled`
            positions (N, A) of this decision.
        """
        means = self.means().round(DECIMALS).tolist() if trace else None
        start = time.perf_counter()
        action = self.controller.act(self.observations)
        acted = time.perf_counter()
        alive = self.alive.copy()
        self.observations, rewards, terminated, truncated, infos = self.env.step(action)
        stepped = time.perf_counter()

        measured = readings(self.controller, self.env)
        metrics = teach(self.controller, rewards, alive, measured)
        self.controller_seconds += acted - start + time.perf_counter() - stepped
        self.env_seconds += stepped - acted
        self.timed += 1

        losses = np.where(alive, infos["train_loss"], 0.0)
        self.losses += np.stack([losses, alive, losses, alive])
        self.returns += np.stack([np.where(alive, rewards, 0.0), alive])

        for row in np.flatnonzero(alive & (infos["divergence"] > 0)):
            self.reasons[row] = DIVERGENCE_REASONS[infos["divergence"][row]]

        self.alive = alive & ~(terminated | truncated)
        self.decision += 1
        sampled = np.round(np.asarray(action, dtype=np.float64), DECIMALS).tolist()

        return metrics, {"mean": means, "sampled": sampled} if trace else None

    def means(self) -> FloatArray:
        """Returns the positions of the next decision without exploration, (N, A)."""
        act = getattr(self.controller, "mean", self.controller.act)
        return np.asarray(act(self.observations), dtype=np.float64)

    def evaluate(self) -> FloatArray:
        """Returns held-out scores (N,), with the panel at the policies' means, not at samples."""
        with self._at_means():
            return self.env.evaluate()

    def probe(self) -> FloatArray:
        """Returns final probe losses (N,) in the plant's unit, with the panel as in `evaluate`."""
        with self._at_means():
            return probe_loss(self.env)

    @contextmanager
    def _at_means(self) -> Iterator[None]:
        """Sets the panel to the policies' means during the block."""
        panel = self.env.plant.panel
        sampled = panel.positions.copy()
        rows = np.ones(self.env.num_envs, dtype=bool)
        panel.move(self.means()[:, : sampled.shape[1]], rows)
        try:
            yield
        finally:
            panel.move(sampled, rows)

    def mean_loss(self, purpose: Literal["curve", "log"]) -> FloatArray:
        """Returns the mean training loss since the last call for the same purpose, (N,).

        It is NaN for rows that had already ended at that call.
        """
        first = 0 if purpose == "curve" else 2
        total, count = self.losses[first], self.losses[first + 1]
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        self.losses[first : first + 2] = 0.0
        return mean

    def save(self, folder: Path) -> None:
        """Writes env, agent and this object's state to a folder, atomically."""
        new = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        snapshots.save(new / "env", branching.snapshot(self.env))
        if hasattr(self.controller, "save"):
            self.controller.save(new / "controller")
        elif state := state_of(self.controller):
            arrays = {name: torch.as_tensor(array) for name, array in state.items()}
            snapshots.save(new / "controller", Snapshot(arrays))
        tensors = {"observations": self.observations, "alive": self.alive, "losses": self.losses}
        tensors |= {"returns": self.returns}
        saved = {name: torch.as_tensor(value.copy()) for name, value in tensors.items()}
        snapshots.save(
            new / "program",
            Snapshot(saved, {"decision": self.decision, "reasons": list(self.reasons)}),
        )
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)

    def load(self, folder: Path) -> None:
        """Continues from a folder that `save` wrote.

        Raises:
            SnapshotError: a snapshot in it is damaged. If it is that of the env or of the program,
                nothing has been restored.
        """
        program, env = snapshots.load(folder / "program"), snapshots.load(folder / "env")
        missing = {"observations", "alive", "losses", "returns"} - set(program.tensors)
        if missing or not {"decision", "reasons"} <= set(program.metadata):
            raise snapshots.SnapshotError(
                f"{folder / 'program'} must be of this version of the program; got another"
            )

        if hasattr(self.controller, "load"):
            self.controller.load(folder / "controller")
        elif state_of(self.controller):
            state = snapshots.load(folder / "controller").tensors
            restore_state(self.controller, {name: array.numpy() for name, array in state.items()})
        branching.restore(self.env, env)
        self.observations = program.tensors["observations"].numpy().copy()
        self.alive = program.tensors["alive"].numpy().copy()
        self.losses = program.tensors["losses"].numpy().copy()
        self.returns = program.tensors["returns"].numpy().copy()
        self.decision = program.metadata["decision"]
        self.reasons = list(program.metadata["reasons"])
