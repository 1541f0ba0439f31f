"""JEL's policy: a Gaussian whose mean and standard deviation depend on the observation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.policy import as_observations


def tanh_layers(sizes: Sequence[int]) -> nn.Sequential:
    """Builds linear and tanh layers in turn, from sizes[0] to sizes[-1], uninitialized."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        # skip_init: the constructor of Linear would draw from torch's global generator.
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers)


def check_sizes(observation_size: int, action_size: int, hidden_sizes: Sequence[int]) -> None:
    """Raises a ValueError if one of a network's sizes is not at least 1."""
    sizes = {
        "observation_size": observation_size,
        "action_size": action_size,
        "hidden_sizes": min(hidden_sizes, default=1),
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")


class GaussianMLP(nn.Module):
    """MLP from an observation to mean and log standard deviation of a diagonal Gaussian.

    raw ~ N(mean(obs), exp(log_std(obs))). The position of a cell is tanh(raw).

    Weights and biases start as torch initializes a Linear (uniform within 1/sqrt(inputs) of 0),
    from a generator of this policy alone. Departure from the paper: the head's weights for log_std
    start at 0, so that the initial standard deviation is exp(initial_log_std) at every observation.
    The paper states only the bias.

    Args:
        observation_size: F.
        action_size: A.
        hidden_sizes: width of each tanh layer. 2 x 64 in the paper.
        initial_log_std: bias of log_std. -0.5 is a standard deviation of 0.61 (JEL, appendix A.1).
        log_std_bounds: log_std is clamped to these. (-5, 2) in the paper.
        seed: seed of the initial weights.

    References:
        JEL, section 3.5 and appendix A.1.
    """

    spec = ControllerSpec()

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        initial_log_std: float = -0.5,
        log_std_bounds: tuple[float, float] = (-5.0, 2.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(observation_size, action_size, hidden_sizes)
        low, high = log_std_bounds
        if not low <= initial_log_std <= high:
            raise ValueError(
                f"initial_log_std must be within log_std_bounds [{low}, {high}]; "
                f"got {initial_log_std}"
            )

        self.observation_size = observation_size
        self.action_size = action_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.initial_log_std = initial_log_std
        self.log_std_bounds = (low, high)
        self.seed = seed

        sizes = [observation_size, *hidden_sizes]
        self.body = tanh_layers(sizes)
        self.head = nn.utils.skip_init(nn.Linear, sizes[-1], 2 * action_size)
        self._initialize(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        for layer in [*self.body, self.head]:
            if isinstance(layer, nn.Linear):
                bound = 1.0 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
        self.head.weight[self.action_size :] = 0.0
        self.head.bias[self.action_size :] = self.initial_log_std

    @torch.no_grad()
    def center(self) -> None:
        """Sets the mean to 0 at every observation. The body keeps its weights."""
        self.head.weight[: self.action_size] = 0.0
        self.head.bias[: self.action_size] = 0.0

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log standard deviation, (..., A) each, at observations (..., F)."""
        mean, log_std = self.head(self.body(obs)).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.log_std_bounds)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns tanh(mean), (N, A) float32, at observations (N, F)."""
        mean, _ = self(torch.from_numpy(as_observations(observations, self.observation_size)))
        return torch.tanh(mean).numpy()

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able."""
        return {
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden_sizes": list(self.hidden_sizes),
            "initial_log_std": self.initial_log_std,
            "log_std_bounds": list(self.log_std_bounds),
            "seed": self.seed,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the weights."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""
        low, high = arguments["log_std_bounds"]
        policy = cls(**{**arguments, "log_std_bounds": (low, high)})
        policy.load_state_dict(dict(tensors))
        return policy
