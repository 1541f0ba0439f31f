"""Aggregates against rliable's numbers, and their intervals and p-values against simulations."""

import numpy as np
import pytest
from scipy import stats

from hpenv.benchmark.aggregates import (
    FEWEST_SEEDS,
    check_seeds,
    hierarchical_interval,
    interquartile_mean,
    optimality_gap,
    performance_profile,
)
from hpenv.benchmark.comparisons import (
    paired_comparison,
    probability_of_improvement,
)
from tests.hpenv.benchmark.invented_scores import X, Y, coverage

THRESHOLDS = [-0.5, 0.0, 0.3, X[1, 4], 1.0, 1.5]


def draw_scores(kind, rng, instances=20, seeds=10):
    """Scores of one method: instances differ in mean and in spread, and both ends are cut."""
    mean, between, within = {
        "middle": (0.6, 0.35, 0.15),
        "cut": (1.1, 0.7, 0.2),
        "noise": (0.8, 0.05, 0.25),
        "skew": (1.2, 0.5, 0.1),
        "divergence": (0.8, 0.3, 0.3),
    }[kind]
    shape = (instances, 1)
    effect = 1 - rng.exponential(size=shape) if kind == "skew" else rng.normal(size=shape)
    spread = within * np.exp(0.7 * rng.normal(size=shape))
    scores = mean + between * effect + spread * rng.normal(size=(instances, seeds))
    if kind == "divergence":
        is_lost = rng.random((instances, seeds)) < rng.beta(0.3, 1.7, size=shape)
        scores = np.where(is_lost, -1.0, scores)
    return np.clip(scores, -1.0, 1.5)


def percentile_interval(scores, rng, resamples, inner):
    """The plain bootstrap: instances, and with `inner` seeds inside them."""
    count, seeds = scores.shape
    i = rng.integers(count, size=(resamples, count, 1))
    s = rng.integers(seeds, size=(resamples, count, seeds)) if inner else np.arange(seeds)
    return np.quantile(interquartile_mean(scores[i, s]), [0.025, 0.975])


def test_aggregates_are_those_of_rliable_by_committed_numbers():
    """rliable 1.2.0 with numpy 2.4.6, pandas 2.3.3 and arch 7.2.0, on the transposed arrays."""
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(interquartile_mean(X), 0.5388059701492537, **close)
    np.testing.assert_allclose(interquartile_mean(X[:5, :7]), 0.4897093479968579, **close)
    np.testing.assert_allclose(optimality_gap(X), 0.4894527363184079, **close)
    np.testing.assert_allclose(optimality_gap(X, 0.5), 0.1692039800995025, **close)
    np.testing.assert_allclose(probability_of_improvement(X, Y), 0.5383333333333333, **close)
    np.testing.assert_allclose(probability_of_improvement(X, Y[:, :7]), 0.5583333333333333, **close)
    np.testing.assert_allclose(
        performance_profile(X, THRESHOLDS), [1.0, 0.85, 0.65, 0.85, 11 / 60, 0.0], **close
    )


def test_aggregates_are_those_of_rliable_where_it_is_installed():
    metrics = pytest.importorskip("rliable.metrics")  # without rliable.library: pandas 3 breaks it
    rng = np.random.default_rng(0)
    for shape in [(1, 5), (3, 1), (4, 3), (20, 10), (7, 9)]:
        x, y = rng.normal(0.5, 1.0, (2, *shape)).clip(-1, 1.5)
        assert interquartile_mean(x) == pytest.approx(metrics.aggregate_iqm(x.T), abs=1e-12)
        gap = metrics.aggregate_optimality_gap(x.T)
        assert optimality_gap(x) == pytest.approx(gap, abs=1e-12)
        better = metrics.probability_of_improvement(x.T, y.T)
        assert probability_of_improvement(x, y) == pytest.approx(better, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (4, 3), (7, 9), (20, 10)])
def test_aggregates_are_those_of_scipy_and_of_plain_loops(shape):
    x, y = np.random.default_rng(1).normal(0.5, 1.0, (2, *shape)).clip(-1, 1.5)
    assert interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None), abs=1e-12)
    gap = np.mean([max(1.0 - value, 0.0) for value in x.ravel()])
    assert optimality_gap(x) == pytest.approx(gap, abs=1e-12)
    u = [stats.mannwhitneyu(*rows).statistic / shape[1] ** 2 for rows in zip(x, y, strict=True)]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(u), abs=1e-12)
    above = [np.mean(x > threshold) for threshold in THRESHOLDS]
    np.testing.assert_allclose(performance_profile(x, THRESHOLDS), above, rtol=0, atol=1e-12)


