"""Snapshots, forks and counterfactuals go on as the run does."""

import copy
import math
import pickle
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest

from hpenv import branching
from hpenv.env import TrainLoopVectorEnv
from tests.fake_plant import FakePlant
from tests.hpenv.closed_form import EVERYTHING, MODES, make, single, steps, still


def test_restoring_gives_the_observations_that_the_next_decision_is_taken_on():
    env, other = make(2), make(2)
    env.reset(seed=0)
    observations = env.step(np.full((2, 2), 0.5))[0]
    assert np.array_equal(branching.restore(other, branching.snapshot(env)), observations)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decision", range(4))
def test_a_restored_env_goes_on_as_if_it_had_never_stopped(mode, decision):
    """With rows at different steps, an ended episode, the streams of seeds, and all memory."""
    arguments = EVERYTHING | {"diverges": {1: 13}, "mode": mode}
    env, other = make(3, **arguments), make(3, **arguments)
    env.reset(seed=7)
    other.reset(seed=0)
    actions = (
        np.random.default_rng(0).uniform(-1, 1, (9, *env.action_space.shape)).astype(np.float32)
    )
    for action in actions[:decision]:
        env.step(action)
    snapshot = branching.snapshot(env)
    kept = copy.deepcopy(snapshot)
    expected = [env.step(action) for action in actions[decision:]]
    branching.restore(other, snapshot)
    assert snapshot.metadata == kept.metadata
    assert all(snapshot.tensors[name].equal(value) for name, value in kept.tensors.items())
    for wanted, action in zip(expected, actions[decision:], strict=True):
        found = other.step(action)
        for left, right in zip(wanted[:4], found[:4], strict=True):
            assert np.array_equal(left, right)
        assert repr(wanted[4]) == repr(found[4])


@pytest.mark.parametrize(
    "change",
    [
        {"interval": 5},
        {"num_steps": 24},
        {"reward": {"progress": 2.0}},
        {"seed_mode": "grouped"},
        {"num_registers": 1},
        {"register_leak": 0.5},
    ],
)
def test_a_snapshot_of_another_environment_is_refused(change):
    env = make(2)
    env.reset(seed=0)
    other = make(2, **change)
    with pytest.raises(
        ValueError,
        match=f"environment with these settings; got other ones, as .*{next(iter(change))}",
    ):
        branching.restore(other, branching.snapshot(env))


def test_what_is_no_snapshot_of_an_environment_is_refused_with_what_is_expected():
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(
        TypeError, match=r"must be a Snapshot.*; got a str; .*hpenv.plant.snapshots.load\(path\)"
    ):
        branching.restore(env, "runs/snapshot")
    with pytest.raises(ValueError, match="must be an environment snapshot; got"):
        branching.restore(env, env.plant.snapshot())


@pytest.mark.parametrize("mode", MODES)
def test_forks_go_on_like_the_original_and_leave_it_alone(mode):
    env, twin = make(3, mode=mode, **EVERYTHING), make(3, mode=mode, **EVERYTHING)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, *env.action_space.shape))
    for each in (env, twin):
        each.reset(seed=7)
        each.step(actions[0])
    fork = branching.fork(env, 4, row=1)
    assert fork.num_envs == 4 and fork.autoreset_mode == env.autoreset_mode
    for action in actions[1:]:
        expected = twin.step(action)
        copies = fork.step(np.repeat(action[1:2], 4, axis=0))
        untouched = env.step(action)
        for left, right, forked in zip(expected[:4], untouched[:4], copies[:4], strict=True):
            assert np.array_equal(left, right)
            assert np.array_equal(forked, np.repeat(left[1:2], 4, axis=0))


def test_forks_tell_what_other_actions_would_have_done():
    env = single()
    env.reset(seed=0)
    env.step(np.zeros(2))
    fork = branching.fork(env, 3)
    rewards = fork.step(np.array([[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]))[1]
    assert rewards[0] < rewards[1] < rewards[2]
    assert rewards[1] == env.step(np.zeros(2))[1]


@pytest.mark.parametrize(("k", "row"), [(0, 0), (-1, 0), (2, 3), (2, -1)])
def test_forks_that_cannot_be_are_refused(k, row):
    env = make(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"and row one from 0 to 2; got k={k} and row={row}"):
        branching.fork(env, k, row)


@pytest.mark.parametrize("mode", MODES)
def test_a_pickled_env_goes_on_alike(mode):
    env = make(3, {1: 13}, mode, **EVERYTHING)
    env.reset(seed=7)
    env.step(still(env))
    other = pickle.loads(pickle.dumps(env))
    for _ in range(4):
        left, right = env.step(still(env) + 0.1), other.step(still(env) + 0.1)
        assert all(np.array_equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))


