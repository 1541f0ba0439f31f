"""Behavior cloning repeats an expert, in the environment's own units."""

import numpy as np
import pytest
import torch

from agents.imitation import ImitationConfig, clone_behavior, fold_standardization
from hpenv.policies import load_policy, save_policy
from hpenv.policies.gaussian_mlp import GaussianMLP

QUICK = ImitationConfig(num_updates=600)


def samples(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Returns observations on very different scales, and a smooth expert's actions there."""
    random = np.random.default_rng(0)
    unit = random.uniform(-1.0, 1.0, (count, 3))
    actions = np.stack([np.sin(2.0 * unit[:, 0]) * 0.8, np.clip(unit[:, 1] * 3.0, -1, 1)], axis=1)
    observations = unit * [1.0, 0.05, 0.3] + [0.0, 0.7, -0.2]
    return observations.astype(np.float32), actions


def test_the_clone_repeats_the_expert_on_the_observations_that_it_was_shown():
    observations, actions = samples()
    policy, error = clone_behavior(observations, actions, QUICK)
    found = policy.act(observations)
    assert np.isclose(error, np.square(found - actions).mean(), rtol=1e-3)
    assert np.sqrt(error) < 0.05 < 0.2 * actions.std()
    assert np.abs(found - actions).max() < 0.3


def test_bang_bang_actions_are_repeated():
    times = [*np.linspace(0.0, 0.3, 10), *np.linspace(0.45, 0.6, 10), *np.linspace(0.75, 1.0, 10)]
    observations = np.array(times)[:, None]
    actions = np.repeat([1.0, 0.0, -1.0], 10)[:, None]
    policy, _ = clone_behavior(observations, actions, QUICK)
    assert np.abs(policy.act(observations) - actions).max() < 0.35


def test_a_clone_is_a_function_of_its_samples_and_its_seed():
    observations, actions = samples(40)
    short = ImitationConfig(num_updates=20)
    torch.manual_seed(1)
    policy, _ = clone_behavior(observations, actions, short)
    torch.manual_seed(2)
    again, _ = clone_behavior(observations, actions, short)
    other, _ = clone_behavior(observations, actions, short, seed=1)
    assert np.array_equal(policy.act(observations), again.act(observations))
    assert not np.array_equal(policy.act(observations), other.act(observations))


def test_folding_changes_the_input_and_nothing_else():
    policy, twin = GaussianMLP(3, 2, (8,), seed=4), GaussianMLP(3, 2, (8,), seed=4)
    mean, deviation = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 3.0, 0.5])
    fold_standardization(policy, mean, deviation)
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    expected = twin.act(((inputs - mean) / deviation).numpy())
    assert np.allclose(policy.act(inputs.numpy()), expected, atol=1e-5)


def test_a_column_that_does_not_move_in_the_data_is_no_danger():
    observations, actions = samples(60)
    observations[:, 2] = 0.25
    policy, _ = clone_behavior(observations, actions, QUICK)
    assert all(tensor.isfinite().all() for tensor in policy.tensors().values())
    moved = observations + np.array([0.0, 0.0, 1e-4], dtype=np.float32)
    assert np.abs(policy.act(moved) - policy.act(observations)).max() < 0.05


def test_a_clone_is_saved_without_pickle(tmp_path):
    observations, actions = samples(40)
    policy, _ = clone_behavior(observations, actions, ImitationConfig(num_updates=5))
    save_policy(policy, tmp_path / "policy")
    found = load_policy(tmp_path / "policy")
    assert np.array_equal(found.act(observations), policy.act(observations))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda seen, done: (seen[:5], done), "the same M"),
        (lambda seen, done: (seen[:0], done[:0]), "the same M"),
        (lambda seen, done: (seen * np.nan, done), "must be finite"),
        (lambda seen, done: (seen, done + 2.0), "in \\[-1, 1\\]"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        clone_behavior(*change(*samples(10)), QUICK)


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_updates must be at least 1"):
        ImitationConfig(num_updates=0)
