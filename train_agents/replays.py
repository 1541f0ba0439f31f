"""Runs of an environment that are played again: from any window, or whole with their observations.

`EnvRuns` is what the search of `train_agents.trajectories` asks for, by snapshots and forks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpenv.arrays import Float32Array, FloatArray
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.branching import copy_rows, fork, restore, snapshot
from hpenv.control.channels import CHANNELS
from hpenv.env import TrainLoopVectorEnv
from hpenv.policies.controller import Controller
from train_agents.trajectories import Playing, split_decisions


class EnvRuns:
    """The run of one seed in an environment, whose loss is that of the probe.

    Args:
        env: an environment of one row without autoreset, whose infos have the probe loss.
        seed: seed of the run.
        num_windows: number of windows.

    Raises:
        ValueError: the environment has more rows, or does not measure the probe.
    """

    def __init__(self, env: TrainLoopVectorEnv, seed: int, num_windows: int) -> None:
        if env.num_envs != 1:
            raise ValueError(f"env must have one row; got {env.num_envs}")
        self.windows = split_decisions(env.num_decisions, num_windows)
        self._env, self._seed = env, seed

    def begin(self) -> Any:
        """Returns the snapshot of the new run."""
        _, infos = self._env.reset(seed=[self._seed])
        if "probe_loss" not in infos:
            raise ValueError(
                "env must measure the probe loss; got rewards and features without it; "
                'give reward={"progress": 1.0}'
            )
        return snapshot(self._env)

    def play(self, state: Any, window: int, actions: FloatArray) -> Playing:
        """Plays K copies of the run from a snapshot to the end. See `Runs.play`."""
        restore(self._env, state)
        copies = fork(self._env, len(actions))
        starts = {each.start for each in self.windows[window + 1 :]}
        first, saved = self.windows[window].start, []
        for decision, action in enumerate(actions.swapaxes(0, 1), start=first):
            if decision in starts:
                saved.append(snapshot(copies))
            copies.step(action)
        diverged = copies.episodes.window.divergence > 0
        losses = np.where(diverged, np.inf, copies.episodes.window["probe_loss"])
        return Playing(losses, lambda row: tuple(copy_rows(each, row, 1) for each in saved))


class Rollout(NamedTuple):
    """Runs of N rows.

    Attributes:
        observations: before every decision, (D, N, F).
        positions: before every decision, (D, N, A).
        alive: True for decisions that were taken, (D, N).
        probe: final loss on the probe, (N,).
        held_out: final held-out score, (N,).
    """

    observations: np.ndarray
    positions: FloatArray
    alive: np.ndarray
    probe: FloatArray
    held_out: FloatArray


def play_runs(
    env: TrainLoopVectorEnv,
    seeds: Sequence[int],
    act: Callable[[int, np.ndarray], Float32Array | FloatArray],
) -> Rollout:
    """Plays a run per row.

    Args:
        env: the runs, whose infos have the probe loss.
        seeds: one per row.
        act: function from the number of a decision and the observations to actions (N, A).
    """
    observations, _ = env.reset(seed=list(seeds))
    alive = np.ones(env.num_envs, dtype=bool)
    seen, positions, taken = [], [], []
    for decision in range(env.num_decisions):
        seen.append(observations)
        positions.append(env.plant.panel.positions.copy())
        taken.append(alive)
        actions = act(decision, observations)
        observations, _, terminated, truncated, _ = env.step(actions)
        alive = alive & ~(terminated | truncated)
    return Rollout(
        np.stack(seen),
        np.stack(positions),
        np.stack(taken),
        env.episodes.window["probe_loss"].copy(),
        env.evaluate(),
    )


def controller_positions(
    controller: Controller,
    env: TrainLoopVectorEnv,
    env_id: str,
    arguments: Mapping[str, Any],
    seed: int,
) -> FloatArray:
    """Returns the positions after every decision of a run under a controller, (D, A).

    The controller runs in an env of its own, with its own channels and moves. The positions of
    those cells that `env` has too are taken over. The others are at neutral.

    Args:
        controller: the controller.
        env: the cells and the decisions.
        env_id: id of the run.
        arguments: its keyword arguments.
        seed: its seed.
    """
    own = ("channels", "mapping", "max_moves", "estimators")
    given = {key: value for key, value in arguments.items() if key not in own}
    (row,) = evaluate_controller(controller, env_id, given | {"interval": env.interval}, [seed])

    positions = np.zeros((env.num_decisions, len(env.action_names)))
    channels = env.plant.panel.channel_names
    for column, (name, channel) in enumerate(zip(env.action_names, channels, strict=True)):
        if name in row["panel"]:
            found = [CHANNELS[channel].position(value) for value in row["panel"][name]]
            positions[: len(found), column] = found
    return positions
