"""The searches of the benchmark's baselines, all with the same number of runs on an instance.

A search sees the probe loss of tuning seeds alone. Its result is the best point that it has tried.
Its own random numbers have a seed that is a hash of the baseline and the instance.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from baselines.ray_searches import search_asha, search_pbt
from baselines.sweeps import CMAStrategy, RandomStrategy, Strategy
from baselines.trials import Bounds, Found, Point, point_at
from baselines.tuning import TOLERANCE, spend
from hpenv.arrays import FloatArray

#: Points of a coordinate search, and runs of each.
NUM_POINTS, TUNING_SEEDS = 8, 2
#: Runs of the search of every baseline on an instance.
RUNS = NUM_POINTS * TUNING_SEEDS
#: Schedules of a generation of CMA-ES, and its first standard deviation: half a decade. On convex
#: bowls of four coordinates, a generation of 8 (the package's default) ends higher after 16 points.
CMA_ROWS, CMA_SIGMA = 4, 0.25
#: Points that Optuna's TPE samples at random, the first point among them. Its default is 10 of 16.
TPE_STARTUP = 6


@dataclass(frozen=True)
class SearchKind:
    """A kind of search.

    Attributes:
        doc: what it is.
        find: function (loss, start, bounds, budget, seed) -> Found. `loss` maps a point to its mean
            probe loss, `start` is the first point, and `budget` is a number of points.
        seeds: runs of every point.
        package: package that it needs, or "".
        extra: extra of hpenv that has the package.
    """

    doc: str
    find: Callable[..., Found]
    seeds: int = 1
    package: str = ""
    extra: str = "baselines"

    def check_package(self) -> None:
        """Checks that its package is installed.

        Raises:
            ModuleNotFoundError: naming the extra.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ModuleNotFoundError(
                f"the search by {self.doc} needs the package {self.package}; "
                f"install it with: pip install 'hpenv[{self.extra}]'"
            )


def _by_coordinate(
    loss: Callable[[Point], float], start: Point, bounds: Bounds, budget: int, seed: int
) -> Found:
    """Moves one coordinate at a time, without bounds and without random numbers."""
    best, table, around = spend(loss, start, budget, tolerance=TOLERANCE)
    entries = [(entry["point"], float(entry["score"])) for entry in table]
    return Found(best, entries, {"neighbors": around})


class TPEStrategy:
    """Optuna's sampler of tree-structured Parzen estimators, one schedule a generation.

    It starts at the center. Its coordinates are the positions of rates between their bounds.
    """

    def __init__(self, num_rows: int, shape: tuple[int, int], seed: int) -> None:
        """Makes a study in memory. A generation has one schedule, so `num_rows` must be 1."""
        import optuna

        assert num_rows == 1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(n_startup_trials=TPE_STARTUP, seed=seed)
        self._study, self._shape = optuna.create_study(sampler=sampler), shape
        self._names = [str(place) for place in range(math.prod(shape))]
        self._study.enqueue_trial(dict.fromkeys(self._names, 0.0))

    def ask(self) -> FloatArray:
        """See Strategy."""
        self._trial = self._study.ask()
        values = [self._trial.suggest_float(name, -1.0, 1.0) for name in self._names]
        return np.array(values).reshape(1, *self._shape)

    def tell(self, positions: FloatArray, returns: FloatArray) -> None:
        """See Strategy."""
        self._study.tell(self._trial, -float(returns[0]))

    def best(self) -> FloatArray:
        """See Strategy."""
        return np.array([self._study.best_params[name] for name in self._names]).reshape(
            self._shape
        )


def _by_strategy(
    make: Callable[[tuple[int, int], int], Strategy],
    loss: Callable[[Point], float],
    start: Point,
    bounds: Bounds,
    budget: int,
    seed: int,
) -> Found:
    """Asks a strategy for points until the budget is spent."""
    strategy, table = make((len(start), 1), seed), list[tuple[Point, float]]()
    while len(table) < budget:
        positions = strategy.ask()[: budget - len(table)]
        points = [point_at(each, start, bounds) for each in positions]
        losses = [loss(point) for point in points]
        table += zip(points, losses, strict=True)
        if len(table) < budget:
            strategy.tell(positions, -np.array(losses))
    return Found(min(table, key=lambda entry: entry[1])[0], table, {})


def _random(shape: tuple[int, int], seed: int) -> Strategy:
    return RandomStrategy(RUNS, shape, seed)


def _cma(shape: tuple[int, int], seed: int) -> Strategy:
    return CMAStrategy(CMA_ROWS, shape, seed, CMA_SIGMA)


def _tpe(shape: tuple[int, int], seed: int) -> Strategy:
    return TPEStrategy(1, shape, seed)


#: Name -> kind of search. Each spends RUNS runs on an instance.
SEARCHES: dict[str, SearchKind] = {
    "coordinate": SearchKind("one coordinate at a time", _by_coordinate, seeds=TUNING_SEEDS),
    "random": SearchKind("random points", partial(_by_strategy, _random)),
    "cma": SearchKind("CMA-ES", partial(_by_strategy, _cma), package="cma"),
    "tpe": SearchKind("Optuna's TPE", partial(_by_strategy, _tpe), package="optuna"),
    "asha": SearchKind("ASHA", search_asha, package="ray", extra="ray"),
    "pbt": SearchKind("PBT", search_pbt, seeds=TUNING_SEEDS, package="ray", extra="ray"),
}
