"""Rounds, and intervals of ratios of times."""

import math

import numpy as np
import pytest

from speed import timing
from speed.timing import ratio


def _ratios(values):
    return ratio({"a": list(values), "b": [1.0] * len(values)}, "a", "b")


def test_few_rounds_have_their_range_as_the_interval():
    found = _ratios([1.3, 1.1, 1.2])
    assert found == {"median": 1.2, "low": 1.1, "high": 1.3, "min": 1.1, "max": 1.3}


def test_the_interval_of_many_rounds_covers_the_true_median_and_leaves_out_extremes():
    rng = np.random.default_rng(0)
    found = [_ratios(np.exp(rng.normal(size=40))) for _ in range(1000)]
    covers = np.mean([each["low"] <= 1.0 <= each["high"] for each in found])
    assert 0.94 < covers < 0.99
    assert all(each["min"] < each["low"] < each["high"] < each["max"] for each in found)


@pytest.mark.parametrize(("limit", "rounds"), [(-1.0, timing.LEAST_ROUNDS), (math.inf, 9)])
def test_rounds_end_at_the_limit_once_there_are_a_few(limit, rounds, monkeypatch):
    monkeypatch.setattr(timing, "LIMIT_SECONDS", limit)
    times = timing.alternate({"a": list, "b": list}, 9)
    assert {name: len(own) for name, own in times.items()} == {"a": rounds, "b": rounds}