def test_a_stack_of_arrays_gives_a_statistic_of_each():
    stack = np.random.default_rng(2).normal(size=(3, 2, 5, 4))
    for statistic in (interquartile_mean, optimality_gap):
        each = [[statistic(scores) for scores in row] for row in stack]
        np.testing.assert_array_equal(statistic(stack), each)


def test_intervals_are_reproducible_and_follow_shift_and_scale():
    interval = hierarchical_interval(interquartile_mean, X, seed=3)
    assert interval == hierarchical_interval(interquartile_mean, X, seed=3)
    assert interval != hierarchical_interval(interquartile_mean, X, seed=4)
    assert interval.mean == interquartile_mean(X)
    assert interval.low < interval.mean < interval.high
    moved = hierarchical_interval(interquartile_mean, 3 * X + 2, seed=3)
    np.testing.assert_allclose(moved, 3 * np.array(interval) + 2, rtol=1e-9)
    narrow = hierarchical_interval(interquartile_mean, X, seed=3, confidence=0.5)
    assert interval.low < narrow.low and narrow.high < interval.high


def test_equal_scores_have_an_interval_without_width_and_no_winner():
    ones = np.ones((4, 3))
    for scores in (ones, ones[:1]):
        assert hierarchical_interval(interquartile_mean, scores, seed=0) == (1, 1, 1)
        assert paired_comparison(scores, scores, seed=0) == ((0, 0, 0), 1.0, 0.5)
    assert paired_comparison(X, X, seed=0) == ((0, 0, 0), 1.0, 0.5)


@pytest.mark.parametrize("kind", ["middle", "cut", "noise", "skew", "divergence"])
def test_intervals_of_the_interquartile_mean_cover(kind):
    rng = np.random.default_rng(7)
    truth = interquartile_mean(draw_scores(kind, rng, 100_000))
    found = [
        hierarchical_interval(
            interquartile_mean, draw_scores(kind, rng), seed=seed, num_resamples=300
        )
        for seed in range(200)
    ]
    assert 0.915 <= coverage(found, truth) <= 0.985  # 1.5 % is one standard error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["middle", "cut", "noise", "skew", "divergence"])
def test_intervals_cover_in_many_simulations_and_the_plain_bootstrap_less(kind):
    rng = np.random.default_rng(8)
    population = draw_scores(kind, rng, 300_000)
    found = {interquartile_mean: [], optimality_gap: []}
    plain = []
    for seed in range(1000):
        scores = draw_scores(kind, rng)
        for statistic, intervals in found.items():
            intervals.append(hierarchical_interval(statistic, scores, seed=seed, num_resamples=500))
        plain.append(percentile_interval(scores, rng, 500, inner=False))
    truth = interquartile_mean(population)
    ours = coverage(found[interquartile_mean], truth)
    gap = coverage(found[optimality_gap], optimality_gap(population))
    percentile = np.mean([low <= truth <= high for low, high in plain])
    print(f"{kind}: IQM {ours:.3f}, percentile {percentile:.3f}, gap {gap:.3f}")
    assert 0.93 <= ours <= 0.975  # 0.7 % is one standard error
    assert 0.905 <= gap <= 0.97
    assert percentile < ours


def test_intervals_of_one_instance_cover():
    rng = np.random.default_rng(10)
    one = np.clip(rng.normal(0.6, 0.2, (400, 1, 10)), -1, 1.5)
    found = [
        hierarchical_interval(interquartile_mean, scores, seed=seed, num_resamples=400)
        for seed, scores in enumerate(one)
    ]
    assert 0.92 <= coverage(found, 0.6) <= 0.98
    a, b = np.clip(rng.normal(0.6, 0.2, (2, 1000, 1, 10)), -1, 1.5)
    pairs = [paired_comparison(*rows, seed=0).difference for rows in zip(a, b, strict=True)]
    assert 0.93 <= coverage(pairs, 0.0) <= 0.97


def test_a_rank_on_few_seeds_is_refused():
    check_seeds(FEWEST_SEEDS)
    with pytest.raises(ValueError, match="must be at least 5 for a rank; got 4"):
        check_seeds(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([1.0, 2.0]), "must have shape"),
        (lambda: optimality_gap(np.empty((0, 3))), "not be empty"),
        (lambda: interquartile_mean([[1.0, np.nan]]), "1 values that are not finite"),
        (lambda: hierarchical_interval(optimality_gap, [[1.0]], seed=0), "two seeds at least"),
        (lambda: hierarchical_interval(optimality_gap, X[None], seed=0), "must have shape"),
        (
            lambda: hierarchical_interval(optimality_gap, X, seed=0, confidence=95),
            "confidence must be in",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
