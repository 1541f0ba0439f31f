"""Policies of every kind."""

import numpy as np
import torch

from hpenv.policies import AdaptiveRL, CellMLP, GaussianMLP, Neutral, ScheduleTable
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP

#: What most policies of `make` see in nine runs.
PROGRESS = np.linspace(0.0, 1.0, 9, dtype=np.float32)[:, None]


def observations_of(name: str) -> np.ndarray:
    """Observations of nine runs, (9, F)."""
    if name != "adaptive_rl":
        return PROGRESS
    others = np.random.default_rng(0).uniform(-1.0, 1.0, (9, 5)).astype(np.float32)
    return np.concatenate([PROGRESS, others], axis=1)


def make(name: str) -> Policy:
    if name == "adaptive_rl":
        return AdaptiveRL({"rate_reward": 0.07}, interval=7, noise=None)
    if name == "gaussian_mlp":
        return GaussianMLP(1, 2, hidden_sizes=(8, 4), seed=3)
    if name == "cells":
        return CellMLP(9, 1, 2, hidden_size=4, initial_mean=(0.3, -0.4, 0.1), common=(0, 0))
    if name == "neutral":
        return Neutral(2)
    if name == "schedule_table":
        return ScheduleTable(np.linspace(-1, 1, 24).reshape(12, 2))
    assert name == "sb3_mlp"
    policy = SB3MLP(1, 2, hidden_sizes=(8, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.uniform_(-2.0, 2.0, generator=generator)
    return policy
