"""Models of stable-baselines3 as controllers. This module does not need the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.policies.controller import ControllerSpec


class SB3Controller:
    """Any model of stable-baselines3 as a controller, without exploration.

    Args:
        model: a trained model whose actions are a Box in [-1, 1].
        spec: what it asks of an environment.

    Example:
        >>> evaluate_controller(SB3Controller(model), "TrainLoop-JEL-v0", {}, [0])  # doctest: +SKIP
    """

    def __init__(self, model: Any, spec: ControllerSpec | None = None) -> None:
        self.model = model
        self.spec = ControllerSpec() if spec is None else spec

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the model's actions, (N, A), at observations (N, F)."""
        normalizer = self.model.get_vec_normalize_env()
        inputs = observations if normalizer is None else normalizer.normalize_obs(observations)
        actions, _ = self.model.predict(inputs, deterministic=True)
        return actions
