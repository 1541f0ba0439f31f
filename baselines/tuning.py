"""Searches of the tuned baselines: one search per baseline, all with the same number of runs.

A search moves its coordinates by factors of two until no move helps, then by smaller and smaller
factors until its points are spent. It sees only the probe loss on tuning seeds. It raises if its
best point has an untried side. The optimum of a reported baseline therefore lies inside the tried
values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from baselines.run import FACTOR, coordinate_search
from baselines.schedules import (
    BASE_LR,
    BASE_WEIGHT_DECAY,
    BASELINES,
    groups_of,
    nanochat_rates,
    schedule_free,
)
from baselines.sweeps import Population, read_log, write_log

Point = Mapping[str, float]
#: Points that are added to a search whose best point has an untried side.
MORE_POINTS = 10
#: What `spend` returns.
Searched = tuple[dict[str, float], list[dict[str, Any]], dict[str, list[float]]]


class OpenSearchError(ValueError):
    """The points of a search were spent before both sides of its best point were tried."""


#: A move must lower the mean probe loss by more than this [nats per token], which is less than a
#: twentieth of a percent. Without it, a search follows a flat tail to its end, such as that of a
#: decay towards 0.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Search:
    """A search space of a baseline.

    Attributes:
        start: coordinate -> initial value, positive.
        env_kwargs: function from a point and a number of steps to keyword arguments of the env.
        doc: description of the coordinates.
    """

    start: dict[str, float]
    env_kwargs: Callable[[Point, int], dict[str, Any]]
    doc: str


def _per_group(baseline: str, point: Point, num_steps: int) -> dict[str, Any]:
    """Returns a baseline's schedule with the rates of a point."""
    lr = {
        name.removeprefix("lr/"): value for name, value in point.items() if name.startswith("lr/")
    }
    decay = dict.fromkeys(lr, 0.0) | {"matrix": point["weight_decay/matrix"]}
    return BASELINES[baseline](num_steps).env_kwargs | {"base_lr": lr, "base_weight_decay": decay}


def _uniform(point: Point, num_steps: int) -> dict[str, Any]:
    rates = {"base_lr": point["lr"], "base_weight_decay": point["weight_decay"]}
    return BASELINES["constant_warmdown"](num_steps).env_kwargs | rates


def _nanochat(point: Point, num_steps: int) -> dict[str, Any]:
    baseline = BASELINES["nanochat"](num_steps).env_kwargs
    decay = baseline["base_weight_decay"] | {"matrix": point["weight_decay/matrix"]}
    lr = {group: point["factor"] * rate for group, rate in baseline["base_lr"].items()}
    return baseline | {"base_lr": lr, "base_weight_decay": decay}


def _schedule_free(reading: str, point: Point, num_steps: int) -> dict[str, Any]:
    return schedule_free(
        reading, point["lr"], point["weight_decay"], point["warmup"], num_steps, groups_of("nano")
    )


_NANOCHAT = nanochat_rates()
_GROUPS = {f"lr/{group}": rate for group, rate in _NANOCHAT["base_lr"].items()}
_GROUPS["weight_decay/matrix"] = _NANOCHAT["base_weight_decay"]["matrix"]

#: Name of a baseline -> its search.
SEARCHES: dict[str, Search] = {
    "uniform": Search(
        {"lr": BASE_LR, "weight_decay": BASE_WEIGHT_DECAY},
        _uniform,
        "one rate and one weight decay for all tensors, 40 % warmdown",
    ),
    "hand_tuned": Search(
        dict(_GROUPS), partial(_per_group, "hand_tuned"), "per-group rates, 40 % warmdown"
    ),
    "cosine": Search(dict(_GROUPS), partial(_per_group, "cosine_tuned"), "per-group rates, cosine"),
    "wsd": Search(
        dict(_GROUPS), partial(_per_group, "wsd_tuned"), "per-group rates, warmup-stable-decay"
    ),
    "nanochat": Search(
        {"factor": 1.0, "weight_decay/matrix": _GROUPS["weight_decay/matrix"]},
        _nanochat,
        "nanochat's rates times one factor, its schedules and Muon",
    ),
    "nanochat_groups": Search(
        dict(_GROUPS),
        partial(_per_group, "nanochat"),
        "per-group rates, nanochat's schedules and Muon",
    ),
    "schedule_free_sgd": Search(
        {"lr": 1.0, "weight_decay": 0.01, "warmup": 16.0},
        partial(_schedule_free, "sgd"),
        "rate, weight decay and warmup of schedule-free SGD beside Muon",
    ),
    "schedule_free_adamw": Search(
        {"lr": 0.5, "weight_decay": 0.01, "warmup": 16.0},
        partial(_schedule_free, "adamw"),
        "rate, weight decay and warmup of schedule-free AdamW beside Muon",
    ),
}


