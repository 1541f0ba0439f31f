"""A channel at neutral changes no bit, and a cell reaches its own row alone."""

from functools import lru_cache

import numpy as np
import pytest

from hpenv.optim.optimizers import OPTIMIZERS
from tests.hpenv.control.every_channel import applicable, ids
from tests.tiny_plants import (
    ALL_GROUPS,
    PAIRS,
    PRESETS,
    TOGETHER,
    advance,
    different,
    kept_neutral,
    make,
    state_of,
)

NUM_STEPS = 3


# Neutral is free


@lru_cache(maxsize=32)
def bare(preset, optimizer, **arguments):
    """State after each step of two runs without channels."""
    plant = make(preset=preset, optimizer=optimizer, groups=ALL_GROUPS, **arguments)
    return [state_of(plant) for _ in range(NUM_STEPS) if advance(plant, 1)]


def assert_neutral_is_free(pairs, preset, optimizer="adamw", **arguments):
    """Both rows at neutral, and then row 0 at neutral next to a row 1 that is moved at random.

    Row 1 must notice.
    """
    generator = np.random.default_rng(0)
    expected = bare(preset, optimizer, **arguments)
    beside_itself, beside_another = (
        make(2, pairs, preset, ALL_GROUPS, optimizer=optimizer, **arguments) for _ in range(2)
    )
    num_cells = beside_another.panel.positions.shape[1]
    assert num_cells > 0
    for step in range(NUM_STEPS):
        beside_itself.panel.move(
            np.stack([kept_neutral(beside_itself, generator)] * 2), np.ones(2, dtype=bool)
        )
        moved = generator.uniform(0.5, 1.0, num_cells) if step else np.ones(num_cells)
        beside_another.panel.move(
            np.stack([kept_neutral(beside_another, generator), moved]), np.ones(2, dtype=bool)
        )
        for plant in (beside_itself, beside_another):
            advance(plant, 1)
        assert different(state_of(beside_itself), expected[step]) == [], f"step {step}"
        row = {name: value[0] for name, value in expected[step].items()}
        assert different(state_of(beside_another, 0), row) == [], (
            f"step {step}, beside a run that is moved"
        )
        if not beside_another.divergence[1]:
            other = {name: value[1] for name, value in expected[step].items()}
            weights = [
                n
                for n in different(state_of(beside_another, 1), other)
                if n.startswith(("weights", "optim"))
            ]
            assert weights or (pairs[0][0] == "momentum_blend" and step == 0), (
                "the channel has no effect at all"
            )


@pytest.mark.parametrize("preset", ["relu2", "swiglu"])
@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_neutral_of_a_channel_alone_is_bitwise_no_channel(pair, preset):
    assert_neutral_is_free((pair,), preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neutral_of_all_channels_together_is_bitwise_no_channel(optimizer, preset):
    if optimizer == "muon" and PRESETS[preset].residual_lambdas:
        pytest.skip("muon updates matrices only")
    assert_neutral_is_free(applicable(TOGETHER, optimizer, preset), preset, optimizer)


def test_neutral_is_free_in_bfloat16():
    assert_neutral_is_free(TOGETHER, "swiglu", dtype="bfloat16")


def test_neutral_is_free_under_rates_that_are_no_powers_of_two():
    assert_neutral_is_free(TOGETHER, "relu2", base_lr=0.0123, base_weight_decay=0.377)


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_moving_one_cell_of_one_row_leaves_the_other_rows_bitwise_alone(pair):
    """Three runs in three different places of the panel.

    Then only the middle one's cells change.
    """
    plants = [make(3, (pair,), "swiglu") for _ in range(2)]
    for value, plant in zip((0.95, -0.95), plants, strict=True):
        plant.panel.positions[:] = np.array([0.7, 0.0, -0.6])[:, None]
        plant.panel.positions[1] = value
        advance(plant, 2)
    for row in (0, 2):
        assert different(state_of(plants[0], row), state_of(plants[1], row)) == []
