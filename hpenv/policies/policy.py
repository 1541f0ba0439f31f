"""What a policy is: the part of a controller that acts, without its learning and without its noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


class Policy(Protocol):
    """Observations to positions, deterministic, and able to be written down as JSON arguments and
    tensors.

    Attributes:
        action_size: A, cells of the panel the policy sets.
    """

    action_size: int

    def act_mean(self, obs: np.ndarray) -> Float32Array:
        """Positions in [-1, 1], (N, A) float32, that the policy takes without exploring at observations (N, F)."""

    def arguments(self) -> dict[str, Any]:
        """JSON-able values from which, with `tensors`, the policy can be built again."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The numbers of the policy, as copies."""

    @classmethod
    def from_saved(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The policy whose `arguments` and `tensors` these are."""


def as_observations(obs: np.ndarray, observation_size: int | None = None) -> Float32Array:
    """Checks a batch of observations and returns it as float32.

    Args:
        obs: observations, (N, F).
        observation_size: F, where the policy is bound to one.

    Raises:
        ValueError: the array has another number of axes or of columns, or holds a number that is
            not finite.
    """
    batch = np.ascontiguousarray(obs, dtype=np.float32)
    if batch.ndim != 2 or (observation_size is not None and batch.shape[1] != observation_size):
        columns = "F" if observation_size is None else observation_size
        raise ValueError(f"observations of shape {batch.shape}; expected (N, {columns})")
    if not np.isfinite(batch).all():
        raise ValueError("observations hold a NaN or an infinity; expected finite numbers")
    return batch
