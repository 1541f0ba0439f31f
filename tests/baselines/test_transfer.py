"""Methods with one point: searched on train instances alone, scored on instances they never saw."""

import json
import pickle

import numpy as np
import pytest

from baselines import transfer
from baselines.methods import ONE_COORDINATE, Baseline
from baselines.trials import tuning_loss, tuning_seeds
from hpenv.benchmark.instances import Instance, Suite, load_suite
from hpenv.policies.controller import check_controller
from tests.hpenv.benchmark.tiny_suite import JEL, TINY

#: The train instances that a search runs are the first and the third.
SUITE = Suite(
    "made",
    "two to search on and one to score on",
    2,
    2,
    (
        Instance("one", JEL, TINY | {"num_steps": 6, "interval": 2}, "train"),
        Instance("between", JEL, TINY | {"base_lr": 77.0}, "train"),
        Instance("two", JEL, TINY | {"num_steps": 8, "optimizer": "adamw"}, "train"),
        Instance("seen-by-nobody", JEL, TINY | {"num_steps": 10}),
    ),
)
SEARCHED = SUITE.train[:: transfer.STRIDE]


@pytest.fixture
def found(tmp_path):
    transfer.search(transfer.Search("constant", SUITE, tmp_path))
    return tmp_path


def test_a_search_reads_the_train_instances_alone(found, monkeypatch):
    values = json.loads(transfer.Search("constant", SUITE, found).file.read_text())
    assert values["instances"] == [each.digest for each in SEARCHED]
    assert len(values["points"]) == transfer.points_of("constant")
    below, above = values["neighbors"]["lr"]
    assert below < values["point"]["lr"] < above

    losses = [
        tuning_loss(each, {"base_lr": values["point"]["lr"], "schedule": "none"},
                    tuning_seeds(each, 1))
        for each in SEARCHED
    ]  # fmt: skip
    assert np.mean(np.log(losses)) == min(score for _, score in values["points"])


def test_a_method_has_one_point_for_every_instance_and_counts_its_search(found):
    method = pickle.loads(pickle.dumps(transfer.method("constant", SUITE, found)))
    controller = method.load()
    check_controller(controller)
    point = controller.point(SUITE.test[0])
    assert controller.arguments(SUITE.test[0]) == {"base_lr": point["lr"], "schedule": "none"}
    assert controller.point(SUITE.train[0]) == point
    assert method.name == "constant-train"
    assert method.costs == {"meta_training": 16.0, "tuning": 0.0}


def test_a_search_that_was_stopped_goes_on(tmp_path, monkeypatch):
    calls = []

    def loss(instance, changed, seeds, controller=None):
        calls.append(changed["base_lr"])
        if len(calls) == 7:
            raise KeyboardInterrupt
        return 1.0 + (np.log(changed["base_lr"]) + 4.0) ** 2

    monkeypatch.setattr(transfer, "tuning_loss", loss)
    search = transfer.Search("constant", SUITE, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        transfer.search(search)
    assert not search.file.exists()
    transfer.search(search)
    # Three points of two instances had been found, and half of the fourth.
    assert len(calls) == 7 + 2 * (transfer.points_of("constant") - 3)
    assert not search.file.with_suffix(".log.jsonl").exists()


@pytest.mark.parametrize("name", transfer.LAWS)
def test_laws_have_targets_and_rates_of_every_group(name):
    baseline = transfer.LAWS[name]
    assert set(transfer.TRANSFERS) == {*ONE_COORDINATE, *transfer.LAWS}
    assert isinstance(baseline, Baseline) and transfer.points_of(name) == transfer.MANY_POINTS
    for instance in (*SEARCHED, *load_suite("pretraining-v1").test):
        changed = baseline.arguments(instance, baseline.start)
        assert set(changed) <= {"base_lr", "base_weight_decay", "schedule"}
    loss = tuning_loss(
        SUITE.train[0],
        baseline.arguments(SUITE.train[0], baseline.start),
        tuning_seeds(SUITE.train[0], 1),
        None
        if baseline.controller is None
        else baseline.controller(SUITE.train[0], baseline.start),
    )
    assert 0 < loss < 6.0


def test_matrices_have_a_rate_of_their_own_without_muon():
    point = dict(transfer.LAWS["group_rates"].start) | {transfer.ADAMW_MATRIX: 0.123}
    muon, adamw = (transfer.LAWS["group_rates"].arguments(each, point) for each in SEARCHED)
    assert adamw["base_lr"]["matrix"] == 0.123 != muon["base_lr"]["matrix"]


def test_committed_points_are_of_the_stated_size_and_interior():
    for file in sorted(transfer.FOUND.rglob("*.json")):
        values = json.loads(file.read_text())
        least = transfer.points_of(file.stem)
        assert least <= len(values["points"]) <= 2 * least, file
        assert values["point"].keys() == values["neighbors"].keys(), file
        suite = load_suite(file.parent.name)
        assert values["instances"] == [each.digest for each in suite.train[:: transfer.STRIDE]], (
            file
        )


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"must be searched on made; there is no .* run: python"):
        transfer.method("constant", SUITE, tmp_path)
    with pytest.raises(ValueError, match=r"methods must be of .*ratio_law"):
        transfer.TransferConfig(methods=("nothing",))
