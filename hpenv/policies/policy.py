"""The Policy protocol: a controller that is saved, and acts without learning and without noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec


class Policy(Protocol):
    """Deterministic map from observations to positions, saved as JSON arguments and tensors.

    Attributes:
        action_size: A, cells of the panel that the policy sets.
        spec: what the policy asks of an environment, as every controller has it.
    """

    action_size: int
    spec: ControllerSpec

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns positions in [-1, 1], (N, A) float32, at observations (N, F), without noise."""

    def arguments(self) -> dict[str, Any]:
        """Returns the JSON-able values that, with `tensors`, rebuild the policy."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the policy's tensors."""

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""


def as_observations(observations: np.ndarray, observation_size: int | None = None) -> Float32Array:
    """Checks a batch of observations and returns it as float32.

    Args:
        observations: (N, F).
        observation_size: F, if the policy has one. None accepts any.

    Raises:
        ValueError: the array has another number of axes or of columns, or holds a number that is
            not finite.
    """
    batch = np.ascontiguousarray(observations, dtype=np.float32)
    if batch.ndim != 2 or (observation_size is not None and batch.shape[1] != observation_size):
        columns = "F" if observation_size is None else observation_size
        raise ValueError(f"observations must be of shape (N, {columns}); got {batch.shape}")
    if not np.isfinite(batch).all():
        raise ValueError("observations must be finite; got a NaN or an infinity")
    return batch
