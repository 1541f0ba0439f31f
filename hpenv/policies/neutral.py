"""The policy that does nothing: every cell at neutral, at every decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from hpenv.policies.policy import Float32Array, as_observations


class Neutral:
    """Position 0 for every cell: training is, bit for bit, what it would be without a panel.

    Args:
        action_size: A.
    """

    def __init__(self, action_size: int) -> None:
        if action_size < 1:
            raise ValueError(f"action_size {action_size}; expected at least 1")
        self.action_size = action_size

    def act_mean(self, obs: np.ndarray) -> Float32Array:
        """Zeros, (N, A) float32, at observations (N, F)."""
        return np.zeros((len(as_observations(obs)), self.action_size), dtype=np.float32)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {"action_size": self.action_size}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    @classmethod
    def from_saved(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The policy whose `arguments` these are."""
        return cls(**arguments)
