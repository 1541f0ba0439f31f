"""Reads the actor and the statistics of a model of stable-baselines3."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

#: Cure for a model that cannot be exported.
AS_IT_IS = "; score the model as it is, as hpenv.integrations.sb3.SB3Controller(model)"


class Normalization(NamedTuple):
    """Statistics of VecNormalize: clip((obs - mean) / sqrt(var + epsilon), -clip, clip).

    Attributes:
        mean: (F,) float64.
        var: (F,) float64.
        epsilon: added to the variance.
        clip: largest magnitude of a normalized observation.
    """

    mean: torch.Tensor
    var: torch.Tensor
    epsilon: float
    clip: float


def actor_layers(model: Any) -> tuple[nn.Sequential, nn.Module, torch.Tensor | None]:
    """Returns hidden layers, head and log_std (None if the mean is squashed) of an actor.

    Raises:
        ModuleNotFoundError: stable-baselines3 is not installed.
        ValueError: for another algorithm, policy or action space.
    """
    from stable_baselines3.common.distributions import (
        DiagGaussianDistribution,
        SquashedDiagGaussianDistribution,
    )
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import FlattenExtractor
    from stable_baselines3.sac.policies import SACPolicy
    from stable_baselines3.td3.policies import TD3Policy

    space = model.action_space
    in_box = isinstance(space, Box) and bool(np.all(space.low == -1.0) and np.all(space.high == 1))
    if not in_box:
        raise ValueError(f"the model's actions must be in [-1, 1]; got {space}")

    policy: Any = model.policy
    kind = type(policy)  # a subclass has another network
    if kind not in (ActorCriticPolicy, SACPolicy, TD3Policy):
        raise ValueError(
            "the policy must be the MlpPolicy of PPO, A2C, SAC, TD3 or DDPG; "
            f"got a {kind.__name__}{AS_IT_IS}"
        )

    extractor = (policy if kind is ActorCriticPolicy else policy.actor).features_extractor
    if type(extractor) is not FlattenExtractor:
        raise ValueError(
            f"the features extractor must be a FlattenExtractor; got a {type(extractor).__name__}"
            + AS_IT_IS
        )

    if kind is TD3Policy:  # linear and activation in turn, then linear and tanh
        mu = policy.actor.mu
        return mu[:-2], mu[-2], None

    squashed = kind is SACPolicy
    found = policy.actor.action_dist if squashed else policy.action_dist
    expected = SquashedDiagGaussianDistribution if squashed else DiagGaussianDistribution
    if type(found) is not expected:
        raise ValueError(
            f"the policy's distribution must be a {expected.__name__}; "
            f"got a {type(found).__name__}{AS_IT_IS}"
        )

    if squashed:
        return policy.actor.latent_pi, policy.actor.mu, None
    return policy.mlp_extractor.policy_net, policy.action_net, policy.log_std


def statistics_of(normalizer: Any | None) -> Normalization | None:
    """Returns the statistics of the observations, or None if they are not normalized."""
    if normalizer is None or not normalizer.norm_obs:
        return None
    rms: Any = normalizer.obs_rms
    mean, var = (torch.from_numpy(np.array(x, dtype=np.float64)) for x in (rms.mean, rms.var))
    return Normalization(mean, var, float(normalizer.epsilon), float(normalizer.clip_obs))
