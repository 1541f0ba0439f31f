"""Every policy acts in its box and is the same after saving."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpenv.policies import POLICIES, CellMLP, GaussianMLP, load_policy, save_policy
from hpenv.policies.sb3_mlp import SB3MLP
from tests.hpenv.policies.every_policy import make, observations_of


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_in_the_box_and_repeats_itself(name):
    policy, observations = make(name), observations_of(name)
    positions = policy.act(observations)
    assert positions.shape == (9, policy.action_size) == (9, 2)
    assert positions.dtype == np.float32
    assert np.abs(positions).max() <= 1.0
    assert np.array_equal(positions, policy.act(observations))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_the_same_after_saving_and_loading(name, tmp_path):
    policy, observations = make(name), observations_of(name)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is POLICIES[name]
    assert loaded.arguments() == policy.arguments()
    assert np.array_equal(loaded.act(observations), policy.act(observations))


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_hands_out_is_a_copy(name):
    policy, observations = make(name), observations_of(name)
    before = policy.act(observations)
    for tensor in policy.tensors().values():
        tensor.fill_(0.5)
    policy.act(observations)[:] = 9.0
    assert np.array_equal(policy.act(observations), before)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("obs", [np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])])
def test_bad_observations_are_refused(name, obs):
    with pytest.raises(ValueError, match="observations"):
        make(name).act(obs)


@pytest.mark.parametrize("name", ["cells", "gaussian_mlp", "sb3_mlp"])
def test_a_network_refuses_observations_of_another_size(name):
    with pytest.raises(ValueError, match=r"must be of shape \(N, 1\); got"):
        make(name).act(np.zeros((2, 3)))


def test_the_global_generators_are_untouched_by_making_a_network():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    GaussianMLP(3, 2, seed=1).act(np.zeros((2, 3)))
    SB3MLP(3, 2)
    CellMLP(2, 3, 2).act(np.zeros((2, 3)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert np.array_equal(after["state"]["key"], numpy_state["state"]["key"])


def test_a_seed_decides_the_initial_weights():
    weights = [
        torch.cat([p.flatten() for p in GaussianMLP(1, 2, seed=seed).parameters()])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_initial_weights_have_the_spread_of_a_torch_linear():
    policy = GaussianMLP(1, 2, seed=0)
    weight, bias = policy.body[2].weight.detach(), policy.body[2].bias.detach()
    assert weight.abs().max() <= 1 / 8 and bias.abs().max() <= 1 / 8
    assert math.isclose(weight.std(), 1 / 8 / math.sqrt(3), rel_tol=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {"observation_size": 0, "action_size": 2},
        {"observation_size": 1, "action_size": 0},
        {"observation_size": 1, "action_size": 2, "hidden_sizes": (64, 0)},
        {"observation_size": 1, "action_size": 2, "initial_log_std": 3.0},
    ],
)
def test_bad_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be .*; got"):
        GaussianMLP(**arguments)


def test_policies_need_no_stable_baselines3():
    code = "import sys, hpenv.policies; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
