"""Every decision of every id can be restored in another process."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.plant import snapshots
from tests.hpenv.envs.every_id import (
    EVERY_ID,
    IDS,
    MISSING,
    PROJECTION,
    SMALL,
    random_actions,
    weights_of,
)
from tests.paths import ROOT


@pytest.fixture
def every_small(request, text_file):
    """Id -> its small arguments, of the ids that can be run here."""
    own = {id: {"data": text_file} | SMALL[id] for id in IDS if id != PROJECTION}
    return own if MISSING else own | {PROJECTION: request.getfixturevalue("tiny_projection")}


def in_a_new_process(code, *arguments):
    """Output of code, read as JSON.

    Warnings are errors there, too.
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_id_is_found_by_the_name_of_its_module(every_small):
    code = """
import gymnasium, json, sys, torch
torch.set_num_threads(1)
found = {}
for id, arguments in json.loads(sys.argv[1]).items():
    env = gymnasium.make(f"hpenv:{id}", **arguments)
    env.reset(seed=0)
    found[env.spec.id] = int(env.step(env.action_space.sample())[4]["step"])
print(json.dumps(found))
"""
    assert in_a_new_process(code, json.dumps(every_small)) == {
        id: arguments["interval"] for id, arguments in every_small.items()
    }


def test_every_decision_can_be_restored_in_another_process(every_small, tmp_path):
    """Bitwise: observations, rewards, infos and weights are those of the run that never stopped."""
    given = {id: arguments | {"observation": "full"} for id, arguments in every_small.items()}
    for id, arguments in given.items():
        env = gym.make_vec(id, num_envs=2, **arguments)
        env.reset(seed=4)
        for decision, action in enumerate(
            random_actions(env, 4)
        ):  # the last one begins the next episode
            snapshots.save(tmp_path / id / str(decision), branching.snapshot(env))
            env.step(action)
    code = """
import json, sys
import torch
torch.set_num_threads(1)
from tests import tiny_student
from tests.hpenv.envs.test_restored import continued
with tiny_student.few_pairs():
    found = {id: [continued(decision, id, f"{sys.argv[1]}/{id}", arguments)
                  for decision in range(4)]
             for id, arguments in json.loads(sys.argv[2]).items()}
print(json.dumps(found))
"""
    results = in_a_new_process(code, tmp_path, json.dumps(given))
    for id, arguments in given.items():
        never_stopped = continued(None, id, tmp_path / id, arguments)
        for decision, found in enumerate(results[id]):
            assert found["weights"] == never_stopped["weights"]
            for ours, theirs in zip(found["steps"], never_stopped["steps"][decision:], strict=True):
                assert ours == theirs


def continued(decision, id, folder, arguments):
    """Everything that follows a decision's snapshot, as text and exact numbers.

    With None for the decision it is the whole episode.
    """
    env = gym.make_vec(id, num_envs=2, **arguments)
    actions = random_actions(env, 4)
    env.reset(seed=4 if decision is None else 99)
    if decision is not None:
        branching.restore(env, snapshots.load(f"{folder}/{decision}"))
    taken = []
    for action in actions[decision or 0 :]:
        obs, rewards, terminated, _, infos = env.step(action)
        taken.append([obs.tolist(), rewards.tolist(), terminated.tolist(), repr(infos)])
    weights = {
        name: weight.double().flatten().tolist()[::97] for name, weight in weights_of(env).items()
    }
    return {"steps": taken, "weights": weights}


@EVERY_ID
def test_forks_of_a_run_go_on_like_it(id, small):
    env = gym.make(id, **small)
    actions = random_actions(env)
    env.reset(seed=2)
    env.step(actions[0])
    before = weights_of(env)
    fork = branching.fork(env, 3)
    copies = fork.step(np.repeat(actions[1:2], 3, axis=0))
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, before[name])
    expected = env.step(actions[1])
    assert copies[0] == pytest.approx(np.tile(expected[0], (3, 1)), rel=1e-4, abs=1e-5)
    assert copies[1] == pytest.approx([expected[1]] * 3, rel=1e-4)
    for name, weight in weights_of(fork).items():
        assert torch.equal(weight[0], weight[1]) and torch.equal(weight[0], weight[2])
        torch.testing.assert_close(weight[0], weights_of(env)[name][0], rtol=1e-3, atol=1e-4)


@EVERY_ID
def test_restored_into_a_new_environment_it_can_be_stepped_without_a_reset(id, small):
    env = gym.make(id, **small)
    env.reset(seed=3)
    observation = env.step(random_actions(env)[0])[0]
    saved = branching.snapshot(env)
    other = gym.make(id, **small)
    assert np.array_equal(branching.restore(other, saved), observation)
    assert np.array_equal(
        other.step(random_actions(env)[1])[0], env.step(random_actions(env)[1])[0]
    )
