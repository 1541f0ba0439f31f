"""The estimators of AdaptiveRL: numbers by hand, and what they do not depend on."""

import math

import numpy as np
import pytest

from hpenv import branching
from hpenv.telemetry.estimators import (
    ESTIMATIONS,
    Estimates,
    Estimation,
    Estimators,
    estimation_of,
)
from tests.fake_plant import FakePlant
from tests.hpenv.closed_form import make
from tests.tiny_plants import advance
from tests.tiny_plants import make as make_plant

FEATURES = ["progress", "loss_trend", "reward_trend", "loss_variance_ratio", "plateau"]
STEPWISE = ESTIMATIONS["stepwise"]


def after(losses, settings=STEPWISE):
    """The state after losses (S, N), or (S,) of one run."""
    array = np.array(losses, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    return Estimators.empty(array.shape[1]).with_losses(settings, array)


def random_losses(seed, num_steps=60, num_rows=3):
    generator = np.random.default_rng(seed)
    walk = 4.0 * 0.99 ** np.arange(num_steps)[:, None]
    return walk + generator.normal(0.0, 0.3, (num_steps, num_rows))


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def test_four_steps_by_hand():
    """Betas of 1/2 for the mean, 1/4 for the reward and the scales, and 1/5 for the variance."""
    settings = Estimation(
        beta_loss=0.5, beta_reward=0.25, beta_variance=0.2, beta_scale=0.25, epsilon=1e-12
    )
    losses = [4.0, 2.0, 3.0, 1.0]
    # mean 4, 3, 3, 2 and its changes -1, 0, -1; their size 1, 0.75, 0.8125
    # reward -4, -3.5, -3.375, -2.78125 and its changes 0.5, 0.125, 0.59375
    # squares 0, 1, 0, 1: variance 0, 0.2, 0.16, 0.328, its size 0.2, 0.19, 0.2245
    expected = {
        1: (0.0, 0.0, 0.0),
        2: (-1.0, 1.0, 1.0),
        3: (0.0, 0.125 / (0.75 * 0.5 + 0.25 * 0.125), 0.16 / 0.19),
        4: (-1.0, 1.0, 0.328 / 0.2245),
    }
    for count, (loss, reward, ratio) in expected.items():
        state = after(losses[:count], settings)
        found = state.estimates(settings)
        assert found.loss_trend[0] == pytest.approx(loss, abs=1e-9)
        assert found.reward_trend[0] == pytest.approx(reward, abs=1e-9)
        assert found.loss_variance_ratio[0] == pytest.approx(ratio, abs=1e-9)
        plateau = sigmoid((0.25 - abs(loss)) / 0.1) * sigmoid((1.0 - ratio) / 0.1)
        assert found.plateau[0] == pytest.approx(plateau, abs=1e-9)
    assert state.mean_loss[0] == 2.0 and state.mean_reward[0] == -2.78125
    assert state.loss_scale[0] == pytest.approx(0.75 * 0.75 + 0.25)


def test_trends_are_clipped_ratios():
    """A change half as large as the mean of the changes, and one that is larger."""
    settings = Estimation(beta_loss=0.5, beta_scale=0.5)
    # changes 1, then c: its size is (1 + c) / 2, so the trend is 2 c / (1 + c)
    for change, trend in ((0.2, 0.4 / 1.2), (3.0, 1.0), (-0.2, -0.4 / 1.2), (-3.0, -1.0)):
        losses = [1.0, 3.0, 2.0 + 2.0 * change]
        assert after(losses, settings).estimates(settings).loss_trend[0] == pytest.approx(trend)


def test_the_reward_of_a_language_model_is_minus_its_loss():
    found = after(random_losses(0)).estimates(STEPWISE)
    assert found.reward_trend == pytest.approx(-found.loss_trend)
    own = Estimation(beta_reward=0.2)
    found = after(random_losses(0), own).estimates(own)
    assert not np.allclose(found.reward_trend, -found.loss_trend)


@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e30])
def test_the_unit_of_the_loss_does_not_matter(factor):
    for seed in range(20):
        losses = random_losses(seed)
        left = np.array(after(losses).estimates(STEPWISE))
        right = np.array(after(factor * losses).estimates(STEPWISE))
        assert np.abs(left - right).max() < 1e-5


