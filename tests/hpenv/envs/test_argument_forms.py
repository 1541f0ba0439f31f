"""Arguments of the ids in every form: numpy's numbers, text, functions."""

import copy
import dataclasses
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.envs import cell, grpo_projection, jel
from hpenv.optim.schedules import Cosine, PiecewiseConstant, WarmupFlatWarmdown
from hpenv.plant import snapshots
from hpenv.posttraining.sandbox import kernel, syscalls
from hpenv.pretraining import evaluation as pretraining
from tests.hpenv.envs.small_arguments import PRETRAINING, SMALL, make

SPECS = {module.ID: module.SPEC for module in (jel, cell, grpo_projection)}
MAPPINGS = {
    jel.ID: {
        "base_lr": dict.fromkeys(("embedding", "matrix", "unembedding"), 0.01),
        "reward": {"smoothness": 0.5},
    },
    cell.ID: {
        "base_weight_decay": dict.fromkeys(("embedding", "matrix", "unembedding"), 0.5),
        "reward": {"budget": 2},
    },
    grpo_projection.ID: {"reward": {"flagged_hacks": 0.5}},
}
MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
MARKS = {jel.ID: (), cell.ID: (), grpo_projection.ID: executes}
EVERY_ID = pytest.mark.parametrize("id", [pytest.param(id, marks=MARKS[id]) for id in SPECS])


def of_numpy(value):
    """The same with every number as one of numpy's."""
    if isinstance(value, dict):
        return {key: of_numpy(entry) for key, entry in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return (
            np.bool_(value)
            if isinstance(value, bool)
            else np.str_(value)
            if isinstance(value, str)
            else value
        )
    return (np.int64 if isinstance(value, int) else np.float64)(value)


def every_argument(id):
    """Each argument of an id that is a number, a text or a mapping of numbers."""
    spec = SPECS[id]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(spec.plant.Config)}
    del defaults["lr_schedule"]
    defaults |= dataclasses.asdict(spec.episode) | dict(spec.defaults) | SMALL[id] | MAPPINGS[id]
    given = {
        name: value
        for name, value in defaults.items()
        if isinstance(value, int | float | str | dict)
    }
    return {name: value for name, value in given.items() if name != "student"}


def saved(env, folder):
    """The environment's snapshot, by way of the disk."""
    snapshots.save(folder, branching.snapshot(env))
    return snapshots.load(folder)


@EVERY_ID
def test_numbers_of_numpy_are_those_of_python_in_every_argument(id, tmp_path):
    given = every_argument(id)
    ours, theirs = make(id, **given), make(id, **of_numpy(given))
    assert ours.unwrapped.plant.config == theirs.unwrapped.plant.config
    action = np.full(ours.action_space.shape, 0.5, dtype=np.float32)
    for env, other, name in ((ours, theirs, "ours"), (theirs, ours, "theirs")):
        env.reset(seed=3)
        snapshot = saved(env, tmp_path / name)
        expected = env.step(action)
        branching.restore(other, snapshot)
        found = other.step(action)
        assert np.array_equal(expected[0], found[0]) and repr(expected[1:]) == repr(found[1:])


def test_a_population_may_be_counted_by_a_number_of_numpys(tmp_path):
    env = gym.make_vec(jel.ID, num_envs=np.int64(2), **PRETRAINING)
    env.reset(seed=np.int64(1))
    assert len(saved(env, tmp_path / "s").tensors["plant/rows/steps"]) == 2
    assert type(env.unwrapped.plant.num_rows) is int


# Schedules


class Hyperbola:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, steps):
        return 1.0 / (1.0 + self.scale * steps)


@pytest.mark.parametrize("way", ["schedule", "weight_decay_schedule"])
def test_a_schedule_of_ones_own_is_restored_where_it_gives_the_same_and_refused_where_it_does_not(
    way, tmp_path
):
    env = make(jel.ID, **{way: Hyperbola(1.0)})
    env.reset(seed=1)
    snapshot = saved(env, tmp_path / "s")
    assert (
        "0x" not in (tmp_path / "s" / snapshots.STATE).read_text()
    )  # no address, by which nothing is found again
    same = make(jel.ID, **{way: lambda steps: 1.0 / (1.0 + steps)})
    branching.restore(same, snapshot)
    action = np.full(2, 0.5, dtype=np.float32)
    assert repr(same.step(action)) == repr(env.step(action))
    late = make(
        jel.ID, **{way: lambda steps: np.where(steps < 5, 1.0 / (1.0 + steps), 0.1)}
    )  # the last step alone
    with pytest.raises(
        ValueError, match=f"configuration differs.*'{'lr_schedule' if way == 'schedule' else way}'"
    ):
        branching.restore(late, snapshot)


