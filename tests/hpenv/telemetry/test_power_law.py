"""The exponent of the loss, by hand and by what it must not depend on."""

import numpy as np
import pytest

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
