"""The manual of every id has the tables of its spaces."""

import itertools
import re
import sys

import gymnasium as gym
import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv.control.channels import channels_of
from hpenv.envs import adaptive, cell, grpo_projection, jel
from tests.hpenv.envs.every_id import (
    CELL,
    EVERY_ID,
    JEL,
    MODULES,
    PROJECTION,
    play,
    random_actions,
    words,
)


@EVERY_ID
def test_the_infos_keys_are_those_of_the_manual_at_every_call_and_in_every_vector_env(id, small):
    small = small | {"evaluate_at_end": True}
    env = gym.make(id, **small)
    episode = play(env, random_actions(env), seed=0)
    keys = list(episode[0][4])
    for step in episode:
        assert list(step[4]) == keys and all(
            type(value) in (np.int64, np.float64) for value in step[4].values()
        )
    refers = id in (cell.ID, adaptive.ID)  # their manuals refer to jel's
    module = jel if refers else sys.modules[MODULES[id]]
    manual = {re.sub("<.*", "", key.strip("`")) for key in manual_table(module.__doc__, "key", 2)}
    plain, families = (
        {key for key in keys if "/" not in key},
        {key.split("/")[0] + "/" for key in keys if "/" in key},
    )
    assert plain | families == manual - ({"probe_loss"} - plain)
    assert (
        episode[-1][4]["held_out"] == env.unwrapped.evaluate() and episode[0][4]["held_out"] == 0.0
    )

    native = gym.make_vec(id, num_envs=2, **small)
    sync = gym.make_vec(id, num_envs=2, vectorization_mode="sync", **small)
    for left, right in zip(
        *(play(each, random_actions(each), seed=0) for each in (native, sync)), strict=True
    ):
        assert set(left[4]) == set(right[4]) and [key for key in left[4] if key[0] != "_"] == keys
        for key in keys:
            assert left[4][key].dtype == right[4][key].dtype
            assert left[4][key] == pytest.approx(right[4][key], rel=1e-4, abs=1e-4), key


def manual_table(manual, heading, num_columns=3):
    """Rows of the manual's table whose first column has this heading.

    A row is its other columns, with continued lines joined.
    """
    lines = [line.strip() for line in manual.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} "))
    table = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        name, *entries = (entry.strip() for entry in line.strip("|").split("|"))
        assert len(entries) == num_columns - 1
        if name:
            table[last := name.strip("`")] = entries
        else:
            table[last][-1] += f" {entries[-1]}"
    return table


def listed(table, name):
    """Entries of a row, with those of the row that it says it has as well."""
    entries = []
    for entry in table[name][1].split(", "):
        inherited = re.fullmatch(r"those of `(\w+)`", entry)
        entries += listed(table, inherited[1]) if inherited else [entry]
    return entries


def test_the_manuals_actions_are_those_of_the_space(tiny):
    table = manual_table(jel.__doc__, "channels")
    assert set(table) == set(jel.SPEC.channel_sets)
    for actions, (count, columns) in table.items():
        env = gym.make(JEL, **tiny, channels=actions)
        assert ", ".join(env.unwrapped.action_names) == columns
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count),), np.float32)


@pytest.mark.parametrize("actions", jel.SPEC.channel_sets)
def test_the_manuals_observations_are_those_of_the_space(tiny, actions):
    table = manual_table(jel.__doc__, "observation")
    assert set(table) == set(jel.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(JEL, **tiny, observation=observation, channels=actions).unwrapped
        names = []
        for column in listed(table, observation):
            if column == "one position/<column> each":
                names += [f"position/{name}" for name in env.action_names]
            else:
                names.append(column)
        assert env.observation_names == tuple(names)
        if actions == "shared":
            assert env.observation_space.shape == (int(count),)


def test_the_manual_says_where_multipliers_end(tiny):
    env = gym.make(JEL, **tiny)
    assert "exp(ln 100 u) in [0.01, 100]" in words(jel)
    env.reset(seed=0)
    for position, value in ((-1.0, 0.01), (0.5, 10.0), (1.0, 100.0)):
        info = env.step(np.full(2, position, dtype=np.float32))[4]
        assert [info["panel/lr"], info["panel/weight_decay"]] == pytest.approx([value, value])


def test_the_manuals_surfaces_are_those_of_the_space(tiny):
    table = manual_table(cell.__doc__, "channels")
    assert list(table) == list(cell.SPEC.channel_sets)
    default = gym.make(CELL, **tiny).action_space.shape
    assert default == (
        98,
    ) and "by default, `foundational` with 8 registers, of shape (98,)" in words(cell)
    for surface, (count, _) in table.items():
        assert [tuple(pair.split("/")) for pair in listed(table, surface)] == list(
            cell.SPEC.channel_sets[surface]
        )
        env = gym.make(CELL, **tiny, channels=surface)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count) + 8,), np.float32)
        assert env.unwrapped.action_names[-8:] == tuple(f"register/{i}" for i in range(8))


def test_the_manuals_gauges_are_those_of_the_space(tiny):
    table = manual_table(cell.__doc__, "observation")
    assert list(table) == list(cell.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(CELL, **tiny, observation=observation).unwrapped
        columns = {"<layer>": range(11), "<register>": range(8), "<cell>": env.plant.panel.names}
        names = []
        for entry in listed(table, observation):
            gauge, _, index = entry.partition("/")
            names += [f"{gauge}/{own}" for own in columns[index]] if index else [gauge]
        assert env.observation_names == tuple(names) and len(names) == int(count)


def test_the_manuals_surfaces_of_the_projection_are_those_of_the_space(tiny_projection):
    table = manual_table(grpo_projection.__doc__, "channels")
    assert list(table) == list(grpo_projection.SPEC.channel_sets)
    for surface, (count, _) in table.items():
        assert [tuple(pair.split("/")) for pair in listed(table, surface)] == list(
            grpo_projection.SPEC.channel_sets[surface]
        )
        env = gym.make(PROJECTION, **tiny_projection, channels=surface)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (int(count),), np.float32)
    assert gym.make(PROJECTION, **tiny_projection).action_space.shape == (1,)
    assert set(dict(grpo_projection.SPEC.channel_sets["full"])) == set(channels_of("posttraining"))


def test_the_manuals_gauges_of_the_projection_are_those_of_the_space(tiny_projection):
    table = manual_table(grpo_projection.__doc__, "observation")
    assert list(table) == list(grpo_projection.SPEC.observations)
    for observation, (count, _) in table.items():
        env = gym.make(PROJECTION, **tiny_projection, observation=observation).unwrapped
        assert env.observation_names == tuple(listed(table, observation))
        assert len(env.observation_names) == int(count)
