"""Contracts that every registered id keeps."""

import importlib
import itertools
import math
import pickle
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from tests.hpenv.envs.every_id import (
    CELL,
    EVERY_ID,
    IDS,
    JEL,
    MARKS,
    MODULES,
    PROJECTION,
    SMALL,
    assert_same,
    play,
    random_actions,
    weights_of,
)

# The checkers play many episodes; these take a few steps.
FIVE = {"num_steps": 5, "interval": 2}
SHORT = dict.fromkeys(IDS, FIVE) | {
    PROJECTION: {"num_steps": 3, "interval": 2, "num_prompts": 1, "num_probe_problems": 1},
}


def together(**tables):
    """Every key of every table at least once, in as few combinations as possible.

    There are as many as the longest table has keys.
    """
    longest = max(map(len, tables.values()))
    cycles = {
        name: itertools.islice(itertools.cycle(table), longest) for name, table in tables.items()
    }
    return [dict(zip(cycles, keys, strict=True)) for keys in zip(*cycles.values(), strict=True)]


SPECS = {id: importlib.import_module(module).SPEC for id, module in MODULES.items()}
VARIANTS = {
    id: together(observation=spec.observations, channels=spec.channel_sets)
    for id, spec in SPECS.items()
}
# Those under which all that an id can draw is drawn, and all that it can measure is measured.
RICHEST = VARIANTS | {
    JEL: [{"observation": "full", "channels": "per_optimizer"}],
    CELL: [
        {"channels": surface, "observation": "full_position"}
        for surface in ("full", "foundational_momentum_blend")
    ],
    PROJECTION: [{"channels": "full", "observation": "full"}],
}


def cases(variants):
    return [
        pytest.param(id, variant, id=f"{id}-{'-'.join(variant.values())}", marks=MARKS[id])
        for id in IDS
        for variant in variants[id]
    ]


def test_ids_are_registered():
    assert (
        {JEL, CELL, PROJECTION}
        <= set(IDS)
        == set(VARIANTS)
        == set(RICHEST)
        == set(SHORT)
        == set(MARKS)
    )
    assert set(SMALL) == set(IDS) - {PROJECTION}


@pytest.mark.parametrize(("id", "variant"), cases(VARIANTS))
def test_gymnasium_and_stable_baselines3_find_nothing_to_warn_of(id, variant, small):
    env = gym.make(id, **small | SHORT[id], **variant)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_for_sb3(env)


