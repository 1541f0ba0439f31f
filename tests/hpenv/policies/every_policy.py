"""Policies of every kind."""

import numpy as np
import torch

from hpenv.policies import CellMLP, GaussianMLP, Neutral, ScheduleTable
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP


def make(name: str) -> Policy:
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
