"""A small JEL agent and a rollout that never changes."""

import numpy as np
import torch

from agents.base import Rollout
from agents.jel import JELAgent, JELAgentConfig

SMALL = JELAgentConfig(hidden_sizes=(8,), batch_size=16)


def weights(agent: JELAgent) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


def fixed_rollout(agent: JELAgent, T: int = 12, N: int = 8, seed: int = 0) -> Rollout:
    """Returns decisions of this agent with random rewards."""
    generator = np.random.default_rng(seed)
    observations = np.repeat(np.arange(T)[:, None, None] / T, N, axis=1).astype(np.float32)
    decisions = [agent.sample(obs) for obs in observations]
    return Rollout(
        observations,
        np.stack([d.raw for d in decisions]),
        np.stack([d.log_prob for d in decisions]),
        generator.normal(size=(T, N)),
        np.ones((T, N), dtype=bool),
    )
