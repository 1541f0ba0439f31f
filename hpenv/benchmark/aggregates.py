"""Aggregates of scores over instances and seeds, and their intervals.

A score is (b_base - b) / (b_base - b_ref), clipped to [-1, 1.5]: 0 is the base, 1 the reference,
and higher is better. The scores of one method are an array (I, S) of I instances and S seeds.
rliable's arrays are the transpose, (runs, tasks).

The unit of every interval is the instance: it is for other instances of the same distribution. An
instance is resampled with all its seeds, because the spread of the instances' means holds the
spread of seeds already, divided by S. Resampling seeds once more inside instances counts that part
twice. Of one instance alone, the seeds are the units, and nothing is said of other instances.

References:
    Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice.
    Davison & Hinkley 1997, Bootstrap methods and their application, section 3.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # scipy.stats imports for a second

from hpenv.arrays import FloatArray, IntArray
from hpenv.benchmark.statistics import Interval

#: Smallest number of seeds for a rank.
FEWEST_SEEDS = 5

#: Reduces (..., I, S) to (...), so that all resamples are one call.
Statistic = Callable[[FloatArray], Any]


def check_seeds(num_seeds: int) -> None:
    """Refuses a rank on fewer than FEWEST_SEEDS seeds.

    Raises:
        ValueError: there are fewer.
    """
    if num_seeds < FEWEST_SEEDS:
        raise ValueError(
            f"num_seeds must be at least {FEWEST_SEEDS} for a rank; got {num_seeds}; run more seeds"
        )


def score_matrix(scores: ArrayLike, name: str = "scores") -> FloatArray:
    """Returns scores as an array (..., I, S).

    Raises:
        ValueError: they have fewer than two dimensions, are empty, or are not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim < 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must have shape (instances, seeds), not be empty, and be finite; got shape "
            f"{array.shape} with {np.count_nonzero(~np.isfinite(array))} values that are not finite"
        )
    return array


def interquartile_mean(scores: ArrayLike) -> Any:
    """Returns the mean of the middle half of all scores (IQM), rliable's `aggregate_iqm`.

    A quarter of all scores, rounded down, is cut at each end (Agarwal et al. 2021, section 4.3).

    Args:
        scores: (..., I, S).

    Returns:
        One number, or (...) of them.

    Raises:
        ValueError: scores have fewer than two dimensions, are empty, or are not finite.
    """
    array = score_matrix(scores)
    flat = array.reshape(*array.shape[:-2], -1)
    cut = flat.shape[-1] // 4
    kept = flat.shape[-1] - cut
    if cut:
        flat = np.partition(flat, (cut, kept - 1), axis=-1)
    return flat[..., cut:kept].mean(-1)


def optimality_gap(scores: ArrayLike, gamma: float = 1.0) -> Any:
    """Returns the mean distance of the scores below `gamma`, rliable's `aggregate_optimality_gap`.

    gamma - mean(min(score, gamma)); lower is better (Agarwal et al. 2021, section 4.3).

    Args:
        scores: (..., I, S).
        gamma: score from which more is worth nothing; 1 is the reference.

    Returns:
        One number, or (...) of them.

    Raises:
        ValueError: scores have fewer than two dimensions, are empty, or are not finite.
    """
    return gamma - np.minimum(score_matrix(scores), gamma).mean((-1, -2))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> FloatArray:
    """Returns the fraction of all scores above each threshold, rliable's score distribution.

    The curve of Agarwal et al. 2021, section 4.2, after Dolan & More 2002.

    Args:
        scores: (I, S).
        thresholds: (K,).

    Returns:
        Fractions, (K,), which fall as the threshold rises.

    Raises:
        ValueError: scores have fewer than two dimensions, are empty, or are not finite.
    """
    ordered = np.sort(score_matrix(scores), axis=None)
    at_most = np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="right")
    return 1.0 - at_most / ordered.size


def units_of(scores: FloatArray) -> FloatArray:
    """Returns the scores with one row per unit of resampling: (I, S), of one instance (S, 1)."""
    units = scores.T if scores.ndim == 2 and len(scores) == 1 else scores
    if units.ndim != 2 or len(units) < 2:
        raise ValueError(
            "scores must have shape (instances, seeds), with two instances or two seeds at least; "
            f"got {scores.shape}"
        )
    return units


