import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.telemetry.registers import accumulate, check_registers


def test_a_register_is_a_leaky_mean_of_what_is_written_to_it():
    written = np.array([[1.0, -1.0, 0.5], [0.0, 0.25, -0.5]])
    registers = accumulate(np.zeros((2, 3)), written, 0.5)
    assert registers.tolist() == (0.5 * written).tolist()
    registers = accumulate(registers, np.zeros((2, 3)), 0.5)
    assert registers.tolist() == (0.25 * written).tolist()


def test_registers_stay_within_minus_one_and_one():
    registers = np.zeros((1, 2))
    for _ in range(500):
        registers = accumulate(registers, np.array([[7.0, -7.0]]), 0.9)
    assert registers == pytest.approx(np.array([[1.0, -1.0]])) and (abs(registers) <= 1.0).all()


@pytest.mark.parametrize("num_registers", [-1, 1.5, True, None])
def test_a_number_of_registers_that_is_none_is_refused(num_registers):
    with pytest.raises(
        ValueError,
        match=rf"num_registers must be a whole number of at least 0; got {num_registers!r}",
    ):
        check_registers(num_registers, 0.9)


@pytest.mark.parametrize("leak", [-0.1, 1.0, float("nan"), True, "much"])
def test_a_leak_that_is_none_is_refused(leak):
    with pytest.raises(
        ValueError, match=rf"register_leak must be at least 0 and below 1; got {leak!r}"
    ):
        check_registers(2, leak)


def test_registers_move_no_weight(tiny):
    """Two runs whose cells do the same and whose registers do not are the same run, bit for bit."""
    env, other = (gym.make("TrainLoop-Cell-v0", **tiny, preset="nano").unwrapped for _ in range(2))
    cells = len(env.plant.panel.names)
    assert len(env.action_names) == cells + 8
    random = np.random.default_rng(0)
    for each in (env, other):
        each.reset(seed=3)
    for _ in range(3):
        action = random.uniform(-0.5, 0.5, cells + 8)
        changed = np.concatenate([action[:cells], -action[cells:]])
        obs, reward, *_ = env.step(action)
        theirs, same_reward, *_ = other.step(changed)
        assert reward == same_reward
        own = np.array([name.startswith("registers/") for name in env.observation_names])
        assert (
            own.sum() == 8
            and np.array_equal(obs[~own], theirs[~own])
            and (obs[own] == -theirs[own]).all()
        )
    for name, weight in env.plant.weights.items():
        assert torch.equal(weight, other.plant.weights[name])
