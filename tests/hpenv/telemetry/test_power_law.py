"""The exponent of the loss, by hand and by what it must not depend on."""

import numpy as np
import pytest

from hpenv import branching
from hpenv.envs.jel import make_vector_env
from hpenv.telemetry.power_law import PowerLaw


def exponents(losses, parts=1, num_rows=1):
    """Of losses (S,) of each of the same runs, given in some windows."""
    state, steps = PowerLaw.empty(num_rows), np.zeros(num_rows, dtype=np.int64)
    for window in np.array_split(np.asarray(losses), parts):
        state = state.with_losses(steps, np.tile(window[:, None], (1, num_rows)))
        steps = steps + len(window)
    return state.exponents()


def test_a_power_law_has_its_exponent_whatever_its_unit():
    steps = np.arange(1, 301)
    for scale in (1e-6, 1.0, 1e6):
        assert exponents(scale * steps**-0.3, parts=7) == pytest.approx(-0.3, abs=1e-9)


def test_the_fit_weighs_a_step_by_its_number():
    """Two steps have one line, whatever their weights. Three are compared with NumPy's fit."""
    assert exponents([4.0, 2.0]) == pytest.approx(-1.0)
    losses, steps = np.array([4.0, 3.0, 1.0]), np.arange(1.0, 4.0)
    slope, _ = np.polyfit(np.log(steps), np.log(losses), 1, w=np.sqrt(steps))
    assert exponents(losses) == pytest.approx(slope)


def test_windows_and_the_number_of_runs_do_not_matter():
    losses = 3.0 + np.random.default_rng(0).normal(size=100) / 10
    expected = exponents(losses)
    assert exponents(losses, parts=9, num_rows=3) == pytest.approx(np.repeat(expected, 3))


def test_a_row_counts_its_own_steps():
    """The second row takes two steps of the first window, and the third begins anew."""
    state = PowerLaw.empty(3).with_losses(
        np.zeros(3, dtype=np.int64), np.array([[4.0] * 3, [2.0] * 3, [4 / 3, np.nan, 4 / 3]])
    )
    state = state.with_reset(np.array([False, False, True]))
    losses = np.array([[1.0, 4 / 3, 8.0], [0.8, 1.0, 2.0]])
    state = state.with_losses(np.array([3, 2, 0]), losses)
    assert state.exponents() == pytest.approx([-1.0, -1.0, -2.0])


@pytest.mark.parametrize("losses", [[], [3.0], [np.nan, np.nan], [np.nan, 2.0]])
def test_fewer_than_two_losses_have_no_exponent(losses):
    assert exponents(losses) == 0.0


def test_any_losses_have_a_finite_exponent():
    assert np.isfinite(exponents([0.0, 1e300, 0.0, -1.0, 5.0, np.inf]))


def test_an_environment_fits_the_losses_of_all_its_steps_and_goes_on_from_a_snapshot():
    arguments = {"batch_tokens": 64, "sequence_length": 16, "data": "synthetic", "interval": 5}
    features = ["progress", "loss_exponent", "probe_gain", "start_distance"]
    env, other = (
        make_vector_env(2, num_steps=25, observation=features, **arguments) for _ in range(2)
    )
    still = np.zeros((2, env.single_action_space.shape[0]), np.float32)
    seen = [env.reset(seed=3)[0]]
    losses = []
    for decision in range(3):
        if decision == 2:
            snapshot = branching.snapshot(env)
        seen.append(env.step(still)[0])
        losses.append(env.episodes.window.step_losses)

    losses = np.concatenate(losses)
    steps = np.arange(1.0, 16.0)
    for row in range(2):
        y = np.log(losses[:, row])
        slope, _ = np.polyfit(np.log(steps), y, 1, w=np.sqrt(steps))
        assert seen[-1][row, 1] == pytest.approx(slope, rel=1e-5)
    assert (seen[0][:, 1:] == 0).all() and (seen[-1] != seen[-2]).all()

    other.reset(seed=9)
    branching.restore(other, snapshot)
    assert (other.step(still)[0] == seen[-1]).all()