EXTREMES = [0.0, 1e-300, -1e-300, 1e-8, 1.0, 1e8, 1e300, -1e300, np.inf, -np.inf, np.nan]


def test_all_numbers_are_finite_and_within_bounds_whatever_the_losses():
    generator = np.random.default_rng(0)
    for _ in range(300):
        state = after(generator.choice(EXTREMES, (12, 5)))
        for settings in (STEPWISE, Estimation(plateau_trend_slope=1e-12, epsilon=1e-12)):
            found = state.estimates(settings)
            assert all(np.isfinite(values).all() for values in found)
            assert np.abs(found.loss_trend).max() <= 1 and np.abs(found.reward_trend).max() <= 1
            assert found.loss_variance_ratio.min() >= 0
            assert found.plateau.min() >= 0 and found.plateau.max() <= 1
        assert all(np.isfinite(values).all() for values in vars(state).values())


def test_a_rising_loss_has_a_positive_trend_and_a_falling_one_a_negative():
    for seed in range(50):
        losses = np.cumsum(np.random.default_rng(seed).uniform(0.0, 1.0, (20, 2)), axis=0)
        rising, falling = after(losses).estimates(STEPWISE), after(-losses).estimates(STEPWISE)
        assert (rising.loss_trend > 0).all() and (rising.reward_trend < 0).all()
        assert (falling.loss_trend < 0).all() and (falling.reward_trend > 0).all()


def test_a_loss_that_no_longer_moves_is_a_plateau_and_one_that_jumps_is_none():
    losses = np.concatenate([np.linspace(4.0, 2.0, 50), np.full(300, 2.0)])
    flat = after(losses).estimates(STEPWISE)
    jump = after([*losses, 3.0]).estimates(STEPWISE)
    falling = after(losses[:50]).estimates(STEPWISE)
    assert flat.plateau[0] > 0.6 and jump.plateau[0] < 0.05 and falling.plateau[0] < 0.05


def test_a_loss_that_never_moves_has_no_trend():
    found = after(np.full(20, 3.0)).estimates(STEPWISE)
    assert [values[0] for values in found[:3]] == [0.0, 0.0, 0.0]
    assert np.array_equal(Estimators.empty(2).estimates(STEPWISE), Estimates.empty(2))


def test_a_row_without_a_loss_stands_still_and_each_row_is_a_single_run():
    losses = random_losses(1)
    gaps = np.random.default_rng(2).random(losses.shape) < 0.3
    whole = after(np.where(gaps, np.nan, losses))
    for row in range(3):
        alone = after(losses[~gaps[:, row], row])
        for name, value in vars(alone).items():
            assert value[0] == vars(whole)[name][row], name
    again = whole.with_reset(np.array([True, False, True])).with_losses(STEPWISE, losses[:5])
    for name, value in vars(after(losses[:5])).items():
        assert value[[0, 2]].tolist() == vars(again)[name][[0, 2]].tolist()


def test_the_windows_of_a_run_do_not_matter():
    losses, parts = random_losses(3), Estimators.empty(3)
    for part in np.split(losses, [1, 7, 8, 40]):
        parts = parts.with_losses(STEPWISE, part)
    for name, value in vars(after(losses)).items():
        assert np.array_equal(value, vars(parts)[name])


# In an environment


def observed(env, num_decisions=4, seed=3):
    env.reset(seed=seed)
    shape = env.action_space.shape
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (num_decisions, *shape))
    return np.array([env.step(action)[0] for action in actions])


def test_estimates_of_an_env_are_those_of_the_losses_of_all_its_steps():
    env = make(2, features=FEATURES, num_steps=35, mode="DISABLED")
    losses, original = [], env.plant.advance
    env.plant.advance = lambda n: losses.append(original(n)) or losses[-1]
    found = observed(env)
    steps = np.concatenate([window.step_losses for window in losses])
    assert steps.shape == (35, 2)
    expected = np.array(after(steps).estimates(STEPWISE)).T
    assert found[-1, :, 1:] == pytest.approx(expected, abs=1e-6)


