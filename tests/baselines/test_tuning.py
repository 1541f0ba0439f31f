"""Tests of the searches of the tuned baselines, on bowls with a known optimum and on tiny runs."""

import json
import math

import numpy as np
import pytest

from baselines.tuning import (
    SEARCHES,
    OpenSearchError,
    closed_search,
    neighbors,
    spend,
    tune,
)

OPTIMUM = {"lr": 0.037, "decay": 5.0}


def bowl(point, optimum=OPTIMUM):
    return sum(math.log(point[name] / value) ** 2 for name, value in optimum.items())


def test_a_search_spends_all_its_points_and_ends_beside_the_optimum_inside_what_it_tried():
    best, table, around = spend(bowl, {"lr": 1.0, "decay": 1.0}, 30)
    assert len(table) == 30 and len({json.dumps(entry["point"]) for entry in table}) == 30
    assert min(entry["score"] for entry in table) == bowl(best)
    for name, (low, high) in around.items():
        assert low < best[name] < high
        assert all(bowl({**best, name: end}) >= bowl(best) for end in (low, high))
    assert set(around) == set(best)
    for name, value in best.items():  # finer than one factor of two
        assert abs(math.log2(value / OPTIMUM[name])) < 0.3


def test_a_search_that_ends_at_the_edge_of_what_it_tried_is_refused():
    with pytest.raises(
        ValueError, match=r"num_points must be enough.*got 6, .* at the edge in .*'lr'"
    ):
        spend(lambda point: bowl(point, {"lr": 1e-4}), {"lr": 1.0}, 6)
    assert neighbors({"lr": 1.0}, [{"point": {"lr": 1.0}}, {"point": {"lr": 2.0}}], []) == {}


def test_values_tried_elsewhere_say_nothing_of_a_points_sides():
    """Lower and higher values of `a` were tried, but with another `b`."""
    points = [{"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 2.0}, {"a": 2.0, "b": 2.0},
              {"a": 1.0, "b": 0.5},
              {"a": 1.0, "b": 2.0}]  # fmt: skip
    table = [{"point": point} for point in points]
    assert neighbors(points[0], table, []) == {"b": [0.5, 2.0]}
    assert neighbors({"a": 1.2, "b": 1.8}, table, []) == {}
    # Inside the box of a center with all neighbors, those count. At its rim or outside of it,
    # they do not.
    table.append({"point": {"a": 1.0, "b": 4.0}})
    center = ({"a": 1.0, "b": 2.0}, 2.0)
    assert neighbors({"a": 1.2, "b": 1.8}, table, [center]) == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert neighbors({"a": 2.0, "b": 1.8}, table, [center]) == {}


@pytest.mark.parametrize(("optimum", "curvature"), [
    ({"a": 21.5, "b": 1.0}, 0.05), ({"a": 0.25, "b": 10.0, "c": 2.0}, 0.03),
    ({"a": 4.0, "b": 1.0, "c": 1.0, "d": 0.25}, 0.015),
])  # fmt: skip
def test_a_noisy_search_of_the_size_in_use_ends_inside(optimum, curvature):
    """Curvature and noise [nats] have the size of those in hand_tuned.json."""
    for seed in range(100):
        noise = np.random.default_rng(seed)

        def score(point, noise=noise):
            octaves = [math.log2(point[name] / value) for name, value in optimum.items()]
            return curvature * float(np.square(octaves).sum()) + 0.002 * noise.normal()

        best, table, around = spend(score, dict.fromkeys(optimum, 1.0), 32)
        assert len(table) == 32 and set(around) == set(optimum)
        assert all(low < best[name] < high for name, (low, high) in around.items())


def test_a_flat_direction_ends_inside_too():
    best, table, around = spend(
        lambda point: bowl(point, {"lr": 0.5}), {"lr": 1.0, "decay": 1.0}, 20
    )
    assert (
        best["decay"] == 1.0 and around["decay"][0] < 1.0 < around["decay"][1] and len(table) == 20
    )


def test_a_flat_tail_is_not_followed_beyond_the_tolerance():
    """A decay towards 0 helps less and less.

    Without a tolerance, the search follows it to its last point.
    """

    def score(point):
        return bowl({"lr": point["lr"]}, {"lr": 0.5}) + 0.01 * point["decay"]

    best, table, _ = spend(score, {"lr": 1.0, "decay": 0.01}, 20, tolerance=1e-3)
    assert best["decay"] == 0.01 and len(table) == 20
    with pytest.raises(ValueError, match=r"num_points must be enough.*got 20, .*'decay'"):
        spend(score, {"lr": 1.0, "decay": 0.01}, 20)


def test_a_search_goes_on_from_its_log(tmp_path):
    counted = []

    def score(point):
        counted.append(point)
        if len(counted) == 9:
            raise KeyboardInterrupt
        return bowl(point)

    log, start = tmp_path / "log.jsonl", {"lr": 1.0, "decay": 1.0}
    with pytest.raises(KeyboardInterrupt):
        spend(score, start, 25, log)
    again = spend(score, start, 25, log)
    assert len(counted) == 26 and again == spend(bowl, start, 25)
    with pytest.raises(ValueError, match="log of the search"):
        spend(score, start, 25, log, {"other": 1})


@pytest.mark.parametrize("name", SEARCHES)
def test_a_tuned_baseline_is_as_good_as_its_start_on_the_tuning_seeds(name):
    """The runs have six steps.

    Searches of so few points rarely end inside, and are then refused.
    """
    kwargs = {
        "num_steps": 6,
        "interval": 3,
        "batch_tokens": 64,
        "sequence_length": 32,
        "data": "synthetic",
    }
    try:
        found, extra = tune(name, kwargs, [5, 6], 12)
    except ValueError as error:
        assert "num_points must be enough" in str(error)
        return
    scores = [entry["score"] for entry in extra["table"]]
    assert extra["interior"] and extra["runs_spent"] == 24 and len(scores) == 12
    assert min(scores) <= scores[0] and {"base_lr", "base_weight_decay", "schedule"} <= set(found)


def test_a_search_with_an_untried_side_gets_more_points():
    counts = []

    def search(count):
        counts.append(count)
        if count < 60:
            raise OpenSearchError("open")
        return {}, [], {}

    assert closed_search(search, 40) == ({}, [], {}) and counts == [40, 50, 60]
    with pytest.raises(OpenSearchError):
        closed_search(search, 20)
    assert counts[3:] == [20, 30, 40]
