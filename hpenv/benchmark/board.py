"""The board: scores of all methods on a suite, with intervals, comparisons and costs.

The score of a run is (b_base - b) / (b_base - b_ref). b is its held-out loss at the end, b_base
that of the same seed without a controller, and b_ref that of the instance's tuned reference. 0 is
off, 1 is the reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.aggregates import (
    FEWEST_SEEDS,
    hierarchical_interval,
    interquartile_mean,
    optimality_gap,
)
from hpenv.benchmark.comparisons import (
    PairedComparison,
    holm,
    minimum_detectable_difference,
    paired_comparison,
)
from hpenv.benchmark.instances import Suite
from hpenv.benchmark.methods import OFF, REFERENCE
from hpenv.benchmark.references import Reference
from hpenv.benchmark.statistics import Interval

#: Bounds of a score in aggregates. A diverged run gets the lowest.
LOWEST, HIGHEST = -1.0, 1.5
#: Scores of plants of which a lower one is better.
LOWER_IS_BETTER = ("bpb",)
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


Rows = Sequence[Mapping[str, Any]]


def make_board(
    suite: Suite,
    rows: Rows,
    references: Mapping[str, Reference],
    *,
    num_seeds: int | None = None,
    overheads: Mapping[str, float] | None = None,
) -> Board:
    """Returns the board of a suite's test instances.

    Args:
        suite: the suite.
        rows: rows of any methods, `off` among them. Rows of other suites, instances and seeds are
            left out.
        references: digest of an instance -> its reference.
        num_seeds: seeds of every instance. None: those of the suite.
        overheads: method -> time of a run over that of `off`, less 1.

    Raises:
        ValueError: rows of `off` or a reference are missing, or a reference is no better or worse
            than `off`.
    """
    count = suite.num_seeds if num_seeds is None else num_seeds
    if not 1 <= count <= suite.num_seeds:
        raise ValueError(f"num_seeds must be from 1 to {suite.num_seeds}; got {count}")
    places: dict[tuple[str, int], tuple[int, int]] = {}
    for i, instance in enumerate(suite.test):
        seeds = suite.seeds(instance)[:count]
        places |= {(instance.digest, seed): (i, s) for s, seed in enumerate(seeds)}
    kept = [
        row
        for row in rows
        if row["suite"] == suite.name and (row["instance_digest"], row["seed"]) in places
    ]
    scales = _Scales(suite, kept, references, count)

    standings, unfinished = [], []
    for method in dict.fromkeys(row["method"] for row in kept):
        own = _rows_by_place(_of(kept, method), places)
        if len(own) < len(places):
            unfinished.append(f"{method} ({len(own)} of {len(places)} rows)")
        elif method != REFERENCE:
            shape = (len(suite.test), count)
            standings.append(_standing(method, own, shape, scales, (overheads or {}).get(method)))

    compared = _compare(sorted(standings, key=lambda standing: standing.score.mean))
    pairs = [standing.scores for standing in compared if standing.method != OFF]
    return Board(
        suite,
        count,
        tuple(instance.name for instance in suite.test),
        compared,
        scales.base,
        scales.reference,
        _detectable(pairs, len(suite.test)),
        tuple(unfinished),
        _facts(kept),
    )


def _rows_by_place(
    rows: Rows, places: Mapping[tuple[str, int], tuple[int, int]]
) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Returns one row per place of a method. Of rows from blocks of two sizes, the larger counts.

    Raises:
        ValueError: the rows are of two controllers.
    """
    if len({row["controller_digest"] for row in rows}) > 1:
        raise ValueError(
            f"rows of {rows[0]['method']!r} must be of one controller; got those of "
            f"{sorted({row['controller_digest'] for row in rows})}; remove one of them"
        )
    ordered = sorted(rows, key=lambda row: row["block_size"])
    return {places[row["instance_digest"], row["seed"]]: row for row in ordered}


class _Scales:
    """The two ends of the scale of every instance, per text: `off` and the reference."""

    def __init__(
        self, suite: Suite, rows: Rows, references: Mapping[str, Reference], count: int
    ) -> None:
        self._off = {
            (row["instance_digest"], row["seed"], row["corpus"]): row for row in _of(rows, OFF)
        }
        self._reference: dict[tuple[str, str], float] = {}
        for row in rows:
            key = row["instance_digest"], row["corpus"]
            if key not in self._reference:
                self._reference[key] = _reference(*key, rows, references)

        self.base = np.full(len(suite.test), np.nan)
        self.reference = np.full(len(suite.test), np.nan)
        for i, instance in enumerate(suite.test):
            corpora = [row["corpus"] for row in rows if row["instance_digest"] == instance.digest]
            if corpora:  # one's own rows come first
                self.base[i] = self._base(instance.digest, corpora[0])
                self.reference[i] = self._reference[instance.digest, corpora[0]]

    def _base(self, digest: str, corpus: str) -> float:
        values = [
            row["final"]
            for (other, _, text), row in self._off.items()
            if (other, text) == (digest, corpus) and not _has_diverged(row)
        ]
        return float(np.mean(values)) if values else np.nan

    def score(self, row: Mapping[str, Any]) -> float:
        """Returns the clipped score of a row."""
        if _has_diverged(row):
            return LOWEST
        digest, corpus = row["instance_digest"], row["corpus"]
        off = self._off.get((digest, row["seed"], corpus))
        if off is None:
            raise ValueError(
                f"every row must have a row of {OFF!r} with its seed and text; {row['method']} on "
                f"{row['instance']} with seed {row['seed']} has none; run the method {OFF!r}, "
                "after removing its rows if they are of another text"
            )
        base = self._base(digest, corpus)
        span = base - self._reference[digest, corpus]
        if not span * (1.0 if row["score"] in LOWER_IS_BETTER else -1.0) > 0.0:
            raise ValueError(
                f"the reference of {row['instance']} must be better than {OFF!r}; got "
                f"{self._reference[digest, corpus]:.4g} and {base:.4g}"
            )
        start = base if _has_diverged(off) else off["final"]
        return float(np.clip((start - row["final"]) / span, LOWEST, HIGHEST))


