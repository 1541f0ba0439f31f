"""Timing in alternating rounds. The ratio of two times is robust to drifts of a machine's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from scipy import special

#: Rounds end after this time, once there are a few of them. All measures together then take less
#: than 20 minutes on a slow machine, too.
LIMIT_SECONDS = 15.0
LEAST_ROUNDS = 6


def seconds(
    function: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Returns the time of one call [s]."""
    start = clock()
    function()
    return clock() - start


def alternate(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the times of each function over alternating rounds [s]. A first round is dropped.

    Args:
        functions: name -> function.
        rounds: largest number of rounds. There are fewer, but LEAST_ROUNDS, after LIMIT_SECONDS.
        clock: the wall clock is the default. `time.process_time` leaves out what other programs
            take.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    start = time.monotonic()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.monotonic() - start > LIMIT_SECONDS:
            break
        for name, function in functions.items():
            times[name].append(seconds(function, clock))
    return times


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Returns the median ratio over the rounds, its 95 % interval, and the extremes.

    The interval is that of two order statistics. With six to eight rounds it is the range. With
    fewer, the range covers less.
    """
    ratios = sorted(a / b for a, b in zip(times[above], times[below], strict=True))
    count = len(ratios)
    # Largest k for which k ratios at most lie below the true median with probability 2.5 % at most.
    k = max(
        (k for k in range(count // 2) if special.bdtr(k, count, 0.5) <= 0.025),
        default=0,
    )
    return {
        "median": statistics.median(ratios),
        "low": ratios[k],
        "high": ratios[count - 1 - k],
        "min": ratios[0],
        "max": ratios[-1],
    }
