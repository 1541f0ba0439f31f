"""The environment of a single run: the vector env with N = 1, and numpy scalars in its info."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from hpenv.env import TrainLoopVectorEnv
from hpenv.infos import Info, only_row


class TrainLoopEnv(gym.Env):
    """One training run: TrainLoopVectorEnv with N = 1.

    Attributes:
        vector: the vector env of one row.
        plant: its plant.
    """

    def __init__(self, vector: TrainLoopVectorEnv) -> None:
        """Wraps a vector env of one row, made with autoreset_mode DISABLED.

        Raises:
            ValueError: for more than one row, or another autoreset mode.
        """
        if vector.num_envs != 1 or vector.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                "vector must have one row and autoreset_mode DISABLED; "
                f"got {vector.num_envs} rows and {vector.autoreset_mode}"
            )

        self.vector, self.plant, self.render_mode = vector, vector.plant, vector.render_mode
        self.metadata = {k: v for k, v in vector.metadata.items() if k != "autoreset_mode"}
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.action_names, self.action_kinds = vector.action_names, vector.action_kinds
        self.action_immediate = vector.action_immediate
        self.observation_names, self.corpus_digest = vector.observation_names, vector.corpus_digest

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begins a new run. Returns the observation (F,) and the info."""
        super().reset(seed=seed)
        observations, infos = self.vector.reset(seed=seed)
        return observations[0], only_row(infos)

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Sets the panel and advances the run by one interval.

        Returns:
            Observation (F,), reward, terminated, truncated and info.

        Raises:
            ValueError: for an action of the wrong shape or dtype, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset, and after the run has ended.
        """
        if self.vector.episodes.begun and self.vector.episodes.ended[0]:
            raise gym.error.ResetNeeded("the run has ended; call reset() before the next step()")
        array = np.asarray(action)
        if array.shape != self.action_space.shape:
            raise ValueError(
                f"action must be of shape {self.action_space.shape}, one number per "
                f"{list(self.action_names)}; got shape {array.shape}"
            )

        observations, rewards, terminated, truncated, infos = self.vector.step(array[None])
        return (
            observations[0],
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            only_row(infos),
        )

    def evaluate(self) -> float:
        """Returns the held-out score, as the vector env does."""
        return float(self.vector.evaluate()[0])

    def close(self) -> None:
        """Closes the env. Then reset() and step() raise gymnasium.error.ClosedEnvironmentError."""
        self.vector.close()

    def render(self) -> NDArray[np.uint8] | str | None:
        """Returns a picture, or a line of text, of the run so far."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]
