"""The numbers of an experiment's arms, for every controller and seed, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.statistics import controllers_interval, mean_interval

Result = Mapping[str, Any]
Row = Mapping[str, Any]
#: Held-out bits per byte of a run that diverged: a uniform guess over bytes.
DIVERGED_BPB = 8.0


class Sample(NamedTuple):
    """One number of an arm, for every controller and seed.

    Attributes:
        seeds: of the runs, (S,).
        values: the numbers, (C, S). C is 1 for an arm without several controllers.
    """

    seeds: tuple[int, ...]
    values: FloatArray

    @property
    def mean(self) -> float:
        """The mean over all runs."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean, 0 of a single run."""
        count = self.values.size
        return float(self.values.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0

    def estimate(self) -> list[float]:
        """Returns the mean with the ends of its 95 % interval, or the mean alone.

        The interval is over seeds, or over the means of at least 5 controllers. Nothing is claimed
        of fewer controllers.
        """
        if len(self.values) > 1:
            interval = controllers_interval(self.values)
        else:
            interval = mean_interval(self.values) if self.values.size > 1 else None
        return [self.mean] if interval is None else [float(value) for value in interval]

    def on(self, seeds: Sequence[int]) -> FloatArray:
        """Returns the numbers of some of the seeds, (C, S)."""
        return self.values.take([self.seeds.index(seed) for seed in seeds], axis=1)

    def above(self, reference: Sample, *, relative: bool = False) -> Sample:
        """Returns the difference from a reference, paired by the seeds that both have.

        Several controllers of the reference count by their mean. If `relative`, it is a fraction of
        the reference.

        Raises:
            ValueError: they have no seed in common.
        """
        seeds = tuple(seed for seed in self.seeds if seed in reference.seeds)
        if not seeds:
            raise ValueError(
                "arms must have seeds in common to be paired; "
                f"got {self.seeds} and {reference.seeds}"
            )
        theirs = reference.on(seeds).mean(0)
        gap = self.on(seeds) - theirs
        return Sample(seeds, gap / theirs if relative else gap)

    def below(self, reference: Sample, *, relative: bool = True) -> list[float]:
        """Returns the estimate of how far this lies below a reference, see `above`."""
        gap = self.above(reference, relative=relative)
        return Sample(gap.seeds, -gap.values).estimate()


#: Key -> one number of an arm.
Scores = Mapping[str, Sample]


def samples(
    members: Sequence[Result], numbers: Callable[[Row], Mapping[str, float]]
) -> dict[str, Sample]:
    """Returns the numbers of an arm by key. Several rows of a seed count by their mean.

    Results of the same seeds are several controllers. Results of other seeds are more runs of one.

    Args:
        members: the results of the arm.
        numbers: returns key -> number of a row.

    Raises:
        ValueError: the results have some seeds in common, and others not.
    """
    tables: list[dict[int, list[Mapping[str, float]]]] = []
    for result in members:
        table: dict[int, list[Mapping[str, float]]] = {}
        for row in result["rows"]:
            table.setdefault(int(row["seed"]), []).append(numbers(row))
        tables.append(table)

    if len(set(chain.from_iterable(tables))) == sum(map(len, tables)):
        tables = [dict(chain.from_iterable(table.items() for table in tables))]
    seeds = {tuple(table) for table in tables}
    if len(seeds) > 1:
        raise ValueError(f"controllers must have the same seeds to be paired; got {sorted(seeds)}")

    found = {}
    for key in next(iter(tables[0].values()))[0]:
        values = [[_mean(key, rows) for rows in table.values()] for table in tables]
        found[key] = Sample(tuple(tables[0]), np.array(values))
    return found


def _mean(key: str, rows: Sequence[Mapping[str, float]]) -> float:
    return float(np.mean([row[key] for row in rows]))


def bits_per_byte(row: Row) -> dict[str, float]:
    """Returns the held-out bits per byte of a run under `bpb`. A diverged run has 8."""
    is_lost = row["bpb"] is None or row["divergence_reason"] is not None
    return {"bpb": DIVERGED_BPB if is_lost else float(row["bpb"])}


def bpb_arms(jobs: Mapping[str, Result]) -> dict[str, dict[str, Sample]]:
    """Returns the held-out bits per byte of every arm whose runs have them."""
    members: dict[str, list[Result]] = {}
    for name, result in jobs.items():
        if result["rows"] and "bpb" in result["rows"][0]:
            members.setdefault(arm_of(name), []).append(result)
    return {arm: samples(results, bits_per_byte) for arm, results in members.items()}


def arm_of(job: str) -> str:
    """Returns the arm of a job: its name without a number at the end."""
    stem, _, number = job.rpartition("-")
    return stem if number.isdigit() else job
