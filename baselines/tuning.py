"""Searches of the tuned baselines: every one has a search of its own, of as many runs, whose best
point lies inside.

A search goes through its coordinates by factors of two until no move helps, then by smaller and
smaller ones until its points are spent. It looks at the probe loss alone, on tuning seeds. A search
that ends where it has not tried both sides of its best point raises: the optimum of a baseline that
is reported lies within what was tried.
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
#: A move must lower the mean probe loss by more than this [nats per token], less than a twentieth
#: of a percent: without it a search follows a flat tail, such as that of a decay towards 0, to its
#: end.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Search:
    """What is searched for a baseline.

    Attributes:
        start: coordinate -> value that the search begins with, positive.
        env_kwargs: keyword arguments of the env at a point and a number of steps.
        doc: what is tuned, in words.
    """

    start: dict[str, float]
    env_kwargs: Callable[[Point, int], dict[str, Any]]
    doc: str


def _per_group(baseline: str, point: Point, num_steps: int) -> dict[str, Any]:
    """A baseline's schedule with the rates of a point."""
    lr = {
        name.removeprefix("lr/"): value for name, value in point.items() if name.startswith("lr/")
    }
    decay = dict.fromkeys(lr, 0.0) | {"matrix": point["weight_decay/matrix"]}
    return BASELINES[baseline](num_steps).env_kwargs | {"base_lr": lr, "base_weight_decay": decay}


def _uniform(point: Point, num_steps: int) -> dict[str, Any]:
    rates = {"base_lr": point["lr"], "base_weight_decay": point["weight_decay"]}
    return BASELINES["constant_warmdown"](num_steps).env_kwargs | rates


def _scaled(point: Point, num_steps: int) -> dict[str, Any]:
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
        _scaled,
        "nanochat's rates times one factor, its schedules and Muon",
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
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, list[float]]]:
    """Searches with exactly `num_points` evaluations.

    Args:
        score: of a point; lower is better.
        start: coordinate -> value, positive.
        num_points: to evaluate.
        log: file of JSON lines; points in it are not evaluated again.
        description: what the log must agree with to be continued.
        tolerance: a move must lower the score by more than this.

    Returns:
        The point that the search ends at; every point with its score, in their order; and
        coordinate -> the next lower and the next higher value that were tried, as `neighbors` has
        them.

    Raises:
        ValueError: the points were spent before both sides of the best one were tried in every
            coordinate, or there are no more points to try.
    """
    header = {
        "search": json.loads(
            json.dumps({"start": dict(start), "description": description}, default=repr)
        )
    }
    history = read_log(log, header)
    known = {_key(line["point"]): float(line["score"]) for line in history}
    seen: list[dict[str, Any]] = []

    def cached(point: dict[str, float]) -> float:
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
            cached, best, factor=factor, max_evaluations=left, tolerance=tolerance
        )
        if not _untried(best, factor, {_key(entry["point"]) for entry in seen}):
            boxes.append((best, factor))
        fruitless = fruitless + 1 if len(seen) == before else 0
        factor = factor**0.5
    if len(seen) < num_points:
        raise ValueError(
            f"num_points={num_points} must be at most {len(seen)}: a finer search finds no further point"
        )
    around = neighbors(best, seen, boxes)
    if edges := [name for name in best if name not in around]:
        raise ValueError(
            f"num_points={num_points} must be more: the best point {best} lies at the edge of what was tried in "
            f"{edges} when they were spent; begin nearer to it, or give more points"
        )
    return best, seen, around


def _key(point: Point) -> tuple[tuple[str, float], ...]:
    """A point, as it is told from others: to nine digits."""
    return tuple((name, float(f"{value:.9g}")) for name, value in sorted(point.items()))


def _untried(best: Point, factor: float, tried: set[tuple[tuple[str, float], ...]]) -> list[str]:
    """Coordinates of which a neighbour of the best point was not tried."""
    return [
        name
        for name, value in best.items()
        if not {_key({**best, name: value * factor}), _key({**best, name: value / factor})} <= tried
    ]


def neighbors(
    best: Point, table: Sequence[Mapping[str, Any]], boxes: Sequence[tuple[Point, float]]
) -> dict[str, list[float]]:
    """Coordinate -> the next lower and the next higher value that were tried with all other
    coordinates as they are.

    They are those of the best point. Where it lacks one, they are those of a point with both
    neighbors in every coordinate, no better than it, between which the best point lies. A
    coordinate without such values is left out.

    Args:
        best: no point of the table is better.
        table: every point that was tried.
        boxes: points of which both neighbors were tried in every coordinate, and the factor to
            them; smallest last.
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
            below, above = (
                [e for e in line if e < value * (1 - 1e-9)],
                [e for e in line if e > value * (1 + 1e-9)],
            )
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
        seeds: one run of every point for each.
        num_points: points of the search.
        log: file to resume from.

    Returns:
        Keyword arguments of the env at the best point; and `chosen` (the point), `table` (every
        point with its `score`, the mean probe loss [nats per token]), `interior` (always True),
        `neighbors`, `runs_spent`.

    Raises:
        ValueError: see `spend`.
    """
    search, num_steps = SEARCHES[name], int(env_kwargs["num_steps"])

    def score(point: Point) -> float:
        population = Population({**env_kwargs, **search.env_kwargs(point, num_steps)}, len(seeds))
        return float(
            population.play(np.zeros((len(seeds), *population.shape)), seeds).probe_losses.mean()
        )

    described = {"baseline": name, "env_kwargs": dict(env_kwargs), "seeds": list(seeds)}
    best, table, around = spend(score, search.start, num_points, log, described, TOLERANCE)
    extra = {
        "chosen": best,
        "table": table,
        "interior": True,
        "neighbors": around,
        "runs_spent": num_points * len(seeds),
    }
    return {**env_kwargs, **search.env_kwargs(best, num_steps)}, extra
