"""The policy that leaves every cell at neutral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.policy import as_observations


class Neutral:
    """Policy with position 0 for every cell: training is as without a panel, bit for bit.

    Args:
        action_size: A.
    """

    spec = ControllerSpec()

    def __init__(self, action_size: int) -> None:
        if action_size < 1:
            raise ValueError(f"action_size must be at least 1; got {action_size}")
        self.action_size = action_size

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns zeros, (N, A) float32, at observations (N, F)."""
        return np.zeros((len(as_observations(observations)), self.action_size), dtype=np.float32)

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able."""
        return {"action_size": self.action_size}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns no tensors."""
        return {}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments`."""
        return cls(**arguments)