def spend(
    score: Callable[[Point], float],
    start: Point,
    num_points: int,
    log: Path | None = None,
    description: Any = None,
    tolerance: float = 0.0,
) -> Searched:
    """Searches with exactly `num_points` evaluations.

    Args:
        score: function from a point to its score. Lower is better.
        start: coordinate -> positive value.
        num_points: number of points to evaluate.
        log: file of JSON lines. Points in it are not evaluated again.
        description: description of the search. A log with another one is refused.
        tolerance: a move must lower the score by more than this.

    Returns:
        The best point, every point with its score in their order, and the `neighbors` of the best
        point.

    Raises:
        OpenSearchError: the points were spent before both sides of the best point were tried in
            every coordinate.
        ValueError: a finer search finds no further point.
    """
    header = {
        "search": json.loads(
            json.dumps({"start": dict(start), "description": description}, default=repr)
        )
    }
    history = read_log(log, header)
    known = {_key(line["point"]): float(line["score"]) for line in history}
    seen: list[dict[str, Any]] = []

    def score_once(point: dict[str, float]) -> float:
        key = _key(point)
        if key not in known:
            known[key] = float(score(point))
            history.append({"point": dict(point), "score": known[key]})
            write_log(log, [header, *history])
        if not any(_key(entry["point"]) == key for entry in seen):
            seen.append({"point": dict(point), "score": known[key]})
        return known[key]

    best, factor, fruitless = dict(start), FACTOR, 0
    boxes: list[tuple[dict[str, float], float]] = []

    while len(seen) < num_points and fruitless < 3:
        before = len(seen)
        left = num_points - before + (1 if before else 0)
        best, _ = coordinate_search(
            score_once, best, factor=factor, max_evaluations=left, tolerance=tolerance
        )
        if not _open_coordinates(best, factor, {_key(entry["point"]) for entry in seen}):
            boxes.append((best, factor))
        fruitless = fruitless + 1 if len(seen) == before else 0
        factor = factor**0.5

    if len(seen) < num_points:
        raise ValueError(
            f"num_points must be at most {len(seen)}; got {num_points}; "
            "a finer search finds no further point"
        )

    around = neighbors(best, seen, boxes)
    if edges := [name for name in best if name not in around]:
        raise OpenSearchError(
            "num_points must be enough to try both sides of the best point in every coordinate; "
            f"got {num_points}, and the best point {best} lies at the edge in {edges}; "
            "start nearer to it, or give more points"
        )

    return best, seen, around


def closed_search(search: Callable[[int], Searched], num_points: int) -> Searched:
    """Returns a search of `num_points`, or of more if its best point has an untried side.

    Raises:
        OpenSearchError: it still has one after twice as many points.
    """
    for count in range(num_points, 2 * num_points, MORE_POINTS):
        try:
            return search(count)
        except OpenSearchError:
            continue
    return search(2 * num_points)


def _key(point: Point) -> tuple[tuple[str, float], ...]:
    """Returns a hashable key of a point, with nine digits per value."""
    return tuple((name, float(f"{value:.9g}")) for name, value in sorted(point.items()))


def _open_coordinates(
    best: Point, factor: float, tried: set[tuple[tuple[str, float], ...]]
) -> list[str]:
    """Returns the coordinates in which a neighbor of the best point was not tried."""
    names = []
    for name, value in best.items():
        above, below = _key({**best, name: value * factor}), _key({**best, name: value / factor})
        if not {above, below} <= tried:
            names.append(name)
    return names


def neighbors(
    best: Point, table: Sequence[Mapping[str, Any]], boxes: Sequence[tuple[Point, float]]
) -> dict[str, list[float]]:
    """Returns, per coordinate, the next lower and the next higher value that were tried.

    All other coordinates are those of the best point. If a neighbor of the best point is missing,
    they are those of a center: a point with both neighbors in every coordinate, no better than the
    best point, whose box of neighbors contains the best point. A coordinate without such values is
    left out.

    Args:
        best: the best point of the table.
        table: every point that was tried.
        boxes: centers and the factors to their neighbors, with the smallest factor last.

    Returns:
        Coordinate -> [lower, higher].
    """
    inside = [
        center
        for center, factor in reversed(boxes)
        if all(
            center[name] / factor < value < center[name] * factor for name, value in best.items()
        )
    ]
    around: dict[str, list[float]] = {}

    for name, value in best.items():
        for source in (best, *inside):
            others = _key({**source, name: 0.0})
            line = [
                entry["point"][name]
                for entry in table
                if _key({**entry["point"], name: 0.0}) == others
            ]
            below = [other for other in line if other < value * (1 - 1e-9)]
            above = [other for other in line if other > value * (1 + 1e-9)]
            if below and above:
                around[name] = [max(below), min(above)]
                break

    return around


def tune(
    name: str,
    env_kwargs: Mapping[str, Any],
    seeds: Sequence[int],
    num_points: int,
    log: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tunes a baseline on the probe loss of tuning seeds.

    Args:
        name: key of SEARCHES.
        env_kwargs: arguments of the env that the search does not set.
        seeds: seeds of the runs of every point.
        num_points: number of points of the search.
        log: file of JSON lines. A search with a log continues from it.

    Returns:
        Keyword arguments of the env at the best point. Then `chosen` (the point), `table` (every
        point with its `score`, the mean probe loss [nats per token]), `interior` (always True),
        `neighbors` and `runs_spent`.

    Raises:
        ValueError: see `spend`.
    """
    search, num_steps = SEARCHES[name], int(env_kwargs["num_steps"])

    def score(point: Point) -> float:
        population = Population({**env_kwargs, **search.env_kwargs(point, num_steps)}, len(seeds))
        neutral = np.zeros((len(seeds), *population.shape))
        return float(population.play(neutral, seeds).probe_losses.mean())

    description = {"baseline": name, "env_kwargs": dict(env_kwargs), "seeds": list(seeds)}
    best, table, around = spend(score, search.start, num_points, log, description, TOLERANCE)
    extra = {
        "chosen": best,
        "table": table,
        "interior": True,
        "neighbors": around,
        "runs_spent": num_points * len(seeds),
    }

    return {**env_kwargs, **search.env_kwargs(best, num_steps)}, extra
