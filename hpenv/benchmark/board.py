"""The board: scores of all methods on a suite, with intervals, comparisons and costs.

The score of a run is (b_base - b) / (b_base - b_ref). b is its held-out loss at the end, b_base
that of the same seed without a controller, and b_ref that of the instance's tuned reference. 0 is
off, 1 is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.aggregates import (
    FEWEST_SEEDS,
    PairedComparison,
    hierarchical_interval,
    holm,
    interquartile_mean,
    minimum_detectable_difference,
    optimality_gap,
    paired_comparison,
)
from hpenv.benchmark.instances import Suite
from hpenv.benchmark.references import Reference
from hpenv.benchmark.rows import OFF
from hpenv.benchmark.statistics import Interval

#: Bounds of a score in aggregates. A diverged run gets the lowest.
LOWEST, HIGHEST = -1.0, 1.5
#: Seed of the resampling.
RESAMPLING_SEED = 0
#: A method is called better at a p-value below this, after Holm's correction.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Standing:
    """One method on the board.

    Attributes:
        method: its name.
        values: held-out score at the end, in the plant's unit, (I, S). NaN for a diverged run.
        scores: clipped scores, (I, S).
        score: interquartile mean of the scores, with its interval.
        optimality_gap: mean of max(0, 1 - score), with its interval.
        against_off: comparison with `off`, None for `off` itself.
        against_above: comparison with the method above it on the board, None for the first.
        better_than_off: True if it is better, after Holm's correction over the methods.
        better_than_above: likewise.
        diverged: number of runs that diverged.
        costs: `meta_training` and `tuning` [runs of an instance, by tokens], and `overhead`, time
            of a run over the time of `off` less 1, or None.
    """

    method: str
    values: FloatArray
    scores: FloatArray
    score: Interval
    optimality_gap: Interval
    against_off: PairedComparison | None
    against_above: PairedComparison | None
    better_than_off: bool
    better_than_above: bool
    diverged: int
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Board:
    """All methods on a suite, worst first, `off` among them.

    Attributes:
        suite: the suite.
        num_seeds: S, seeds of every instance.
        instances: names of the instances, (I,).
        standings: one per method, ascending by score.
        base: mean held-out score of `off`, (I,).
        reference: held-out score of the reference, (I,).
        detectable: smallest difference of two methods' scores that a test of this size finds with
            a power of 80 %, (I,), from the seed noise of the methods.
        unfinished: methods that have rows, but not all.
        facts: facts of the rows (commit, processor, versions), distinct values of each.
    """

    suite: Suite
    num_seeds: int
    instances: tuple[str, ...]
    standings: tuple[Standing, ...]
    base: FloatArray
    reference: FloatArray
    detectable: FloatArray
    unfinished: tuple[str, ...]
    facts: Mapping[str, list[Any]]

    def rank(self, method: str) -> int:
        """Returns the rank of a method, 1 for the best.

        Raises:
            ValueError: there are too few seeds, or the method has no complete rows.
        """
        if self.num_seeds < FEWEST_SEEDS:
            raise ValueError(
                f"a rank needs at least {FEWEST_SEEDS} seeds of every instance; "
                f"got {self.num_seeds}"
            )
        names = [standing.method for standing in self.standings]
        if method not in names:
            raise ValueError(f"method must be one of {names}; got {method!r}")
        return len(names) - names.index(method)
