"""Intervals, by hand and against tables."""

import math

import numpy as np
import pytest

from hpenv.benchmark.statistics import (
    controllers_interval,
    mean_interval,
    paired_interval,
    paired_relative_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (5, 2.570582), (9, 2.262157),
        (10, 2.228139),
        (29, 2.045230), (30, 2.042272), (120, 1.979930), (1000, 1.962339),
    ],
)  # fmt: skip
def test_t_quantiles_equal_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-6)


def test_t_quantiles_equal_closed_forms():
    assert t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-12)
    assert t_quantile(0.75, 1) == pytest.approx(1.0)  # Cauchy: tan(pi (p - 1/2))
    p = 0.99
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)))
    assert t_quantile(0.995, 9) == pytest.approx(3.249836, abs=1e-6)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_t_quantiles_that_do_not_exist_are_refused(probability, degrees):
    with pytest.raises(ValueError, match=r"must be in \[0.5, 1\)"):
        t_quantile(probability, degrees)


def test_mean_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt(3)
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    assert mean_interval([5.0, 5.0]) == (5.0, 5.0, 5.0)
    assert mean_interval([1.0, 2.0, 3.0], 0.9)[2] == pytest.approx(
        2.0 + 2.919986 / math.sqrt(3), abs=1e-6
    )


def test_paired_intervals_by_hand():
    a, b = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]  # b - a = 1, 2, 3; (b - a) / b = 1/2 each
    assert paired_interval(a, b) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    assert paired_relative_interval(a, b) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_relative_interval(b, a) == pytest.approx((-1.0, -1.0, -1.0))


def test_pairing_removes_what_a_seed_has_in_common():
    rng = np.random.default_rng(0)
    luck = rng.normal(0.0, 1.0, 10)
    a, b = 2.0 + luck, 2.5 + luck + rng.normal(0.0, 0.01, 10)
    _, low, high = paired_interval(a, b)
    assert 0.48 < low < 0.5 < high < 0.52
    assert mean_interval(b)[2] - mean_interval(b)[1] > 10 * (high - low)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_an_interval_of_too_little_or_of_nan_is_refused(values):
    with pytest.raises(ValueError, match="must be at least 2, all finite"):
        mean_interval(values)


def test_samples_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="one value of each per seed"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_covers_what_it_says(seeds):
    """With 10,000 experiments, the standard error of the fraction is 0.22 points."""
    values = np.random.default_rng(seeds).normal(1.0, 0.3, (10_000, seeds))
    covered = [low <= 1.0 <= high for _, low, high in map(mean_interval, values)]
    assert 0.94 <= np.mean(covered) <= 0.96


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("controllers", [5, 8])
def test_the_interval_over_controllers_covers_what_it_says(controllers, seeds):
    """Seeds are easy or hard for all controllers, in 10,000 experiments.

    The true value is a new controller's mean on these seeds.
    """
    random = np.random.default_rng([controllers, seeds])
    shape = (10_000, controllers, seeds)
    shared = random.normal(0.0, 0.3, (10_000, 1, seeds))
    matrices = (
        1.0 + shared + random.normal(0.0, 0.2, (*shape[:2], 1)) + random.normal(0.0, 0.1, shape)
    )
    truth = 1.0 + shared.mean((1, 2))
    covered = [
        low <= true <= high
        for true, (_, low, high) in zip(truth, map(controllers_interval, matrices), strict=True)
    ]
    assert 0.94 <= np.mean(covered) <= 0.96


def test_the_interval_over_controllers_by_hand():
    means = [1.0, 2.0, 3.0, 4.0, 5.0]
    matrix = np.array(means)[:, None] + np.array([-1.0, 1.0])
    assert controllers_interval(matrix) == pytest.approx(mean_interval(means))
    assert controllers_interval(matrix[:4]) is None
    with pytest.raises(ValueError, match=r"must have shape \(controllers, seeds\); got \(5,\)"):
        controllers_interval(means)