def test_a_counterfactual_by_hand():
    env = single()
    env.reset(seed=0)
    env.step(np.array([0.25, 0.0]))
    loss, candidates = env.plant.losses[0], (-0.5, 0.0, 0.5)
    assert steps(env) == [10]
    actions = np.array([[position, 0.0] for position in candidates])
    for decisions, hold in ((1, False), (2, False), (2, True), (9, False)):
        expected = []
        for position in candidates:
            rest = position if hold else 0.25
            after = loss * (1 - 0.01 * 100**position) ** 10
            if decisions > 1:
                after *= (1 - 0.01 * 100**rest) ** 3  # the last window has 3 of the 23 steps
            expected.append(loss - after)
        assert branching.counterfactual(env, actions, decisions, hold=hold) == pytest.approx(
            np.array(expected)
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_counterfactual_leaves_the_run_where_it_is(mode):
    env, twin = make(3, {1: 18}, mode, **EVERYTHING), make(3, {1: 18}, mode, **EVERYTHING)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, *env.action_space.shape))
    for each in (env, twin):
        each.reset(seed=7)
    for decision, action in enumerate(actions):
        if not env.episodes.ended[1]:
            tried = branching.counterfactual(env, actions[:, 1], 5, row=1, hold=decision % 2 == 0)
            assert tried.shape == (4,) and np.isfinite(tried).all()
        for ours, theirs in zip(env.step(action)[:4], twin.step(action)[:4], strict=True):
            assert np.array_equal(ours, theirs)
    left, right = branching.snapshot(env), branching.snapshot(twin)
    assert left.metadata == right.metadata and left.tensors.keys() == right.tensors.keys()
    assert all(left.tensors[name].equal(right.tensors[name]) for name in left.tensors)


def test_a_counterfactual_is_what_then_happens():
    env = make(3, mode="DISABLED", **EVERYTHING)
    env.reset(seed=7)
    actions = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape)
    env.step(-actions)
    expected = [
        branching.counterfactual(env, actions[[row]], 2, row=row, hold=True)[0] for row in range(3)
    ]
    earned = sum(env.step(actions)[1] for _ in range(2))
    assert earned == pytest.approx(expected)


def test_with_the_change_of_the_training_loss_the_second_decision_is_the_first_to_see_an_update():
    plant = FakePlant(1, before_update=True)
    env = TrainLoopVectorEnv(plant, interval=1, reward={"loss_change": 1.0}, num_steps=23)
    env.reset(seed=0)
    env.step(still(env))
    one, two = (
        branching.counterfactual(env, np.array([[0.0, 0.0], [0.5, 0.0]]), decisions)
        for decisions in (1, 2)
    )
    assert one[0] == one[1] and two[0] < two[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), 1), r"actions must be of shape \(k, 2\).* got shape \(2, 3\) and 1"),
        (
            (np.zeros(2), 1),
            r"\(k, 2\) with k >= 1, and num_decisions a whole number >= 1; got shape \(2,\) and 1",
        ),
        ((np.zeros((2, 2)), 0), r"got shape \(2, 2\) and 0"),
        ((np.zeros((2, 2)), 2.0), r"got shape \(2, 2\) and 2.0"),
        ((np.zeros((0, 2)), 1), r"got shape \(0, 2\) and 1"),
        ((np.zeros((2, 2)), 1, 3), "row one from 0 to 2; got k=2 and row=3"),
        ((np.full((2, 2), math.nan), 1), "must be finite numbers"),
    ],
)
def test_counterfactuals_that_cannot_be_are_refused(arguments, message):
    env = make(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        branching.counterfactual(env, *arguments)


def test_a_counterfactual_needs_a_run_that_goes_on():
    env = make(2, {1: 13})
    with pytest.raises(gym.error.ResetNeeded, match="run 0 has not begun, or has ended"):
        branching.counterfactual(env, np.zeros((2, 2)), 1)
    env.reset(seed=0)
    for _ in range(2):
        env.step(still(env))
    branching.counterfactual(env, np.zeros((2, 2)), 1)
    with pytest.raises(gym.error.ResetNeeded, match="run 1 has not begun, or has ended"):
        branching.counterfactual(env, np.zeros((2, 2)), 1, row=1)


def test_forks_score_their_ends_as_the_run_does_and_counterfactuals_score_none():
    env = make(2, evaluate_at_end=True)
    env.reset(seed=0)
    assert "held_out" in branching.fork(env, 1).step(still(env)[:1])[4]
    with patch.object(FakePlant, "evaluate", side_effect=AssertionError):
        branching.counterfactual(env, still(env), 3)
    with pytest.raises(ValueError, match="evaluate_at_end must be True or False; got 'yes'"):
        make(2, evaluate_at_end="yes")
