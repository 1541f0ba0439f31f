"""TrainLoop-Adaptive-v0: its manual, moves, schedules and noise."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.control.channels import CHANNELS
from hpenv.envs import adaptive
from hpenv.optim.schedules import Cosine
from tests.hpenv.envs.every_id import play, weights_of, words
from tests.hpenv.envs.test_manuals import listed, manual_table

ID = adaptive.ID
TINY = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "eval_tokens": 64,
    "num_steps": 25,
    "interval": 5,
}


def position_columns(env):
    return [f"position/{name}" for name in env.action_names]


def test_the_manuals_channels_and_moves_are_those_of_the_space():
    table = manual_table(adaptive.__doc__, "channels")
    assert list(table) == list(adaptive.SPEC.channel_sets)
    for channels, (count, columns) in table.items():
        env = gym.make(ID, **TINY, channels=channels)
        assert ", ".join(env.unwrapped.action_names) == columns
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count),), np.float32)

    dials = manual_table(adaptive.__doc__, "dial")
    assert set(dials) == set(adaptive.SPEC.episode.max_moves)
    for name, (_, factors) in dials.items():
        env = gym.make(ID, **TINY, channels=[name])
        env.reset(seed=0)
        values = []
        for action in (1.0, 1.0, -1.0):
            values.append(env.step(np.float32([action]))[-1][f"panel/{name}"])
        down, up = values[2] / values[1], values[1] / values[0]
        assert [down, up] == pytest.approx([float(number) for number in factors.split(" and ")])


def test_the_manuals_observations_are_those_of_the_space():
    table = manual_table(adaptive.__doc__, "observation")
    assert set(table) == set(adaptive.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(ID, **TINY, observation=observation).unwrapped
        names = []
        for column in listed(table, observation):
            own = column == "one position/<column> each"
            names += position_columns(env) if own else [column]
        assert env.observation_names == tuple(names) and len(names) == int(count)


def test_the_manuals_bounds_are_those_of_the_channels():
    text = words(adaptive)
    assert CHANNELS["lr"].bounds == (0.01, 100.0) and "in [0.01, 100]" in text
    assert CHANNELS["momentum"].bounds == (1 / 30, 30.0) and "in [1/30, 30]" in text
    odds = 9.0 * np.array(CHANNELS["momentum"].bounds)
    assert odds / (1 + odds) == pytest.approx([0.23, 0.996], abs=2e-3)
    for name, bounds in (("exploration", "0.01 to 0.2"), ("weight_noise", "0.0005 to 0.01")):
        found = CHANNELS[name]
        assert [found.floor, found.bounds[1]] == [float(end) for end in bounds.split(" to ")]
        assert f"0, or {bounds}" in text


def test_the_default_decision_is_every_ten_steps_and_zero_is_a_plain_run():
    assert (adaptive.SPEC.episode.interval, adaptive.SPEC.episode.num_steps) == (10, 561)
    moved = gym.make(ID, **TINY)
    plain = gym.make("TrainLoop-JEL-v0", **TINY | {"optimizer": "adamw", "schedule": "none"})
    rewards = []
    for env in (moved, plain):
        shape = env.action_space.shape
        episode = play(env, np.zeros((5, *shape), dtype=np.float32), seed=4)
        rewards.append([step[1] for step in episode])
    assert rewards[0] == rewards[1]
    for name, weight in weights_of(moved).items():
        assert torch.equal(weight, weights_of(plain)[name])


def test_a_controller_replaces_the_schedule_or_modulates_it():
    """The same moves multiply a constant rate, or a cosine with its warmup."""
    actions, rates = np.float32([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), {}
    for schedule in ("none", "cosine"):
        env = gym.make(ID, **TINY | {"num_steps": 60, "interval": 20}, schedule=schedule)
        env.reset(seed=0)
        rates[schedule] = []
        for action in actions:
            env.step(action)
            plant = env.unwrapped.plant
            table = plant._rates[plant._rules["matrix"]]  # (20, fields, 1, tensors)
            rates[schedule].append(table[:, 0, 0, 0].numpy())
    factors = np.repeat([1.2, 1.44, 1.44 * 0.9], 20)
    assert np.concatenate(rates["none"]) == pytest.approx(1e-3 * factors)
    cosine = Cosine(60, warmup_steps=20)(np.arange(60))
    assert np.concatenate(rates["cosine"]) == pytest.approx(1e-3 * cosine * factors)


@pytest.mark.parametrize("noise", ["exploration", "weight_noise"])
def test_noise_at_its_floor_is_bitwise_a_run_without_the_channel(noise):
    """It has been on before the fork, and is moved to the floor."""
    env = gym.make_vec(ID, num_envs=1, **TINY, channels=[("lr", "run"), (noise, "run")])
    env.reset(seed=0)
    env.step(np.float32([[0.3, 0.5]]))
    on = env.step(np.float32([[0.0, 0.0]]))[-1][f"panel/{noise}"][0]
    assert on > CHANNELS[noise].floor
    lowered = branching.fork(env, 1)
    off = lowered.step(np.float32([[0.0, -1.0]]))[-1][f"panel/{noise}"][0]
    assert off == 0.0
    kept = branching.fork(env, 1)
    kept.plant.panel.positions[:, 1] = 0.0
    kept.step(np.float32([[0.0, 0.0]]))
    noisy = branching.fork(env, 1)
    noisy.step(np.float32([[0.0, 0.0]]))
    for name, weight in kept.plant.weights.items():
        assert torch.equal(weight, lowered.plant.weights[name]), name
        assert not torch.equal(weight, noisy.plant.weights[name]), name


def test_a_run_whose_noise_stays_at_its_floor_is_bitwise_one_without_noise():
    with_noise = gym.make(ID, **TINY)
    without = gym.make(ID, **TINY, channels="no_noise")
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    actions[:, 2] = -1.0
    play(with_noise, actions, seed=1)
    play(without, actions[:, :2], seed=1)
    for name, weight in weights_of(with_noise).items():
        assert torch.equal(weight, weights_of(without)[name])


def test_a_snapshot_in_the_middle_of_a_run_goes_on_bitwise():
    env, other = (gym.make(ID, **TINY, observation="full") for _ in range(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    env.reset(seed=1)
    other.reset(seed=2)
    env.step(actions[0])
    env.step(actions[1])
    branching.restore(other, branching.snapshot(env))
    for action in actions[2:]:
        left, right = env.step(action), other.step(action)
        assert np.array_equal(left[0], right[0]) and left[1] == right[1]
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, weights_of(other)[name])


def test_the_positions_of_the_observation_are_those_that_the_moves_have_reached():
    env = gym.make(ID, **TINY)
    env.reset(seed=0)
    names = list(env.unwrapped.observation_names)
    for action in ([1.0, -0.5, 1.0], [0.5, 0.5, -1.0]):
        observation = env.step(np.float32(action))[0]
        shown = [observation[names.index(name)] for name in position_columns(env.unwrapped)]
        assert shown == pytest.approx(env.unwrapped.plant.panel.positions[0].tolist())
