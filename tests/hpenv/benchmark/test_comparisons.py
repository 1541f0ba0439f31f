"""Comparisons of two methods against t-tests, and their intervals against simulations."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from hpenv.benchmark.aggregates import (
    interquartile_mean,
)
from hpenv.benchmark.comparisons import (
    holm,
    minimum_detectable_difference,
    paired_comparison,
    probability_of_improvement,
)
from tests.hpenv.benchmark.invented_scores import X, Y, coverage


def draw_board(rng, methods, spacing, instances=20, seeds=10):
    """Scores of several methods, (M, I, S), of which the last two are the same method."""
    quality = spacing * np.arange(methods)
    quality[-1] = quality[-2]
    base = rng.normal(0.3, 0.25, (instances, 1))
    spread = 0.1 * np.exp(0.7 * rng.normal(size=(instances, 1)))
    liking = 0.1 * rng.normal(size=(methods, instances, 1))
    liking[-1] = liking[-2]
    common = rng.normal(size=(instances, seeds))
    noise = common + rng.normal(size=(methods, instances, seeds))
    return np.clip(base + quality[:, None, None] + liking + spread * noise, -1.0, 1.5)


def test_opposite_probabilities_of_improvement_sum_to_one():
    assert probability_of_improvement(X, Y) + probability_of_improvement(Y, X) == pytest.approx(1)
    assert probability_of_improvement(X, X) == 0.5


def test_a_comparison_of_one_instance_is_the_paired_t_test_over_seeds():
    a, b = np.random.default_rng(5).normal(size=(2, 1, 10))
    comparison = paired_comparison(a, b, seed=0)
    test = stats.ttest_rel(a[0], b[0], alternative="greater")
    both_sides = stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    assert comparison.p_value == pytest.approx(test.pvalue, abs=1e-12)
    np.testing.assert_allclose(comparison.difference[1:], both_sides, atol=1e-12)
    assert comparison.difference.mean == pytest.approx(np.mean(a - b))


def test_the_difference_of_means_is_nearly_the_t_test_over_the_means_of_instances():
    a, b = draw_board(np.random.default_rng(6), 2, 0.0)
    comparison = paired_comparison(
        a, b, seed=0, statistic=lambda scores: scores.mean((-1, -2)), num_resamples=20000
    )
    test = stats.ttest_rel(a.mean(1), b.mean(1))
    np.testing.assert_allclose(
        comparison.difference[1:], test.confidence_interval(0.95), atol=0.03 * a.std()
    )


def test_exchanging_the_methods_mirrors_the_comparison():
    there, back = paired_comparison(X, Y, seed=1), paired_comparison(Y, X, seed=1)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.p_value + back.p_value == pytest.approx(1)


def test_the_p_value_agrees_with_the_interval():
    for seed in range(20):
        a, b = draw_board(np.random.default_rng(seed), 3, 0.05)[:2]
        comparison = paired_comparison(b, a, seed=seed, num_resamples=200)
        assert (comparison.p_value < 0.025) == (comparison.difference.low > 0)


@pytest.mark.parametrize(("instances", "most"), [(4, 1.0), (20, 0.985)])
def test_intervals_of_a_difference_cover(instances, most):
    """With four instances they are too wide, which is the safe side."""
    rng = np.random.default_rng(9)
    found = []
    for seed in range(250):
        a, b = draw_board(rng, 2, 0.0, instances)
        found.append(paired_comparison(a, b, seed=seed, num_resamples=200).difference)
    assert 0.92 <= coverage(found, 0.0) <= most


@pytest.mark.parametrize(
    ("spacing", "most"), [(0.03, 10), (0.15, 18)], ids=["close board", "all others told apart"]
)
def test_a_method_under_two_names_is_better_than_itself_on_one_board_in_twenty_at_most(
    spacing, most
):
    """Rows are compared with the row below them, p-values doubled since the scores order them.

    Where all others are told apart, Holm leaves the twins at 5 %, of which 200 boards have up to
    18 by chance (99 %).
    """
    rng = np.random.default_rng(11)
    errors = 0
    for _ in range(200):
        board = draw_board(rng, 10, spacing, seeds=5)
        order = np.argsort(-interquartile_mean(board))
        p_values = [
            min(2 * paired_comparison(board[i], board[j], seed=0, num_resamples=100).p_value, 1.0)
            for i, j in pairwise(order)
        ]
        better = holm(p_values) < 0.05
        pairs = zip(pairwise(order), better, strict=True)
        errors += any(is_better and {*pair} == {8, 9} for pair, is_better in pairs)
    assert errors <= most


def test_holm_is_the_procedure_of_its_paper():
    """The committed numbers are of statsmodels 0.15."""
    np.testing.assert_allclose(
        holm([0.01, 0.04, 0.03, 0.005, 0.2, 0.03]), [0.05, 0.12, 0.12, 0.03, 0.2, 0.12], atol=1e-12
    )
    rng = np.random.default_rng(12)
    for count in (1, 2, 9):
        p = rng.random(count) ** 4
        for alpha in (0.01, 0.05, 0.2):
            refused = set()
            for step, index in enumerate(np.argsort(p)):
                if p[index] > alpha / (count - step):
                    break
                refused.add(index)
            assert set(np.flatnonzero(holm(p) <= alpha)) == refused
    assert holm([]).shape == (0,)


@pytest.mark.parametrize(("seeds", "alpha", "power"), [(5, 0.05, 0.8), (10, 0.01, 0.9)])
def test_the_minimum_detectable_difference_is_found_as_often_as_stated(seeds, alpha, power):
    rng = np.random.default_rng(13)
    sample = rng.normal(size=seeds)
    sample /= sample.std(ddof=1)
    difference = minimum_detectable_difference(0.01 * sample, alpha, power)
    data = rng.normal(difference, 0.01, (40_000, seeds))
    found = stats.ttest_1samp(data, 0.0, axis=1, alternative="greater").pvalue < alpha
    assert np.mean(found) == pytest.approx(power, abs=0.01)


def test_equal_differences_detect_everything():
    assert minimum_detectable_difference([0.25, 0.25, 0.25]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probability_of_improvement(X, Y[:3]), "with the same instances"),
        (lambda: paired_comparison(X, Y[:, :5], seed=0), "same instances and seeds"),
        (lambda: holm([0.5, 1.5]), r"in \[0, 1\]"),
        (lambda: holm([np.nan]), r"in \[0, 1\]"),
        (lambda: minimum_detectable_difference([1.0]), "at least two"),
        (lambda: minimum_detectable_difference([1.0, 2.0], power=0.01), "alpha < power"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
