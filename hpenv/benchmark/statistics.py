"""Intervals around a number, as pure functions.

Intervals are Student's t: over seeds where one method is run on several, over controllers where
there are several, each averaged over its seeds. Lower values are better, as for losses and bits per
byte: a positive difference says that `a` lies below `b`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # scipy.stats takes a second to import

from hpenv.arrays import FloatArray

#: Smallest number of controllers for an interval. Nothing is claimed of fewer.
FEWEST_CONTROLLERS = 5


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def t_quantile(probability: float, freedom: int) -> float:
    """Returns the quantile of Student's t at a probability in [0.5, 1)."""
    if not 0.5 <= probability < 1.0 or freedom < 1:
        raise ValueError(
            "probability must be in [0.5, 1), and freedom must be >= 1; "
            f"got {probability} and {freedom}"
        )
    return float(stdtrit(freedom, probability))


def _sample(values: ArrayLike, least: int = 2) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size < least or not np.isfinite(array).all():
        raise ValueError(
            f"values must be at least {least}, all finite; got {array.size}, {array.tolist()}"
        )
    return array


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns mean and Student's t interval over n >= 2 independent values, (n,).

    There is one value per seed or per controller.
    """
    array = _sample(values).reshape(-1)
    half = (
        t_quantile(0.5 + confidence / 2.0, array.size - 1)
        * array.std(ddof=1)
        / math.sqrt(array.size)
    )
    return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = _sample(a), _sample(b)
    if first.shape != second.shape:
        raise ValueError(
            f"a and b must have one value of each per seed; got {first.shape} and {second.shape}"
        )
    return first, second


def paired_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the mean of b - a with a t interval over seeds.

    Both are (n,), in the order of the same n seeds.
    """
    first, second = _pairs(a, b)
    return mean_interval(second - first, confidence)


def paired_relative_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the fraction (b - a) / b as `paired_interval`. 0.193: `a` is 19.3 % below `b`."""
    first, second = _pairs(a, b)
    return mean_interval((second - first) / second, confidence)


def controllers_interval(matrix: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Returns the mean over controllers, with Student's t interval over their means over seeds.

    The interval is for another controller of the same training, on these seeds. A bootstrap of so
    few values is too narrow: with five values it covers 86 % instead of 95.

    Args:
        matrix: one row per controller, one column per evaluation seed, (C, S).
        confidence: coverage of the interval.

    Returns:
        The interval, or None if there are fewer than FEWEST_CONTROLLERS.

    Raises:
        ValueError: the matrix has no two dimensions, or is not finite.
    """
    array = _sample(matrix, 1)
    if array.ndim != 2:
        raise ValueError(f"matrix must have shape (controllers, seeds); got {array.shape}")
    return mean_interval(array.mean(1), confidence) if len(array) >= FEWEST_CONTROLLERS else None
