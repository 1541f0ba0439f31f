"""ASHA and PBT of Ray Tune on tiny runs: what they spend, find, and leave behind."""

import importlib
import importlib.util
import json

import pytest

from baselines import ray_searches
from baselines.field import Search, Tuned, tune
from baselines.methods import BOUNDS, FIELD
from baselines.ray_searches import ASHA_PARTS
from baselines.searches import RUNS, SEARCHES
from baselines.trials import Trials, tuning_seeds
from tests.hpenv.benchmark.tiny_suite import tiny_suite

INSTANCE = tiny_suite().test[0]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[tune]")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two searches of each kind with one seed."""
    found = {}
    for name in ("asha", "pbt"):
        for copy in ("first", "second"):
            search = Search(name, INSTANCE, tmp_path_factory.mktemp(copy))
            tune(search)
            found[name, copy] = search
    return found


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("name", ["asha", "pbt"])
def test_a_search_is_a_function_of_its_seed(name, files):
    first, second = (files[name, copy].file.read_text() for copy in ("first", "second"))
    assert first == second


@pytest.mark.slow
@needs_ray
def test_asha_stops_most_of_its_runs_and_spends_no_more_than_the_budget(files):
    found = json.loads(files["asha", "first"].file.read_text())
    losses = [point[-1] for point in found["points"]]
    whole = [place for place, part in enumerate(found["fractions"]) if part == 1.0]
    assert len(losses) > RUNS > len(whole) > 0
    assert RUNS - 2 / ASHA_PARTS < found["runs"] <= RUNS
    assert found["runs"] == pytest.approx(sum(found["fractions"]))
    best = min(whole, key=losses.__getitem__)
    assert list(found["point"].values()) == found["points"][best][:-1]
    assert replay(files["asha", "first"], found) == losses[best]


@pytest.mark.slow
@needs_ray
def test_the_lineage_of_pbts_best_member_ends_where_that_member_does(files):
    found = json.loads(files["pbt", "first"].file.read_text())
    assert found["runs"] == RUNS and len(found["points"]) * len(found["seeds"]) == RUNS
    best = min(found["points"], key=lambda point: point[-1])
    assert list(found["point"].values()) == best[:-1]
    assert replay(files["pbt", "first"], found) == pytest.approx(best[-1], abs=1e-4)
    assert len({tuple(point[:1]) for point in found["points"]}) < len(found["points"])  # copies
    for point in found["points"]:
        assert all(BOUNDS[0] <= rate <= BOUNDS[1] * (1 + 1e-9) for rate in point[:-1])


@pytest.mark.slow
@needs_ray
def test_rows_need_the_file_alone(files, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", None)
    search = files["pbt", "first"]
    tuned = Tuned("pbt", search.folder)
    assert tuned.arguments(INSTANCE)["schedule"]["name"] == "piecewise_constant"
    assert tuned.costs_on([INSTANCE])["tuning"] == RUNS


def replay(search, found):
    baseline = FIELD[search.name]
    return Trials(INSTANCE, tuple(found["seeds"]), baseline.arguments)(found["point"])


def test_without_ray_the_error_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(ray_searches.importlib, "import_module", missing)
    baseline = FIELD["asha"]
    loss = Trials(INSTANCE, tuple(tuning_seeds(INSTANCE, 1)), baseline.arguments)
    for name in ("asha", "pbt"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'hpenv\[ray\]'"):
            SEARCHES[name].find(loss, baseline.start, BOUNDS, RUNS, 0)
