"""Moves are bounded changes of a position, and 0 holds it."""

import math

import numpy as np
import pytest

from hpenv.control.channel import DEAD_ZONE
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import (
    DEFAULT_MOVE,
    check_mapping,
    largest_moves,
    move_positions,
    moves_of_factors,
)

TWO_SIDED = np.array([False])


def effective(positions, one_sided):
    """Positions with all of a dead zone as one."""
    return np.where(one_sided, np.maximum(positions, DEAD_ZONE), positions)


def test_moves_stay_within_the_largest_and_within_the_bounds_whatever_the_action():
    generator = np.random.default_rng(0)
    for _ in range(500):
        positions = generator.uniform(-1, 1, (4, 6))
        actions = generator.choice(
            [-1e30, -1.0, -1e-12, 0.0, 1e-300, 0.5, 1.0, 1e30], (4, 6)
        ) * generator.uniform(0, 1, (4, 6))
        largest = generator.uniform(0, 2, (2, 6)) ** 3
        one_sided = generator.random(6) < 0.5
        moved = move_positions(positions, actions, largest, one_sided)
        assert np.isfinite(moved).all() and np.abs(moved).max() <= 1.0
        change = effective(moved, one_sided) - effective(positions, one_sided)
        assert (change <= largest[1] + 1e-15).all() and (change >= -largest[0] - 1e-15).all()
        assert (np.sign(change) * np.sign(actions) >= 0).all()
        assert np.array_equal(moved[actions == 0], positions[actions == 0])


def test_moves_by_hand():
    largest = np.array([[0.2], [0.4]])
    positions = np.array([[0.0], [0.0], [0.95], [-0.9], [0.3], [0.3]])
    actions = np.array([[0.5], [-0.5], [1.0], [-1.0], [0.0], [-5.0]])
    moved = move_positions(positions, actions, largest, TWO_SIDED)
    assert moved[:, 0] == pytest.approx([0.2, -0.1, 1.0, -1.0, 0.3, 0.1])


def test_a_one_sided_cell_leaves_its_dead_zone_with_the_first_move():
    largest, one_sided = np.array([[0.1], [0.1]]), np.array([True])
    positions = np.array([[0.0], [-1.0], [0.0], [0.15], [0.0]])
    actions = np.array([[0.5], [1.0], [-1.0], [-1.0], [0.0]])
    moved = move_positions(positions, actions, largest, one_sided)
    assert moved[:, 0] == pytest.approx([0.15, 0.2, 0.1, 0.1, 0.0])
    values = CHANNELS["exploration"].values(moved[:, 0])
    assert values[:2].min() > CHANNELS["exploration"].floor and values[2:].tolist() == [0, 0, 0]


def test_factors_bound_the_change_of_a_value():
    down, up = moves_of_factors("lr", 0.9, 1.2)
    assert (down, up) == pytest.approx((-math.log(0.9) / math.log(100), math.log(1.2, 100)))
    largest = largest_moves(["lr"], {"lr": (down, up)})
    position = np.array([[0.37]])
    before = CHANNELS["lr"].values(position)
    for action, factor in ((1.0, 1.2), (-1.0, 0.9), (1e9, 1.2), (0.0, 1.0)):
        moved = move_positions(position, np.array([[action]]), largest, TWO_SIDED)
        assert CHANNELS["lr"].values(moved) / before == pytest.approx(np.array([[factor]]))


def test_channels_without_largest_moves_have_the_default():
    found = largest_moves(["lr", "momentum", "lr"], {"lr": (0.01, 0.02)})
    assert found.tolist() == [[0.01, DEFAULT_MOVE, 0.01], [0.02, DEFAULT_MOVE, 0.02]]
    assert largest_moves([], {}).shape == (2, 0)


def test_largest_moves_are_numbers_or_pairs():
    assert check_mapping("position", None) == {}
    given = {"lr": 0.25, "momentum": (np.float64(0.1), 1)}
    assert check_mapping("move", given) == {"lr": [0.25, 0.25], "momentum": [0.1, 1.0]}


@pytest.mark.parametrize(
    ("mapping", "max_moves", "message"),
    [
        ("moves", None, r"unknown mapping 'moves'; expected one of \['position', 'move'\]"),
        ("move", 0.1, "max_moves must be a mapping of channels"),
        ("move", {"learning_rate": 0.1}, "unknown channel 'learning_rate' in max_moves"),
        ("move", {"lr": -0.1}, "max_moves of 'lr' must be a number from 0 to 2"),
        ("move", {"lr": (0.1, 0.2, 0.3)}, "max_moves of 'lr' must be a number from 0 to 2"),
        ("move", {"lr": (0.9, math.nan)}, "max_moves of 'lr' must be a number from 0 to 2"),
        ("move", {"lr": "much"}, "max_moves of 'lr' must be a number from 0 to 2"),
    ],
)
def test_what_is_no_mapping_is_refused(mapping, max_moves, message):
    with pytest.raises(ValueError, match=message):
        check_mapping(mapping, max_moves)


@pytest.mark.parametrize("factors", [(0.0, 1.2), (1.1, 1.2), (0.9, 0.95), (0.9, math.inf)])
def test_what_is_no_pair_of_factors_is_refused(factors):
    with pytest.raises(ValueError, match=r"factors of 'lr' must be in \(0, 1\] and at least 1"):
        moves_of_factors("lr", *factors)
