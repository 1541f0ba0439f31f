"""The searches of the tuned baselines, on bowls whose optimum is known; that of a real run at a tiny size."""

import json
import math

import pytest

from baselines.tuning import SEARCHES, is_interior, spend, tune

OPTIMUM = {"lr": 0.037, "decay": 5.0}


def bowl(point, optimum=OPTIMUM):
    return sum(math.log(point[name] / value) ** 2 for name, value in optimum.items())


def test_a_search_spends_all_its_points_and_ends_beside_the_optimum_inside_what_it_tried():
    best, table = spend(bowl, {"lr": 1.0, "decay": 1.0}, 30)
    assert len(table) == 30 and len({json.dumps(entry["point"]) for entry in table}) == 30
    assert min(entry["score"] for entry in table) == bowl(best)
    assert is_interior(best, table)
    for name, value in best.items():  # finer than one factor of two
        assert abs(math.log2(value / OPTIMUM[name])) < 0.3


def test_a_search_that_ends_at_the_edge_of_what_it_tried_is_refused():
    with pytest.raises(ValueError, match=r"num_points=6 must be more: both sides of the best point .*'lr'"):
        spend(lambda point: bowl(point, {"lr": 1e-4}), {"lr": 1.0}, 6)
    assert not is_interior({"lr": 1.0}, [{"point": {"lr": 1.0}}, {"point": {"lr": 2.0}}])


def test_a_flat_direction_ends_inside_too():
    best, table = spend(lambda point: bowl(point, {"lr": 0.5}), {"lr": 1.0, "decay": 1.0}, 20)
    assert best["decay"] == 1.0 and is_interior(best, table) and len(table) == 20


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
    """Of real runs of six steps; so few points rarely end inside, and are refused if they do not."""
    kwargs = {"num_steps": 6, "interval": 3, "batch_tokens": 64, "sequence_length": 32, "data": "synthetic"}
    try:
        found, extra = tune(name, kwargs, [5, 6], 12)
    except ValueError as error:
        assert "num_points=12 must be more" in str(error)
        return
    scores = [entry["score"] for entry in extra["table"]]
    assert extra["interior"] and extra["runs_spent"] == 24 and len(scores) == 12
    assert min(scores) <= scores[0] and {"base_lr", "base_weight_decay", "schedule"} <= set(found)
