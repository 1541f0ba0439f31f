"""The actor of a stable-baselines3 MlpPolicy as a policy that does not need stable-baselines3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.gaussian_mlp import check_sizes, tanh_layers
from hpenv.policies.policy import as_observations


class SB3MLP(nn.Module):
    """MLP with a Gaussian over positions and one standard deviation per cell.

    position ~ clip(N(mean(obs), exp(log_std)), -1, 1). stable-baselines3 does not squash: it clips
    actions to the box. All weights are 0 until they are loaded, because stable-baselines3 trains
    them.

    Args:
        observation_size: F.
        action_size: A.
        hidden_sizes: width of each tanh layer of the actor.

    References:
        stable_baselines3.common.policies.ActorCriticPolicy with a DiagGaussianDistribution (2.9).
    """

    spec = ControllerSpec()

    def __init__(
        self, observation_size: int, action_size: int, hidden_sizes: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        check_sizes(observation_size, action_size, hidden_sizes)
        self.observation_size = observation_size
        self.action_size = action_size
        self.hidden_sizes = tuple(hidden_sizes)

        sizes = [observation_size, *hidden_sizes]
        self.body = tanh_layers(sizes)
        self.head = nn.utils.skip_init(nn.Linear, sizes[-1], action_size)
        self.log_std = nn.Parameter(torch.empty(action_size))

        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    @classmethod
    def from_layers(cls, body: nn.Module, head: nn.Module, log_std: torch.Tensor) -> Self:
        """Returns a policy with copies of these weights.

        Args:
            body: linear and tanh layers in turn, from observations (..., F) to features.
            head: linear layer from features to means (..., A).
            log_std: log standard deviations, (A,).
        """
        tensors = {f"body.{name}": tensor for name, tensor in body.state_dict().items()}
        tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
        policy = cls(
            weights[0].shape[1], weights[-1].shape[0], [weight.shape[0] for weight in weights[:-1]]
        )
        policy.load_state_dict(tensors | {"log_std": log_std.detach()})
        return policy

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log standard deviation of positions before the clip, (..., A) each.

        Args:
            obs: observations, (..., F).
        """
        mean = self.head(self.body(obs))
        return mean, self.log_std.expand_as(mean)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns clip(mean, -1, 1), (N, A) float32, at observations (N, F)."""
        mean, _ = self(torch.from_numpy(as_observations(observations, self.observation_size)))
        return mean.clamp(-1.0, 1.0).numpy()

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able."""
        return {
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden_sizes": list(self.hidden_sizes),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the weights and of log_std."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""
        policy = cls(**arguments)
        policy.load_state_dict(dict(tensors))
        return policy