def test_epochwise_estimates_are_those_of_the_windows_means():
    settings = ESTIMATIONS["epochwise"]
    env = make(2, features=FEATURES, num_steps=35, mode="DISABLED", estimators="epochwise")
    losses, original = [], env.plant.advance
    env.plant.advance = lambda n: losses.append(original(n)) or losses[-1]
    found = observed(env)
    means = np.array([window["train_loss"] for window in losses[1:]])
    expected = np.array(after(means, settings).estimates(settings)).T
    assert found[-1, :, 1:] == pytest.approx(expected, abs=1e-6)
    other = make(2, features=FEATURES, num_steps=35, estimators={"every": "window"})
    assert not np.allclose(observed(other), found)


def test_a_thousandfold_loss_changes_no_observation():
    found = []
    for factor in (1.0, 1000.0):
        env = make(3, features=FEATURES, num_steps=45, mode="DISABLED")
        original = env.plant.reset

        def reset(seeds, rows=None, plant=env.plant, original=original, factor=factor):
            original(seeds, rows)
            plant.losses *= factor

        env.plant.reset = reset
        found.append(observed(env))
    assert np.abs(found[0] - found[1]).max() < 1e-5


def test_step_losses_of_a_real_plant_are_those_of_single_steps():
    together, apart = (make_plant(3, groups=("step_losses",)) for _ in range(2))
    losses = advance(together, 3, 0, 2).step_losses
    assert losses.shape == (3, 3)
    for step in range(3):
        counts = [1, 0, int(step < 2)]
        window = advance(apart, *counts)
        expected = np.where(counts, window["train_loss"], np.nan)
        assert np.array_equal(losses[step], expected, equal_nan=True)
    assert advance(make_plant(2), 2).step_losses.size == 0, "unmeasured"


def test_the_step_that_diverges_has_no_loss():
    plant = make_plant(2, groups=("step_losses",))
    advance(plant, 1)
    plant.weights["layer.1.up"][1] = math.nan
    losses = advance(plant, 2).step_losses
    assert np.isfinite(losses[:, 0]).all() and np.isnan(losses[:, 1]).all()


def test_an_env_holds_no_estimators_unless_a_feature_reads_them():
    plain, reading = make(2), make(2, features=FEATURES)
    for env in (plain, reading):
        env.reset(seed=0)
    names = {name for name in branching.snapshot(plain).tensors if name.startswith("estimators/")}
    assert not names and "step_losses" not in plain.plant.measured_groups
    names = {name for name in branching.snapshot(reading).tensors if name.startswith("estimators/")}
    assert names == {f"estimators/{name}" for name in vars(Estimators.empty(1))}


def test_a_fork_and_a_restored_env_go_on_bitwise_in_the_middle_of_a_run():
    env, other = (make(2, features=FEATURES, num_steps=95) for _ in range(2))
    observed(env)
    observed(other, seed=9)
    branching.restore(other, branching.snapshot(env))
    copies = branching.fork(env, 2, row=1)
    for _ in range(4):
        action = np.random.default_rng(1).uniform(-1, 1, (1, 2)).repeat(2, axis=0)
        left, right, copied = (each.step(action)[0] for each in (env, other, copies))
        assert np.array_equal(left, right) and np.array_equal(copied, left[[1, 1]])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("hourly", r"unknown estimators 'hourly'; expected one of \['epochwise', 'stepwise'\]"),
        ({"beta": 0.1}, "unknown field 'beta' of estimators; expected some of"),
        ({"beta_loss": 0.0}, "beta_loss of the estimators must be a finite number from 1e-12 to 1"),
        ({"beta_loss": 1.5}, "beta_loss of the estimators must be a finite number from 1e-12 to 1"),
        ({"plateau_trend": math.inf}, "plateau_trend of the estimators must be a finite number"),
        ({"every": "epoch"}, "every must be 'step' or 'window'; got 'epoch'"),
    ],
)
def test_what_is_no_estimator_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        estimation_of(form)
    with pytest.raises(ValueError, match=message):
        make(1, estimators=form)


def test_the_fake_plants_step_losses_end_where_it_diverges():
    plant = FakePlant(2, {1: 2})
    plant.set_measured_groups({"step_losses"})
    plant.reset([0, 1])
    losses = plant.advance(np.array([3, 3])).step_losses
    assert np.isfinite(losses[:, 0]).all() and np.isnan(losses[2, 1])