def resampled_units(num_units: int, num_resamples: int, seed: int) -> IntArray:
    """Returns the units of every bootstrap sample, (num_resamples, num_units)."""
    return np.random.default_rng(seed).integers(num_units, size=(num_resamples, num_units))


def _jackknife(statistic: Statistic, units: FloatArray) -> FloatArray:
    """Returns the mean minus the statistic without each unit, (U,), high where it raises it."""
    count = len(units)
    others = (np.arange(count)[:, None] + np.arange(1, count)) % count  # (U, U - 1)
    values = np.asarray(statistic(units[others]), dtype=np.float64)
    return values.mean() - values


def _freedom(influence: FloatArray) -> float:
    """Returns the degrees of freedom of a variance, from the kurtosis of U jackknife influences.

    2 U / (kurtosis - 1), between 2 and U - 1 (with two units, 1): a variance that few units carry
    is known less well. Satterthwaite 1946, with the kurtosis that is in the sample.
    """
    count, variance = len(influence), (influence**2).mean()
    kurtosis = (influence**4).mean() / variance**2 if variance > 0.0 else 3.0
    return min(count - 1.0, max(2.0, 2.0 * count / max(kurtosis - 1.0, 1e-9)))


def _corrected_levels(
    bootstrap: FloatArray, estimate: float, influence: FloatArray, tail: float
) -> FloatArray:
    """Returns the probabilities of both ends, (2,), corrected for bias and skewness.

    References:
        Efron 1987, Better bootstrap confidence intervals (BCa).
    """
    below = (bootstrap < estimate).mean() + 0.5 * (bootstrap == estimate).mean()
    bias = special.ndtri(np.clip(below, 0.001, 0.999))
    spread = (influence**2).sum() ** 1.5
    skew = (influence**3).sum() / (6.0 * spread) if spread > 0.0 else 0.0
    shift = bias + special.ndtri([tail, 1.0 - tail])
    return special.ndtr(bias + shift / np.maximum(1.0 - skew * shift, 0.1))


def hierarchical_interval(
    statistic: Statistic,
    scores: ArrayLike,
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Returns a statistic of one method with its bootstrap interval over instances.

    Instances are resampled with all their seeds. The BCa quantiles of the resampled statistic are
    stretched away from the estimate by sqrt(U / (U - 1)) t / z for U units, with the t of
    `_freedom`: a sample of U units has too small a spread, and an unknown one. The ends may lie a
    little outside the range of a score.

    Coverage of 95 % intervals at 20 instances and 10 seeds, over five simulated distributions
    (1500 data sets each): IQM 94.9 to 96.3 %, optimality gap 92.5 to 95.5 %. The percentile
    bootstrap of instances covers 92.0 to 94.8 % and 84.3 to 92.8 %. If it resamples seeds, too, it
    covers 93 % where instances differ and 97 % where seeds do. BCa alone covers 90 to 92 % of IQMs.
    The bootstrap-t has no useful width with four instances.

    Args:
        statistic: reduces (..., I, S) to (...), as `interquartile_mean` and `optimality_gap` do.
        scores: (I, S). Of one instance, (1, S), the seeds are resampled.
        seed: of the resampling.
        num_resamples: number of bootstrap samples.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The statistic of `scores` and both ends.

    Raises:
        ValueError: there is one score alone, one is not finite, or confidence is out of range.

    References:
        Davison & Hinkley 1997, section 3.8 (clusters are resampled whole); Efron 1987 (BCa);
        Hesterberg 2015, What teachers should know about the bootstrap (the factor, there on the
        probabilities).
    """
    units = units_of(score_matrix(scores))
    estimate = float(statistic(units))
    samples = units[resampled_units(len(units), num_resamples, seed)]  # (B, U, S)
    bootstrap = np.asarray(statistic(samples), dtype=np.float64)

    influence = _jackknife(statistic, units)
    tail = tail_of(confidence)
    ends = np.quantile(bootstrap, _corrected_levels(bootstrap, estimate, influence, tail))

    ratio = special.stdtrit(_freedom(influence), tail) / special.ndtri(tail)
    stretch = ratio * np.sqrt(len(units) / (len(units) - 1.0))
    low, high = estimate + stretch * (ends - estimate)
    return Interval(estimate, min(estimate, float(low)), max(estimate, float(high)))


def tail_of(confidence: float) -> float:
    """Returns the probability beyond one end of an interval.

    Raises:
        ValueError: confidence is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}")
    return 0.5 - confidence / 2.0
