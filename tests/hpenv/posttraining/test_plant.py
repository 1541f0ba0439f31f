"""Post-training in a population: neutral is free, and rows are alone."""

import math

import numpy as np
import pytest
import torch

from hpenv.control.channel import DEAD_ZONE
from hpenv.optim.schedules import Cosine
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.posttraining import plant as plant_module
from hpenv.posttraining.measurements import MEASUREMENTS
from tests.hpenv.posttraining.small_plants import (
    EVERY_CHANNEL,
    STRENGTH,
    assert_same,
    assert_same_window,
    moved,
)
from tests.tiny_student import EVERY_PAIR, FINEST, TOGETHER, advance, make, state_of


def close(left, right, but=()):
    """Equal up to the order in which batched products add, over a few updates."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if not name.startswith(but):
            bound = 1e-3 * max(value.abs().max().item(), 1e-3) if value.is_floating_point() else 0.0
            torch.testing.assert_close(
                value, right[name], rtol=0, atol=bound, msg=lambda text, n=name: f"{n}: {text}"
            )


# Neutral is free


@pytest.fixture(scope="module")
def bare():
    """States and windows of three updates without a channel."""
    plant = make(2, ())
    assert plant.panel.positions.shape == (2, 0)
    windows = [advance(plant, n) for n in (0, 2, 1)]
    assert not windows[-1].divergence.any() and all(
        knob.any() for knob in plant.coefficients.values.values()
    )
    return state_of(plant), windows


@pytest.mark.parametrize("channels", [*((pair,) for pair in EVERY_PAIR), FINEST, TOGETHER], ids=str)
def test_neutral_is_bitwise_the_plant_without_channels_in_the_dead_zone_too(channels, bare):
    plant, random = make(2, channels), np.random.default_rng(1)
    one_sided = np.array(
        [bank.channel.one_sided for bank in plant.panel.banks.values() for _ in bank.cells]
    )
    for n, expected in zip((0, 2, 1), bare[1], strict=True):
        plant.panel.move(
            np.where(one_sided, random.uniform(-1.0, DEAD_ZONE, plant.panel.positions.shape), 0.0),
            np.ones(2, dtype=bool),
        )
        assert_same_window(advance(plant, n), expected)
    assert_same(state_of(plant), bare[0])


@pytest.mark.parametrize(
    "changes", [{"rule": "two_sided"}, {"rule": "reverse"}, {"rule": "drift"}, {"target": "update"}]
)
def test_at_strength_zero_no_rule_or_target_changes_a_bit(changes, bare):
    plant = make(2, STRENGTH, **changes)
    plant.panel.positions[:] = DEAD_ZONE
    advance(plant, 0)
    advance(plant, 2)
    advance(plant, 1)
    knobs = {
        name: value
        for name, value in state_of(plant).items()
        if name.startswith(("trained", "optimizer"))
    }
    assert_same(knobs, {name: bare[0][name] for name in knobs})


@pytest.mark.parametrize("column", range(len(FINEST)), ids=[name for name, _ in FINEST])
def test_every_channel_moved_changes_the_run(column, bare):
    """Refresh and magnitude need something that is projected."""
    name = FINEST[column][0]
    needs = name in ("direction_refresh", "magnitude_preservation")
    plant, without = (make(2, (FINEST[column], *(STRENGTH if needs else ()))) for _ in range(2))
    own = [cell.startswith(name) for cell in plant.panel.names]
    for each in (plant, without):
        each.panel.positions[:] = 1.0 if needs else 0.0
    plant.panel.positions[:, own], without.panel.positions[:, own] = 0.6, 0.0
    plant.panel.positions[:, own] = 1.0 if name == "direction_refresh" else 0.6
    advance(plant, 3)
    advance(without, 3)
    for row in range(2):
        assert any(
            not torch.equal(knob[row], without.coefficients.values[module][row])
            for module, knob in plant.coefficients.values.items()
        )


# Rows


def test_a_row_of_a_population_is_the_single_run_of_its_seed():
    channels = EVERY_CHANNEL
    population = moved(make(3, channels))
    window = advance(population, 2)
    for row in range(3):
        single = make(1, channels)
        single.reset([100 + row])
        single.panel.positions[:] = population.panel.positions[row]
        alone = advance(single, 2)
        close(state_of(single, 0), state_of(population, row), but="window/")
        for name, value in alone.arrays().items():
            assert window.arrays()[name][row] == pytest.approx(value[0], rel=1e-3, abs=1e-4), name


def test_rows_of_one_seed_are_equal_and_others_are_not():
    plant = make(3)
    plant.reset([5, 5, 6])
    window = advance(plant, 2)
    assert_same(state_of(plant, 0), state_of(plant, 1))
    assert_same_window(window, window, 0, 1)
    assert any(not torch.equal(knob[0], knob[2]) for knob in plant.coefficients.values.values())


def test_what_is_done_to_another_row_is_not_noticed():
    plants = [moved(make(3, EVERY_CHANNEL)) for _ in range(3)]
    plants[1].panel.positions[2] = -plants[1].panel.positions[2]
    plants[2].coefficients.values["layer.0.up"][2] = math.nan
    windows = [advance(plant, 2) for plant in plants]
    assert windows[2].divergence.tolist()[:2] == [0, 0] and windows[2].divergence[2] > 0
    for plant, window in zip(plants[1:], windows[1:], strict=True):
        for row in (0, 1):
            close(state_of(plant, row), state_of(plants[0], row), but="window/")
            for name, value in window.arrays().items():
                assert value[row] == pytest.approx(
                    windows[0].arrays()[name][row], rel=1e-3, abs=1e-4
                ), name
    assert any(
        not torch.equal(k[2], plants[0].coefficients.values[name][2])
        for name, k in plants[1].coefficients.values.items()
    )


def test_a_row_that_takes_no_step_does_not_move():
    plant = moved(make(3, EVERY_CHANNEL, rule="drift", route=True))
    before = advance(plant, 2, 1, 2)
    frozen = state_of(plant, 1)
    after = advance(plant, 1, 0, 2)
    assert_same(state_of(plant, 1), frozen)
    assert_same_window(after, before, 1, 1)
    assert after.steps.tolist() == [3, 1, 4]


def test_rows_stand_at_different_clocks():
    schedule = Cosine(8, 2)
    plant = make(2, lr_schedule=schedule)
    for numbers in ((2, 0), (1, 1), (0, 1)):
        advance(plant, *numbers)
    for row, steps in enumerate((3, 2)):
        single = make(1, lr_schedule=schedule)
        single.reset([100 + row])
        advance(single, steps)
        assert plant.steps[row] == steps
        close(state_of(single, 0), state_of(plant, row), but="window/")


def test_a_row_that_is_reset_leaves_the_others_bitwise_alone_and_starts_anew():
    plant, undisturbed = (moved(make(3, EVERY_CHANNEL, rule="drift", route=True)) for _ in range(2))
    for each in (plant, undisturbed):
        advance(each, 2)
    fresh = make(3, EVERY_CHANNEL, rule="drift", route=True)
    fresh.reset([100, 40, 102])
    plant.reset([40], [1])
    assert plant.steps.tolist() == [2, 0, 2] and not plant.panel.positions[1].any()
    for row in (0, 2):
        assert_same(state_of(plant, row), state_of(undisturbed, row))
    assert_same(state_of(plant, 1), state_of(fresh, 1))
    with pytest.raises(ValueError, match="seeds must be 2 numbers, one for each row; got 1"):
        plant.reset([1], [0, 1])


def test_advancing_in_pieces_is_advancing_at_once():
    whole, pieces = (moved(make(2, EVERY_CHANNEL)) for _ in range(2))
    at_once = advance(whole, 3)
    windows = [advance(pieces, n) for n in (1, 2)]
    means = [own.name for own in MEASUREMENTS if own.over == "mean"]
    assert_same(state_of(whole), state_of(pieces), but=tuple(f"window/{name}" for name in means))
    for name in means:
        first, second = (window[name] for window in windows)
        assert at_once[name] == pytest.approx((first + 2 * second) / 3, rel=1e-9, abs=1e-12)


def test_no_steps_only_measures():
    plant = make(2)
    advanced = advance(plant, 2)
    before = state_of(plant)
    assert_same_window(advance(plant, 0), advanced)
    assert_same(state_of(plant), before)


# Divergence is an outcome


def test_a_knob_that_is_not_a_number_ends_its_run_alone():
    plant = make(3)
    advance(plant, 1)
    plant.coefficients.values["layer.1.down"][1, 0] = math.nan
    others = [state_of(plant, row)["trained/layer.0.up"] for row in (0, 2)]
    window = advance(plant, 2)
    assert DIVERGENCE_REASONS[window.divergence[1]] == "loss_nonfinite"
    assert window.divergence.tolist()[::2] == [0, 0] and window.steps.tolist() == [3, 1, 3]
    for name, value in window.arrays().items():
        assert np.isfinite(value).all(), name
    for row, before in zip((0, 2), others, strict=True):
        now = plant.coefficients.values["layer.0.up"][row]
        assert now.isfinite().all() and not torch.equal(now, before)
    frozen = state_of(plant, 1)
    advance(plant, 2)
    for name, value in state_of(plant, 1).items():
        torch.testing.assert_close(value, frozen[name], rtol=0, atol=0, equal_nan=True)
    assert np.isfinite(plant.evaluate()).all()
    plant.reset([9], [1])
    assert advance(plant, 1).divergence.tolist() == [0, 0, 0]


def test_a_gradient_that_is_not_a_number_ends_its_run_before_it_is_stepped_on(monkeypatch):
    plant = make(2, STRENGTH, rule="drift")
    plant.panel.positions[:] = 1.0
    advance(plant, 1)
    before = state_of(plant, 0)
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        result[2][0, 1] = math.inf
        return result

    monkeypatch.setattr(plant_module.torch.autograd, "grad", grad)
    window = advance(plant, 1)
    assert [DIVERGENCE_REASONS[code] for code in window.divergence] == ["gradient_nonfinite", ""]
    after = state_of(plant, 0)
    assert_same(after, before, but=("rows/divergence", "window/"))
    assert plant.steps.tolist() == [1, 2]


def test_a_run_that_goes_too_far_from_its_student_is_ended():
    plant = make(2, (("lr", "run"),), divergence_kl=2.0)
    plant.panel.positions[0] = 1.0
    window = advance(plant, 3)
    assert [DIVERGENCE_REASONS[code] for code in window.divergence] == ["kl_above_limit", ""]
    assert window.steps[0] < 3 == window.steps[1]
