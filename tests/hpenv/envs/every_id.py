"""Every registered id with short arguments, and episodes of it."""

import gymnasium as gym
import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv.envs import cell, grpo_projection, jel
from hpenv.posttraining.sandbox import kernel, syscalls

IDS = sorted(id for id, spec in gym.registry.items() if str(spec.entry_point).startswith("hpenv."))
JEL, CELL, PROJECTION = jel.ID, cell.ID, grpo_projection.ID
# Arguments under which an id is held to its contract: every surface and every observation.
MODULES = {id: str(gym.spec(id).entry_point).partition(":")[0] for id in IDS}
# Arguments under which a test of an id takes a fraction of a second: three decisions, the last one
# shorter.
QUICK = {
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 7,
    "interval": 3,
    "eval_tokens": 256,
}
SMALL = dict.fromkeys(set(IDS) - {PROJECTION}, QUICK) | {CELL: QUICK | {"preset": "nano"}}
# Programs are executed where the kernel can hold them alone.
MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
MARKS = dict.fromkeys(IDS, ()) | {PROJECTION: executes}
EVERY_ID = pytest.mark.parametrize("id", [pytest.param(id, marks=MARKS[id]) for id in IDS])


def play(env, actions, seed=None):
    """Observations, rewards, ends and infos of an episode with these actions.

    Those of the reset come first.
    """
    obs, info = env.reset(seed=seed)
    result = [(obs, 0.0, False, False, info)]
    for action in actions:
        result.append(env.step(action))
        if np.all(result[-1][2]):
            break
    return result


def random_actions(env, count=3, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(-0.5, 0.5, (count, *env.action_space.shape))
        .astype(np.float32)
    )


def assert_same(left, right):
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            assert np.array_equal(a, b)
        assert repr(ours[4]) == repr(theirs[4])


def weights_of(env):
    """Copies of what is trained."""
    tensors = env.unwrapped.plant.snapshot().tensors
    return {
        name: value for name, value in tensors.items() if name.startswith(("weights/", "trained/"))
    }


def words(module):
    """The text of a manual on one line."""
    return " ".join(module.__doc__.split())
