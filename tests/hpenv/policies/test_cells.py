"""Cells: a row of the stack is a network of plain linear layers."""

import math

import numpy as np
import pytest
import torch

from hpenv.policies import CellMLP


def randomized_cells(num_rows=3, **arguments) -> CellMLP:
    policy = CellMLP(num_rows, 2, 4, hidden_size=5, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        policy.head_weight.uniform_(-1.0, 1.0, generator=generator)
    return policy


def test_a_row_of_the_stack_is_a_network_of_plain_linear_layers():
    policy = randomized_cells()
    obs = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1))
    mean, log_std = policy(obs)
    hidden = torch.tanh(obs[1] @ policy.weight_1[1] + policy.bias_1[1])
    hidden = torch.tanh(hidden @ policy.weight_2[1] + policy.bias_2[1])
    head = hidden @ policy.head_weight[1] / math.sqrt(5) + policy.head_bias[1]
    assert head.shape == (6, 4)
    assert torch.allclose(mean[1], torch.tanh(head), atol=1e-6)
    assert torch.equal(log_std[1], policy.log_std[1].expand(6, 4))


def test_log_std_is_a_number_per_row_and_cell_that_no_observation_and_no_other_weight_moves():
    policy = randomized_cells(initial_std=(0.05, 0.1, 0.2, 0.4))
    with torch.no_grad():
        policy.log_std += 0.1 * torch.arange(3.0)[:, None, None] - 0.1
    assert policy.log_std.shape == (3, 1, 4)
    obs = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mean, log_std = policy(obs)
    assert mean.shape == log_std.shape == (3, 6, 4)
    assert torch.equal(log_std, policy.log_std.expand(3, 6, 4))
    assert not torch.equal(mean[:, 0], mean[:, 1])
    assert torch.equal(policy(100.0 * obs)[1], log_std)
    inputs = {"obs": obs, **dict(policy.named_parameters())}
    gradients = torch.autograd.grad(log_std.sum(), list(inputs.values()), allow_unused=True)
    reached = {
        name for name, gradient in zip(inputs, gradients, strict=True) if gradient is not None
    }
    assert reached == {"log_std"}
    gradients = torch.autograd.grad(mean.sum(), list(inputs.values()), allow_unused=True)
    unreached = {name for name, gradient in zip(inputs, gradients, strict=True) if gradient is None}
    assert unreached == {"log_std"}


def test_one_network_decides_any_number_of_rows_and_several_decide_one_each():
    shared = randomized_cells(num_rows=1)
    obs = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).numpy()
    alone = np.concatenate([shared.act(row[None]) for row in obs])
    assert np.allclose(shared.act(obs), alone, atol=1e-6)
    with pytest.raises(ValueError, match="must have 3 rows, one for each network; got 5"):
        randomized_cells().act(obs)


def test_no_row_of_the_stack_reaches_another():
    policy = randomized_cells()
    obs = np.ones((3, 2), dtype=np.float32)
    before = policy.act(obs)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[2] = math.nan
    assert np.array_equal(policy.act(obs)[:2], before[:2])
    assert not np.array_equal(before[0], before[1])


def test_cells_start_where_they_are_told_whatever_is_observed():
    policy = CellMLP(2, 3, 2, initial_mean=(0.5, -0.9), initial_std=(0.1, 0.04))
    mean, log_std = policy(torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(mean, torch.tensor([0.5, -0.9]))
    assert torch.allclose(log_std.exp(), torch.tensor([0.1, 0.04]))
    assert not CellMLP(2, 3, 2).act(np.ones((2, 3))).any()


def test_what_is_common_is_added_to_every_cell_of_its_group_and_the_sum_clipped():
    policy = CellMLP(1, 1, 3, hidden_size=2, common=(0, 1, 0))
    raw = torch.tensor([[0.1, 0.2, 0.8, 0.5, -0.3]])
    assert torch.allclose(policy.positions(raw), torch.tensor([[0.6, -0.1, 1.0]]))


def test_a_standard_deviation_outside_its_bounds_finds_its_way_back():
    policy = CellMLP(1, 1, 2, hidden_size=2)
    low, high = (math.log(bound) for bound in policy.std_bounds)
    with torch.no_grad():
        policy.log_std[:] = torch.tensor([low - 1.0, high + 1.0])
    for sign, expected in (
        (1.0, [0.0, 1.0]),
        (-1.0, [-1.0, 0.0]),
    ):  # of the loss, and what of it is kept
        policy.zero_grad()
        _, log_std = policy(torch.zeros(1, 1, 1))
        assert torch.allclose(log_std, torch.tensor([low, high]))
        (sign * log_std).sum().backward()
        assert policy.log_std.grad[0, 0].tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": 0},
        {"hidden_size": 0},
        {"initial_mean": 1.0},
        {"initial_mean": (0.1,)},
        {"initial_std": 0.6},
        {"std_bounds": (0.5, 0.1)},
        {"common": (0,)},
        {"common": (0, 2)},
        {"seeds": (1,)},
    ],
)
def test_bad_arguments_of_cells_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}s? must be .*; got"):
        CellMLP(**{"num_rows": 2, "observation_size": 1, "action_size": 2, **change})
