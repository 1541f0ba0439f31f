"""Rows are independent, and a single run is a row of a population."""

import itertools
import math

import numpy as np
import pytest
import torch

from hpenv.lm import architecture, model
from hpenv.optim.schedules import WarmupFlatWarmdown
from hpenv.pretraining.rates import rates_of_step
from tests.hpenv.pretraining.small_plants import (
    EVERY_OPTIMIZER,
    OPTIMIZER,
    RUN,
    advance,
    assert_same,
    assert_same_window,
    make,
    state_of,
)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_training_learns_under_every_optimizer(optimizer):
    free = "prodigy" in optimizer or "dadapt" in optimizer
    base_lr = 0.1 if "sgd" in optimizer else 0.01
    if free:  # a multiplier of the estimate of the rule
        base_lr = dict.fromkeys(("embedding", "unembedding", "matrix"), 0.5)
        base_lr["matrix"] = 0.01 if "muon" in optimizer else 0.5
    num_steps = 60 if free else 12  # the estimate starts at a millionth
    plant = make(optimizer=optimizer, base_lr=base_lr)
    first, last = advance(plant, 0), advance(plant, num_steps)
    assert first["probe_loss"][0] == pytest.approx(math.log(256), abs=0.02)
    assert last["probe_loss"][0] < first["probe_loss"][0] - 0.01
    assert last.steps.tolist() == [num_steps] and last.divergence.tolist() == [0]


def test_a_row_of_a_population_is_the_single_run_of_its_seed():
    """After 12 steps at ten times the base rate.

    On an AMD EPYC with torch 2.13 and one thread the two are bitwise equal. A library that adds up
    a batched product in another order moves the last bits of it; the bounds are a few hundred
    roundings of float32.
    """
    seeds = [11, 2**61, 0, 3, 3]
    population = make(5, seeds)
    population.panel.positions[:] = [0.5, 0.2]
    window = advance(population, 12)
    for row, seed in enumerate(seeds):
        single = make(1, [seed])
        single.panel.positions[:] = [0.5, 0.2]
        alone = advance(single, 12)
        for name in ("train_loss", "probe_loss", "gradient_norm", "momentum_norm"):
            assert window.arrays()[name][row] == pytest.approx(alone.arrays()[name][0], rel=1e-4), (
                name
            )
        for name, weight in single.weights.items():
            torch.testing.assert_close(
                population.weights[name][row], weight[0], rtol=1e-3, atol=1e-4
            )
    assert_same(state_of(population, 3), state_of(population, 4))  # two rows of one seed
    assert len(set(window["probe_loss"].tolist())) == 4