def _reference(digest: str, corpus: str, rows: Rows, references: Mapping[str, Reference]) -> float:
    """Returns the reference on a text: the frozen one, or the median of rows that ran it here."""
    frozen = references.get(digest)
    if frozen is not None and frozen.corpus == corpus:
        return frozen.value
    values = [
        row["final"]
        for row in _of(rows, REFERENCE)
        if (row["instance_digest"], row["corpus"]) == (digest, corpus) and not _has_diverged(row)
    ]
    if not values:
        raise ValueError(
            f"the instance {digest} has no reference on the text {corpus[:12]}; "
            f"run the method {REFERENCE!r}, or make it with: python -m baselines.references"
        )
    return float(np.median(values))


def _has_diverged(row: Mapping[str, Any]) -> bool:
    return row["divergence_reason"] is not None or row["final"] is None


def _of(rows: Rows, method: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["method"] == method]


def _standing(
    method: str,
    rows: Mapping[tuple[int, int], Mapping[str, Any]],
    shape: tuple[int, int],
    scales: _Scales,
    overhead: float | None,
) -> Standing:
    values, scores = np.full(shape, np.nan), np.zeros(shape)
    for place, row in rows.items():
        values[place] = np.nan if _has_diverged(row) else row["final"]
        scores[place] = scales.score(row)

    costs = next(iter(rows.values()))["costs"]
    return Standing(
        method,
        values,
        scores,
        hierarchical_interval(interquartile_mean, scores, seed=RESAMPLING_SEED),
        hierarchical_interval(optimality_gap, scores, seed=RESAMPLING_SEED),
        None,
        None,
        False,
        False,
        int(np.isnan(values).sum()),
        {
            "meta_training": costs.get("meta_training", 0.0),
            "tuning": costs.get("tuning", 0.0),
            "overhead": overhead,
        },
    )


def _compare(standings: Sequence[Standing]) -> tuple[Standing, ...]:
    """Returns the standings with their comparisons. P-values are corrected over the methods."""
    off = next((standing for standing in standings if standing.method == OFF), None)
    others = [None if off is standing else off for standing in standings]
    against_off = _comparisons(standings, others, sides=1)
    # The scores decide which of two neighbors stands above, so their test has two sides.
    against_above = _comparisons(standings, [None, *standings[:-1]], sides=2)
    return tuple(
        replace(
            standing,
            against_off=first[0],
            better_than_off=first[1],
            against_above=second[0],
            better_than_above=second[1],
        )
        for standing, first, second in zip(standings, against_off, against_above, strict=True)
    )


def _comparisons(
    standings: Sequence[Standing], others: Sequence[Standing | None], sides: int
) -> list[tuple[PairedComparison | None, bool]]:
    found = [
        None
        if other is None
        else paired_comparison(standing.scores, other.scores, seed=RESAMPLING_SEED)
        for standing, other in zip(standings, others, strict=True)
    ]
    p_values = [min(1.0, sides * each.p_value) for each in found if each is not None]
    corrected = list(holm(p_values)) if p_values else []
    return [(each, each is not None and bool(corrected.pop(0) < SIGNIFICANCE)) for each in found]


def _detectable(scores: Sequence[FloatArray], num_instances: int) -> FloatArray:
    """Returns, per instance, the median over pairs of neighbors of the detectable difference."""
    if len(scores) < 2 or scores[0].shape[1] < 2:
        return np.full(num_instances, np.nan)
    pairs = zip(scores[1:], scores[:-1], strict=True)
    found = [
        [minimum_detectable_difference(difference) for difference in better - worse]
        for better, worse in pairs
    ]
    return np.median(np.array(found), axis=0)


def _facts(rows: Rows) -> dict[str, list[Any]]:
    names = ("commit", "processor", "cpu_capability", "torch_threads", "versions", "corpus")
    found: dict[str, list[Any]] = {}
    for name in names:
        texts = dict.fromkeys(json.dumps(row[name], sort_keys=True) for row in rows)
        found[name] = [json.loads(text) for text in texts]
    return found
