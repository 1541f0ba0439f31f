"""Timing in alternating rounds: the ratio of what is measured side by side outlives a machine that drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call [s]."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times of each function over alternating rounds, after one round that is not counted [s]."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Median, smallest and largest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