def test_a_row_that_is_reset_leaves_the_others_bitwise_alone_and_starts_anew():
    seeds = [5, 6, 7]
    plant, undisturbed, fresh = make(3, seeds), make(3, seeds), make(3, [5, 40, 7])
    for each in (plant, undisturbed):
        each.panel.positions[:] = [0.3, -0.2]
        advance(each, 7)
    plant.reset([40], [1])
    assert plant.panel.positions.tolist() == [[0.3, -0.2], [0.0, 0.0], [0.3, -0.2]]
    assert plant.steps.tolist() == [7, 0, 7]
    window, expected, anew = advance(plant, 5), advance(undisturbed, 5), advance(fresh, 5)
    for row in (0, 2):
        assert_same(state_of(plant, row), state_of(undisturbed, row))
        assert_same_window(window, expected, row, row)
    assert_same(state_of(plant, 1), state_of(fresh, 1))
    assert_same_window(window, anew, 1, 1)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_rows_stand_at_different_clocks(optimizer):
    schedule = WarmupFlatWarmdown(6, warmup_steps=3)
    plant = make(2, [5, 6], optimizer=optimizer, lr_schedule=schedule, base_lr=1e-2)
    advance(plant, 3, 0)
    advance(plant, 1, 4)
    advance(plant, 0, 1)
    for row, (seed, num_steps) in enumerate([(5, 4), (6, 5)]):
        single = make(1, [seed], optimizer=optimizer, lr_schedule=schedule, base_lr=1e-2)
        advance(single, num_steps)
        assert plant.steps[row] == num_steps
        for name, weight in single.weights.items():
            torch.testing.assert_close(plant.weights[name][row], weight[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_a_row_that_takes_no_step_does_not_move(optimizer):
    plant = make(3, optimizer=optimizer, base_lr=1e-2)
    before = advance(plant, 4, 2, 4)
    frozen = state_of(plant, 1)
    after = advance(plant, 5, 0, 1)
    assert_same(state_of(plant, 1), frozen)
    assert_same_window(after, before, 1, 1)
    assert after.steps.tolist() == [9, 2, 5]


def test_no_steps_only_measures():
    plant = make(2)
    moved = advance(plant, 3)
    before = state_of(plant)
    for _ in range(2):
        assert_same_window(advance(plant, 0), moved)
    assert_same(state_of(plant), before)


@pytest.mark.parametrize("optimizer", ["adamw_muon", "adamw_muon_nanochat", "adamw_schedule_free"])
def test_advancing_in_one_go_equals_advancing_in_pieces(optimizer):
    arguments = {
        "optimizer": optimizer,
        "base_lr": 1e-2,
        "lr_schedule": WarmupFlatWarmdown(7, warmup_steps=2),
    }
    whole, pieces = make(2, **arguments), make(2, **arguments)
    for plant in (whole, pieces):
        plant.panel.positions[:] = [[0.4, -0.3], [-0.1, 0.9]]
    at_once = advance(whole, 7)
    taken = np.array([(3, 1), (2, 2), (2, 4)])
    windows = [advance(pieces, *numbers) for numbers in taken]
    assert_same(state_of(whole), state_of(pieces), but="window/train_loss")
    mean = (np.array([window["train_loss"] for window in windows]) * taken).sum(0) / 7
    assert mean == pytest.approx(at_once["train_loss"], rel=1e-12)


def test_the_training_loss_is_the_mean_over_the_window():
    plant, one_by_one = make(), make()
    losses = [advance(one_by_one, 1)["train_loss"][0] for _ in range(6)]
    assert advance(plant, 4)["train_loss"][0] == pytest.approx(np.mean(losses[:4]), rel=1e-12)
    assert advance(plant, 2)["train_loss"][0] == pytest.approx(np.mean(losses[4:]), rel=1e-12)


def test_norms_are_those_of_the_last_gradient_and_of_the_first_moments():
    plant = make(optimizer="sgd", base_lr=0.0)
    window = advance(plant, 1)
    buffers = [state["momentum"][0].flatten() for state in plant.optimizer_state.values()]
    # The first heavy-ball buffer is the first gradient.
    assert window["gradient_norm"][0] == pytest.approx(torch.cat(buffers).norm().item(), rel=1e-5)
    assert window["momentum_norm"][0] == pytest.approx(window["gradient_norm"][0], rel=1e-5)
    assert advance(plant, 1)["momentum_norm"][0] > window["momentum_norm"][0]


def test_training_probe_and_validation_are_read_from_their_own_slice(monkeypatch):
    plant = make(1)
    poisoned = {"train": 10, "probe": 20, "validation": 30}
    for part, symbol in poisoned.items():
        plant._tokens[part] = torch.full_like(plant._tokens[part], symbol)
    seen = set()
    for name in ("mean_losses", "token_losses"):
        original = getattr(model, name)

        def spy(weights, config, inputs, targets, rope, *more, original=original):
            seen.update(inputs.unique().tolist(), targets.unique().tolist())
            return original(weights, config, inputs, targets, rope, *more)

        monkeypatch.setattr(model, name, spy)
        plant._loss = spy if name == "mean_losses" else plant._loss
    advance(plant, 0)
    assert seen == {20}
    seen.clear()
    advance(plant, 1)
    assert seen == {10, 20}
    seen.clear()
    plant.evaluate()
    assert seen == {30}


@pytest.mark.parametrize(
    "optimizer", ["sgd_schedule_free", "adamw_schedule_free", "schedule_free_adamw_muon"]
)
def test_a_schedule_free_plant_is_measured_at_the_average(optimizer):
    plant = make(optimizer=optimizer, base_lr=1e-2)
    window, score = advance(plant, 10), plant.evaluate()
    for name, weight in plant.weights.items():
        average = plant._rule(name).evaluation_weights(weight, plant.optimizer_state[name])
        is_averaged = (
            optimizer != "schedule_free_adamw_muon" or architecture.parameter_kind(name) != "matrix"
        )
        assert torch.equal(average, weight) != is_averaged, name
        weight.copy_(average)
        if is_averaged:
            plant.optimizer_state[name]["z"].copy_(
                average
            )  # x = y = z: the same plant, standing at its average
    assert plant.evaluate() == pytest.approx(score, rel=1e-5)
    assert advance(plant, 0)["probe_loss"] == pytest.approx(window["probe_loss"], rel=1e-5)


#: Steps of each decision of a run, the last one cut short by its budget.
DECISIONS = [9] * 4 + [4]


@pytest.mark.parametrize("channels", [RUN, OPTIMIZER], ids=["run", "optimizer"])
def test_a_neutral_panel_is_no_panel(channels):
    """Over a whole run, decision by decision, bitwise."""
    arguments = {"batch_tokens": 32, "lr_schedule": WarmupFlatWarmdown(40)}
    plant, bare = make(channels=channels, **arguments), _bare_run(**arguments)
    for num_steps in DECISIONS:
        plant.panel.move(np.zeros(plant.panel.positions.shape), np.ones(1, dtype=bool))
        advance(plant, num_steps)
    assert plant.steps.tolist() == [40]
    # Effects are one number per cell, and the bare run has no cells.
    cells = ("rows/panel", "window/cell_effect")
    kept = {name: t for name, t in state_of(plant).items() if not name.startswith(cells)}
    assert_same(kept, {name: t for name, t in bare.items() if not name.startswith(cells)})


_BARE = {}


def _bare_run(**arguments):
    """State after the same 40 steps of a plant without channels, trained once."""
    if not _BARE:
        plant = make(channels=(), **arguments)
        assert plant.panel.positions.shape == (1, 0)
        for num_steps in DECISIONS:
            advance(plant, num_steps)
        _BARE.update({name: t for name, t in state_of(plant).items() if name != "rows/panel"})
    return _BARE


def test_bfloat16_stays_close_to_float32_and_keeps_float32_weights():
    exact, half = make(2), make(2, dtype="bfloat16")
    expected, window = advance(exact, 4), advance(half, 4)
    assert {weight.dtype for weight in half.weights.values()} == {torch.float32}
    assert window["probe_loss"] == pytest.approx(expected["probe_loss"], rel=0.01)
    assert half.evaluate() == pytest.approx(exact.evaluate(), rel=0.01)
    assert (window["probe_loss"] != expected["probe_loss"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_plant_stays_close():
    exact, compiled = make(2), make(2, compile=True)
    assert advance(compiled, 3)["probe_loss"] == pytest.approx(
        advance(exact, 3)["probe_loss"], rel=1e-4
    )


@pytest.mark.parametrize("preset", ["cell11", "shakespeare"])
def test_every_preset_that_fits_a_cpu_trains(preset):
    plant = make(preset=preset, batch_tokens=32)
    first, last = advance(plant, 0), advance(plant, 3)
    assert last["probe_loss"] < first["probe_loss"]


def test_a_spawned_plant_shares_nothing_with_its_origin():
    plant = make(2)
    before = state_of(plant)
    spawned = plant.spawn(3)
    advance(spawned, 2)
    assert spawned.num_rows == 3
    assert_same(state_of(plant), before)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_every_corner_of_the_panel_is_finite_or_an_outcome(optimizer):
    corners = list(itertools.product([-1.0, 1.0], repeat=2))
    plant = make(4, optimizer=optimizer, base_lr=0.1, base_weight_decay=0.5, batch_tokens=16)
    plant.panel.positions[:] = corners
    for _ in range(2):
        window = advance(plant, 4)
        for name, value in window.arrays().items():
            assert np.isfinite(value).all(), name


def test_a_step_to_the_corner_never_flips_the_sign_of_a_weight():
    plant = make(1, optimizer="sgd", base_lr=1.0, base_weight_decay=1.0)
    plant.panel.positions[:] = 1.0
    gradients = state_of(plant)
    plant._update(
        {name: torch.zeros_like(w) for name, w in plant.weights.items()},
        _rates(plant),
        np.array([True]),
    )
    for name, weight in plant.weights.items():
        assert (weight * gradients[f"weights/{name}"] >= 0).all()


def _rates(plant):
    plant._begin_window(np.array([1]))
    return rates_of_step(plant._rates, 0)
