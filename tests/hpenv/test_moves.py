"""Environments whose actions are moves, on a plant with a closed form and on real ones."""

import gymnasium as gym
import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import moves_of_factors
from tests.hpenv.closed_form import EVERYTHING, MODES, make, single

MOVES = {"mapping": "move", "max_moves": {"lr": moves_of_factors("lr", 0.9, 1.2)}}
FEATURES = {"features": ["progress", "position"]}


def played(env, actions):
    env.reset(seed=3)
    return [env.step(np.float32(action)) for action in actions]


def test_no_decision_changes_the_rate_by_more_than_its_factors():
    env = make(3, num_steps=500, mode="DISABLED", **MOVES)
    env.reset(seed=0)
    generator, before = np.random.default_rng(0), np.ones(3)
    for _ in range(50):
        actions = generator.choice([-1e6, -1.0, 0.3, 1.0, 1e6], (3, 2))
        *_, infos = env.step(actions)
        factors = infos["panel/lr"] / before
        assert (factors <= 1.2 * (1 + 1e-12)).all() and (factors >= 0.9 * (1 - 1e-12)).all()
        before = infos["panel/lr"]
        assert (np.abs(env.plant.panel.positions) <= 1.0).all()


def test_zero_holds_every_cell_bitwise_and_at_the_start_it_is_neutral():
    moved, neutral = make(2, **MOVES, **FEATURES), make(2, **FEATURES)
    for left, right in zip(
        *(played(env, np.zeros((3, 2, 2))) for env in (moved, neutral)), strict=True
    ):
        assert np.array_equal(left[0], right[0]) and np.array_equal(left[1], right[1])
    moved.reset(seed=3)
    moved.step(np.float32([[0.7, -0.3], [-1.0, 1.0]]))
    held = moved.plant.panel.positions.copy()
    moved.step(np.zeros((2, 2), dtype=np.float32))
    assert np.array_equal(moved.plant.panel.positions, held) and held.all()


def test_moves_add_up_and_a_run_that_begins_anew_starts_at_neutral():
    env = single(**MOVES, **FEATURES)
    down, up = MOVES["max_moves"]["lr"]
    observations = [step[0] for step in played(env, [[1.0, 1.0], [0.5, 0.0], [-1.0, -0.5]])]
    lr = np.cumsum([up, 0.5 * up, -down])
    assert np.array(observations)[:, 1] == pytest.approx(lr, abs=1e-7)
    assert np.array(observations)[:, 2] == pytest.approx([0.1, 0.1, 0.05], abs=1e-7)
    assert env.reset(seed=3)[0][1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_have_ended_do_not_move(mode):
    """Each row moves as a single run of its own."""
    env = make(3, {1: 13}, mode, **MOVES, **FEATURES)
    env.reset(seed=0)
    actions = np.full((3, 2), 0.5, dtype=np.float32)
    up, steps = MOVES["max_moves"]["lr"][1], np.zeros(3)
    for _ in range(6):
        ended = env.episodes.ended.copy()
        *_, terminated, _, _ = env.step(actions)
        steps = np.where(ended, steps, steps + 1)
        if mode == "NEXT_STEP":
            steps[ended] = 0
        if mode == "SAME_STEP":
            steps[terminated] = 0
        assert env.plant.panel.positions[:, 0] == pytest.approx(0.5 * up * steps)


def test_a_snapshot_of_moves_goes_on_bitwise_and_fits_no_env_of_other_moves():
    arguments = EVERYTHING | MOVES
    env, other = make(2, **arguments), make(2, **arguments)
    env.reset(seed=1)
    other.reset(seed=2)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, *env.action_space.shape))
    env.step(actions[0])
    snapshot = branching.snapshot(env)
    branching.restore(other, snapshot)
    for action in actions[1:]:
        left, right = env.step(action), other.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))
    for change in ({"mapping": "position"}, {"max_moves": {"lr": 0.5}}):
        stranger = make(2, **arguments | change)
        stranger.reset(seed=1)
        with pytest.raises(ValueError, match=next(iter(change))):
            branching.restore(stranger, snapshot)


def test_a_fork_moves_on_from_where_the_run_is():
    env = make(2, **MOVES)
    env.reset(seed=1)
    env.step(np.float32([[1.0, 0.0], [-1.0, 0.5]]))
    copies = branching.fork(env, 3, row=1)
    assert np.array_equal(copies.plant.panel.positions, env.plant.panel.positions[[1, 1, 1]])
    action = np.float32([0.25, -0.75])
    env.step(np.stack([action] * 2))
    copies.step(np.stack([action] * 3))
    assert np.array_equal(copies.plant.panel.positions, env.plant.panel.positions[[1, 1, 1]])


@pytest.mark.parametrize("hold", [False, True])
def test_a_counterfactual_plays_its_move_once_or_at_every_decision(hold):
    env = make(1, num_steps=100, **MOVES)
    env.reset(seed=1)
    env.step(np.float32([[1.0, 0.0]]))
    actions = np.array([[0.0, 0.0], [1.0, 0.0]])
    found = branching.counterfactual(env, actions, 3, hold=hold)
    expected = []
    for action in actions:
        copy = branching.fork(env, 1)
        later = action if hold else np.zeros(2)
        expected.append(sum(copy.step(a[None])[1][0] for a in (action, later, later)))
    assert found == pytest.approx(np.array(expected), abs=1e-12) and found[0] != found[1]


@pytest.mark.parametrize("id", ["TrainLoop-JEL-v0", "TrainLoop-Cell-v0"])
def test_every_id_takes_moves(id):
    tiny = {"data": "synthetic", "preset": "nano", "batch_tokens": 32, "sequence_length": 16}
    tiny |= {"num_steps": 6, "interval": 2, "channels": [("lr", "run"), ("dropout", "run")]}
    env = gym.make(id, **tiny, **MOVES)
    env.reset(seed=0)
    shape = env.action_space.shape
    for number in (1, 2):
        *_, info = env.step(np.ones(shape, dtype=np.float32))
        assert info["panel/lr"] == pytest.approx(1.2**number)
        assert info["panel/dropout"] == pytest.approx(0.5 * number * 0.1 / 0.9)
    with pytest.raises(ValueError, match="unknown mapping 'moved'"):
        gym.make(id, **tiny, mapping="moved")


def test_the_largest_moves_of_an_id_hold_whatever_the_channels():
    """They may name channels that the env does not have."""
    env = make(1, mapping="move", max_moves={"dropout": 0.3})
    env.reset(seed=0)
    env.step(np.ones((1, 2), dtype=np.float32))
    assert env.plant.panel.positions.tolist() == [[0.1, 0.1]]
    assert CHANNELS["dropout"].one_sided