@EVERY_ID
def test_gymnasium_finds_nothing_to_warn_of_in_render_and_close(id, small):
    check_env(gym.make(id, **small | SHORT[id], render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize(("id", "variant"), cases(VARIANTS))
def test_observations_lie_in_the_space_and_columns_have_names(id, variant, small):
    env = gym.make(id, **small, **variant)
    for obs, reward, _, _, _ in play(env, random_actions(env), seed=1):
        assert env.observation_space.contains(obs) and math.isfinite(reward)
    single = env.unwrapped
    assert env.observation_space.shape == (len(single.observation_names),)
    assert env.action_space.shape == (len(single.action_names),) == (len(single.action_kinds),)
    assert single.action_immediate == single.vector.action_immediate
    assert len(single.action_immediate) == len(single.action_names)
    assert env.action_space.dtype == env.observation_space.dtype == np.float32


@pytest.mark.parametrize(("id", "variant"), cases(RICHEST))
def test_the_same_seed_and_actions_give_the_same_episode_bitwise(id, variant, small):
    first, second = gym.make(id, **small, **variant), gym.make(id, **small, **variant)
    actions = random_actions(first)
    episode = play(first, actions, seed=5)
    assert_same(episode, play(second, actions, seed=5))
    for name, weight in weights_of(first).items():
        assert torch.equal(weight, weights_of(second)[name])
    other = play(second, actions, seed=6)
    assert repr([step[4] for step in other]) != repr([step[4] for step in episode])


@EVERY_ID
def test_an_episode_is_repeated_bitwise_on_the_same_object(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    episode = play(env, actions, seed=5)
    play(env, actions[::-1], seed=9)
    assert_same(play(env, actions, seed=5), episode)


@EVERY_ID
def test_two_environments_that_take_turns_do_not_notice_each_other(id, small):
    left, right = gym.make(id, **small), gym.make(id, **small)
    actions = random_actions(left)
    alone = [play(left, actions, seed=5), play(left, -actions, seed=6)]
    together = [[(*left.reset(seed=5),)], [(*right.reset(seed=6),)]]
    for action in actions:
        together[0].append(left.step(action))
        together[1].append(right.step(-action))
    for expected, found in zip(alone, together, strict=True):
        assert_same(found[1:], expected[1:])


@EVERY_ID
def test_an_environment_pickled_in_the_middle_goes_on_bitwise(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    env.reset(seed=3)
    env.step(actions[0])
    other = pickle.loads(pickle.dumps(env))
    assert_same(
        [env.step(action) for action in actions[1:]], [other.step(action) for action in actions[1:]]
    )
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, weights_of(other)[name])


@EVERY_ID
def test_the_global_generators_are_never_touched(id, small):
    def states():
        numpy = np.random.get_state()  # noqa: NPY002  it is what must stay as it is
        return (
            random.getstate(),
            numpy[1].tobytes(),
            numpy[2:],
            torch.get_rng_state().numpy().tobytes(),
        )

    before = states()
    for env in (
        gym.make(id, **small, render_mode="rgb_array"),
        gym.make_vec(id, num_envs=2, **small),
    ):
        for seed in (None, 1):
            play(env, random_actions(env), seed)
        env.unwrapped.evaluate()
        env.render()
        branching.restore(env, branching.snapshot(env))
        branching.fork(env, 2)
    assert states() == before


@EVERY_ID
def test_the_global_generators_are_never_read(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    episode = play(env, actions, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(1234)
    try:
        assert_same(play(gym.make(id, **small), actions, seed=5), episode)
    finally:
        torch.set_rng_state(state)


@EVERY_ID
def test_a_row_of_make_vec_is_make_of_its_seed(id, small):
    """Bitwise on one thread of the machine that wrote it.

    test_pretraining.py says where the bound is from.
    """
    known = SPECS[id].observations
    small = small | {"observation": "full" if "full" in known else next(iter(known))}
    vector = gym.make_vec(id, num_envs=3, **small)
    actions = random_actions(vector)
    episode = play(vector, actions, seed=7)
    for row in range(3):
        env = gym.make(id, **small)
        alone = play(env, actions[:, row], seed=7 + row)
        for ours, theirs in zip(episode, alone, strict=True):
            assert ours[0][row] == pytest.approx(theirs[0], rel=1e-4, abs=1e-5)
            assert ours[4]["step"][row] == theirs[4]["step"]
        assert vector.unwrapped.evaluate()[row] == pytest.approx(env.unwrapped.evaluate(), rel=1e-4)


@pytest.mark.parametrize("corner", [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("optimizer", ["adamw_muon", "sgd", "adamw_schedule_free"])
def test_corners_held_for_a_whole_run_give_finite_numbers(corner, optimizer, tiny):
    arguments = tiny | {
        "batch_tokens": 16,
        "num_steps": 11,
        "interval": 4,
        "optimizer": optimizer,
        "base_lr": 0.02,
        "base_weight_decay": 0.1,
        "observation": "full",
    }
    env = gym.make_vec(
        JEL,
        num_envs=2,
        **arguments,
        reward={"progress": 1.0, "divergence": 1.0, "gradient_norm": 0.1, "smoothness": 0.1},
    )
    env.reset(seed=0)
    for _ in range(4):
        obs, rewards, _, _, infos = env.step(np.array([corner] * 2, dtype=np.float32))
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        for key in ("probe_loss", "train_loss", "gradient_norm"):
            assert np.isfinite(infos[key]).all()


def test_grouped_rows_are_equal_under_equal_actions_and_part_under_others(tiny):
    env = gym.make_vec(JEL, num_envs=3, **tiny, seed_mode="grouped")
    env.reset(seed=3)
    for weight in weights_of(env).values():
        assert torch.equal(weight[0], weight[1]) and torch.equal(weight[0], weight[2])
    _, _, _, _, infos = env.step(np.array([[0.3, 0.0], [0.3, 0.0], [-0.3, 0.0]], dtype=np.float32))
    assert infos["probe_loss"][0] == infos["probe_loss"][1] != infos["probe_loss"][2]


def test_rewards_add_up_to_the_decrease_of_the_probe_loss(tiny):
    env = gym.make(JEL, **tiny)
    episode = play(env, random_actions(env), seed=0)
    decrease = episode[0][4]["probe_loss"] - episode[-1][4]["probe_loss"]
    assert sum(step[1] for step in episode) == pytest.approx(decrease, abs=1e-12)
    assert episode[-1][2] and episode[-1][4]["step"] == 23


def test_the_corpus_is_named_by_its_digest(tiny):
    env = gym.make(JEL, **tiny)
    digest = env.unwrapped.plant.corpus.sha256
    assert (
        env.unwrapped.corpus_digest == gym.make_vec(JEL, num_envs=2, **tiny).corpus_digest == digest
    )
    assert len(digest) == 64