def test_of_schedules_by_group_each_must_be_the_same(tmp_path):
    groups = ("embedding", "matrix", "unembedding")
    env = make(jel.ID, schedule={group: Hyperbola(1.0) for group in groups})
    env.reset(seed=1)
    snapshot = saved(env, tmp_path / "s")
    branching.restore(
        make(jel.ID, schedule={group: Hyperbola(1.0) for group in reversed(groups)}), snapshot
    )
    other = make(jel.ID, schedule={group: Hyperbola(1.0 + (group == "matrix")) for group in groups})
    with pytest.raises(ValueError, match=r"configuration differs.*'lr_schedule'"):
        branching.restore(other, snapshot)


@EVERY_ID
@pytest.mark.parametrize(
    ("given", "num_steps"),
    [
        ("linear_decay", 4),
        ({"name": "cosine", "warmup_steps": 2}, 4),
        (Cosine(8, 2), 4),
        (PiecewiseConstant((1.0, 0.5), 3, WarmupFlatWarmdown(4)), 4),
    ],
    ids=str,
)
def test_a_schedule_survives_the_json_of_a_spec(id, given, num_steps):
    arguments = SMALL[id] | {"num_steps": num_steps, "schedule": given}
    if id == grpo_projection.ID:
        config = grpo_projection.SPEC.settings(**arguments).config
        spec = dataclasses.replace(gym.spec(id), kwargs=arguments)
        again = grpo_projection.SPEC.settings(**EnvSpec.from_json(spec.to_json()).kwargs)
        assert again.config == config
        return
    env = gym.make(id, **arguments)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.plant.config == env.unwrapped.plant.config
    assert json.loads(json.dumps(again.spec.kwargs)) == again.spec.kwargs


@EVERY_ID
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda steps: 1.0 - steps / 2.0,
            "schedule must be finite and not negative at every .*; got -0.5 at step 3",
        ),
        (
            lambda steps: np.where(steps > 1, np.nan, 1.0),
            "schedule must be finite .*; got nan at step 2",
        ),
        (
            {"name": "cosine", "num_steps": -12},
            "num_steps of Cosine must be a whole number of at least 1; got -12",
        ),
        ("cosin", r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', "),
        (3, "schedule must be one of .*; got 3"),
    ],
)
def test_an_impossible_schedule_is_refused_by_every_id(id, given, message):
    with pytest.raises(ValueError, match=message):
        make(id, schedule=given)


def test_a_schedule_that_is_lost_in_json_is_refused_with_what_to_write():
    @dataclasses.dataclass(frozen=True)
    class Own:
        scale: float

        def __call__(self, steps):
            return np.ones(steps.shape) * self.scale

    spec = gym.make(jel.ID, **PRETRAINING, schedule=Own(0.5)).spec
    with pytest.raises(
        ValueError, match=r"got 0.5; a schedule of your own does not survive .*'piecewise_constant'"
    ):
        gym.make(EnvSpec.from_json(spec.to_json()))


# What is compiled


def test_a_compiled_environment_is_pickled_and_copied_and_goes_on(monkeypatch):
    def wrapped(
        function,
    ):  # as torch.compile does: what it gives has no name by which pickle would find it
        return lambda *arguments: function(*arguments)

    monkeypatch.setattr(torch, "compile", wrapped)
    pretraining._compile_mean_losses.cache_clear()
    env = make(jel.ID, compile=True)
    env.reset(seed=1)
    action = np.full(2, 0.5, dtype=np.float32)
    env.step(action)
    copies = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    expected = env.step(action)
    for each in copies:
        assert repr(each.step(action)) == repr(expected)
    pretraining._compile_mean_losses.cache_clear()
