"""Networks of one Gaussian or of stable-baselines3."""

import math

import numpy as np
import torch

from hpenv.policies import GaussianMLP
from hpenv.policies.sb3_mlp import SB3MLP


def test_the_network_is_the_papers():
    # Linear(1, 64), Linear(64, 64), Linear(64, 4): appendix A.1
    assert sum(p.numel() for p in GaussianMLP(1, 2).parameters()) == 128 + 4160 + 260


def test_the_initial_standard_deviation_is_the_same_everywhere():
    _, log_std = GaussianMLP(1, 2, seed=5)(torch.linspace(0, 1, 7)[:, None])
    assert torch.equal(log_std, torch.full((7, 2), -0.5))


def test_log_std_is_clamped():
    policy = GaussianMLP(1, 2, seed=0)
    with torch.no_grad():
        policy.head.bias[2:] = torch.tensor([-9.0, 9.0])
    _, log_std = policy(torch.zeros(1, 1))
    assert log_std.tolist() == [[-5.0, 2.0]]


def test_the_gaussians_mean_action_is_the_tanh_of_its_mean():
    policy = GaussianMLP(1, 2, seed=0)
    with torch.no_grad():
        policy.head.weight[:] = 0.0
        policy.head.bias[:] = torch.tensor([0.5, -3.0, 0.0, 0.0])
    assert np.allclose(policy.act(np.zeros((1, 1))), [[math.tanh(0.5), math.tanh(-3.0)]])


def test_the_sb3_actors_mean_action_is_clipped():
    policy = SB3MLP(1, 2)
    with torch.no_grad():
        policy.head.bias[:] = torch.tensor([0.5, -3.0])
    assert policy.act(np.zeros((1, 1))).tolist() == [[0.5, -1.0]]
