"""Rows at the border of an episode, and arguments at the edge.

Every row that is reset is new, and no other row changes.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv import branching
from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.lm.kernels import squared_relu_feed_forward
from tests.hpenv.envs.every_id import JEL, assert_same, play, random_actions

gym.register_envs(hpenv)

TINY = {
    "data": "synthetic",
    "batch_tokens": 64,
    "sequence_length": 16,
    "num_steps": 23,
    "interval": 10,
}


def make(n, **k):
    return gym.make_vec(JEL, num_envs=n, **TINY | {"observation": "full"} | k)


@pytest.mark.parametrize("observation", ["progress", "loss", "gradient", "momentum", "full"])
def test_an_episode_is_repeated_bitwise_on_the_same_object(observation):
    env = gym.make(JEL, **TINY, observation=observation)
    actions = random_actions(env)
    episode = play(env, actions, seed=5)
    play(env, actions[::-1], seed=9)
    assert_same(play(env, actions, seed=5), episode)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_the_first_observation_after_an_autoreset_is_that_of_a_reset(mode):
    env = make(1, autoreset_mode=mode)
    env.reset(seed=1)
    for _ in range(4 if mode == "NEXT_STEP" else 3):
        obs, *_ = env.step(np.zeros((1, 2), np.float32))
    twin = make(1)
    twin.reset(seed=1)
    assert np.array_equal(obs, make_second_episode(twin))


def make_second_episode(env):
    fresh = make(1)
    fresh.reset(seed=1)
    return fresh.reset()[
        0
    ]  # a fresh object that never trained: the second run of the stream of seed 1


def test_next_step_reports_nothing_of_the_old_run_as_the_new_ones():
    env = make(1)
    env.reset(seed=1)
    for _ in range(4):
        *_, infos = env.step(np.zeros((1, 2), np.float32))
    assert infos["step"].tolist() == [0]
    assert infos["reward_terms/progress"][0] == 0.0 and not infos["_reward_terms/progress"][0]


def test_same_step_shows_a_running_row_what_it_shows_without_its_neighbours_end():
    env, clean = make(2, autoreset_mode="SAME_STEP"), make(2, autoreset_mode="SAME_STEP")
    for each in (env, clean):
        each.reset(seed=3)
    env.plant.weights["layer.0.up"][1] = torch.nan
    action = np.zeros((2, 2), np.float32)
    assert dict(zip(env.observation_names, env.step(action)[0][0], strict=True)) == dict(
        zip(clean.observation_names, clean.step(action)[0][0], strict=True)
    )


def test_a_masked_reset_leaves_the_others_observations():
    env = make(2, autoreset_mode="DISABLED")
    env.reset(seed=3)
    obs, *_ = env.step(np.zeros((2, 2), np.float32))
    again, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert np.array_equal(obs[0], again[0])


def test_a_finished_row_repeats_its_observation():
    env = make(2, autoreset_mode="DISABLED")
    env.reset(seed=3)
    for _ in range(3):
        last, *_ = env.step(np.zeros((2, 2), np.float32))
    assert np.array_equal(env.step(np.zeros((2, 2), np.float32))[0], last)


def test_hidden_size_below_the_width():
    x, up, down = (torch.randn(s, requires_grad=True) for s in [(1, 4, 16), (1, 8, 16), (1, 16, 8)])
    squared_relu_feed_forward(x, up, down).sum().backward()


def test_value_embeddings_at_a_width_below_the_gates_channels():
    try:
        config = GPTConfig(n_embd=16, value_embeddings=True)
    except ValueError:
        return
    tokens = torch.zeros(1, 1, 4, dtype=torch.int64)
    model.mean_losses(
        architecture.init_parameters(config, [0]),
        config,
        tokens,
        tokens,
        model.rope_tables(config, 4, "cpu"),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 10.5}, "interval must be .*; got 10.5"),
        ({"num_steps": 23.5}, "num_steps must be .*; got 23.5"),
        ({"batch_tokens": 64.0}, "batch_tokens must be .*; got 64.0"),
        ({"schedule": 3}, "schedule"),
        ({"device": "gpu"}, "'gpu'"),
        ({"base_lr": np.float64(1e-3)}, None),
        ({"base_lr": True}, "base_lr"),
        ({"reward": {"smoothness": True}}, "smoothness"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    from hpenv.plant import snapshots

    if message is None:  # accepted, so it must work to the end
        env = gym.make(JEL, **TINY | arguments).unwrapped
        env.reset(seed=0)
        snapshots.save(tmp_path / "s", branching.snapshot(env))
        return
    with pytest.raises(ValueError, match=message):
        gym.make(JEL, **TINY | arguments)


def test_autoreset_mode_of_a_single_env():
    with pytest.raises(ValueError, match="autoreset_mode"):
        gym.make(JEL, **TINY, autoreset_mode="DISABLED")


def test_a_seed_that_is_not_a_whole_number():
    with pytest.raises(ValueError):
        make(2).reset(seed=-1)


def test_a_wrapped_env_is_restored_after_one_reset():
    """The time limit of gym.make counts from a reset, without which its step() raises TypeError."""
    env, other = (gym.make(JEL, **TINY, max_episode_steps=2) for _ in range(2))
    env.reset(seed=3)
    env.step(np.zeros(2))
    other.reset(seed=0)
    branching.restore(other, branching.snapshot(env))
    ours, theirs = other.step(np.zeros(2)), env.step(np.zeros(2))
    assert (
        np.array_equal(ours[0], theirs[0])
        and ours[1:3] == theirs[1:3]
        and not ours[3]
        and theirs[3]
    )
