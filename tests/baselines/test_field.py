"""The field of the benchmark: equal searches, interior optima, and arguments that make runs."""

import importlib.util
import json
import pickle

import numpy as np
import pytest

from baselines import boards, field
from baselines.field import TUNED, FieldConfig, Search, Tuned, method, tune
from baselines.methods import FIELD, ONE_COORDINATE
from baselines.references import arguments_of, start_of
from baselines.searches import NUM_POINTS, RUNS, SEARCHES, TUNING_SEEDS
from baselines.trials import DIVERGED, tuning_loss, tuning_seeds
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.instances import Instance, load_suite
from hpenv.benchmark.methods import Method
from hpenv.benchmark.references import REFERENCES, load_references
from hpenv.benchmark.rows import Block, blocks_of, compute_block, read_rows
from hpenv.policies.controller import check_controller
from tests.hpenv.benchmark.tiny_suite import JEL, TINY, Braking, tiny_suite

INSTANCE = tiny_suite().test[0]


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("shape", ["text", "adamw", "cell"])
def test_every_baseline_makes_runs_of_an_instance(name, shape):
    instance, baseline = load_suite("smoke").instance(shape), FIELD[name]
    changed = baseline.arguments(instance, baseline.start)
    assert set(changed) - {"optimizer"} <= {
        "base_lr", "base_weight_decay", "schedule", "weight_decay_schedule",
    }  # fmt: skip
    acting = None if baseline.controller is None else baseline.controller(instance, baseline.start)
    asked = {} if acting is None else acting.spec.arguments()
    make_population(instance.env_id, 1, dict(instance.arguments) | changed | asked)


def test_a_search_has_the_stated_size_and_its_best_point_is_acted_on(tmp_path):
    search = Search("constant", INSTANCE, tmp_path)
    tune(search)
    found = json.loads(search.file.read_text())
    assert len(found["points"]) == NUM_POINTS and len(found["seeds"]) == TUNING_SEEDS
    below, above = found["neighbors"]["lr"]
    assert below < found["point"]["lr"] < above
    losses = {point: loss for point, loss in found["points"]}
    assert losses[found["point"]["lr"]] <= min(losses.values()) + 1e-3

    tuned = pickle.loads(pickle.dumps(Tuned("constant", tmp_path)))  # as for another process
    check_controller(tuned)
    assert tuned.arguments(INSTANCE) == {"base_lr": found["point"]["lr"], "schedule": "none"}
    assert tuned.costs_on([INSTANCE]) == {"meta_training": 0.0, "tuning": 16.0}
    with pytest.raises(ValueError, match="second must be tuned; run"):
        tuned.arguments(tiny_suite().test[1])


@pytest.mark.parametrize("name", [name for name, each in FIELD.items() if each.controller])
def test_an_adaptive_baseline_acts_at_its_tuned_point_in_any_process(name, tmp_path):
    instance, point = Instance("longer", JEL, TINY | {"num_steps": 60}), dict(FIELD[name].start)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({"digest": instance.digest, "point": point}))
    block = Block(
        "tiny", instance, method(name, [instance], tmp_path), (1, 2), 0, tmp_path / "rows"
    )
    compute_block(pickle.loads(pickle.dumps(block)))
    row = read_rows([block.file])[0]
    assert any(len(set(values)) > 1 for values in row["panel"].values())


def test_digest_of_a_tuned_baseline_is_that_of_its_points(tmp_path):
    other = tiny_suite().test[1]
    before = Tuned("constant", tmp_path).digest([INSTANCE])
    assert before != Tuned("cosine", tmp_path).digest([INSTANCE])
    elsewhere = Tuned("constant", tmp_path).digest([other])
    tune(Search("constant", INSTANCE, tmp_path))
    assert Tuned("constant", tmp_path).digest([INSTANCE]) != before
    assert Tuned("constant", tmp_path).digest([other]) == elsewhere


def test_committed_points_are_of_the_stated_size_and_interior():
    for file in sorted(TUNED.rglob("*.json")):
        found, baseline = json.loads(file.read_text()), FIELD[file.parent.name]
        kind = SEARCHES[baseline.search]
        assert len(found["seeds"]) == kind.seeds, file
        assert found.get("runs", RUNS) <= RUNS, file
        if baseline.search != "asha":  # which has more points, as most of them are stopped
            assert len(found["points"]) * kind.seeds == RUNS, file
        if file.parent.name in ONE_COORDINATE:
            assert found["point"].keys() == found["neighbors"].keys(), file
        else:
            assert list(found["point"].values()) in [point[:-1] for point in found["points"]], file


@pytest.mark.parametrize("file", sorted(REFERENCES.glob("*.json")), ids=lambda file: file.stem)
def test_committed_references_are_medians_at_points_inside_their_grids(file):
    suite, found = load_suite(file.stem), json.loads(file.read_text())
    assert load_references(file.stem).keys() == {each.digest for each in suite.test}
    for instance in suite.test:
        reference = found["instances"][instance.name]
        assert found["num_points"] <= len(reference["points"]) <= 2 * found["num_points"]
        assert len(reference["reruns"]) == 20
        assert reference["value"] == np.median(reference["reruns"])

        best = min(reference["points"], key=lambda point: point[-1])
        assert reference["neighbors"].keys() == set(reference["coordinates"])
        for name, value in zip(reference["coordinates"], best, strict=False):
            below, above = reference["neighbors"][name]
            assert below < above and below <= value * (1 + 1e-9)


def test_suites_that_are_scored_have_references():
    assert {"smoke", "jel-nano"} <= {file.stem for file in REFERENCES.glob("*.json")}


def test_tuning_sees_the_probe_of_its_own_seeds():
    seeds = tuning_seeds(INSTANCE, 2)
    suite = tiny_suite()
    assert set(seeds).isdisjoint(suite.seeds(INSTANCE))
    low, high = (tuning_loss(INSTANCE, {"base_lr": rate}, seeds) for rate in (1e-6, 0.02))
    assert high < low < DIVERGED
    assert tuning_loss(INSTANCE, {}, seeds, Braking()) < tuning_loss(INSTANCE, {}, seeds)


def test_a_run_that_diverges_in_tuning_loses():
    changed = {"base_lr": 1e9, "optimizer": "sgd"}
    assert tuning_loss(INSTANCE, changed, tuning_seeds(INSTANCE, 1)) == DIVERGED


def test_points_of_a_reference_become_rates_and_a_schedule():
    point = start_of(INSTANCE) | {"warmdown": 1.6}
    changed = arguments_of(INSTANCE, point)
    assert changed["schedule"]["warmdown_fraction"] == 1.0
    assert changed["base_lr"]["matrix"] == point["lr/matrix"]
    assert changed["base_weight_decay"]["embedding"] == 0.0


@pytest.mark.parametrize("large", [10, 10**9])
def test_published_rows_are_those_of_the_folder_compressed_if_many(large, tmp_path, monkeypatch):
    suite, folder = tiny_suite(), tmp_path / "package"
    folder.mkdir()
    (folder / f"{suite.name}.jsonl").write_text("of an earlier time")
    monkeypatch.setattr(boards, "PUBLISHED", folder)
    monkeypatch.setattr(boards, "LARGE", large)
    for block in blocks_of(suite, Method("off", None), tmp_path / "place" / "rows"):
        compute_block(block)
    rows = read_rows([tmp_path / "place" / "rows"])
    boards.publish(suite, tmp_path / "place")
    (file,) = folder.iterdir()
    assert file.name == f"{suite.name}.jsonl" + (".gz" if large == 10 else "")
    assert read_rows([file]) == rows
    before = file.read_bytes()
    boards.publish(suite, tmp_path / "place")
    assert file.read_bytes() == before


def test_a_suite_is_searched_scored_and_gone_on_with(tmp_path, monkeypatch, capsys):
    suite, names = tiny_suite(num_seeds=2), ("constant", "random_schedule", "cma_es_schedule")
    monkeypatch.setattr(field, "load_suite", lambda name: suite)
    folders = ["--folder", str(tmp_path / "rows"), "--tuned", str(tmp_path / "tuned")]
    program = ["--suite", "tiny", "--executor", "inline", *folders, "--baselines", *names]
    monkeypatch.setattr(boards, "write_board", no_board)
    field.main(program)
    rows = read_rows([tmp_path / "rows" / "tiny" / "rows"])
    assert {row["method"] for row in rows} == {"off", *names}
    for name in names[1:]:
        mine = [row for row in rows if row["method"] == name]
        assert len(mine) == 2 * len(suite.test)
        assert {row["changed"]["schedule"]["name"] for row in mine} == {"log_linear"}
        assert all(row["costs"] == {"meta_training": 0.0, "tuning": 16.0} for row in mine)

    monkeypatch.setattr(field, "tune", None)  # nothing is left to search
    field.main(program)
    assert read_rows([tmp_path / "rows" / "tiny" / "rows"]) == rows


def no_board(suite, place):
    """The board of a suite without references."""
    place.joinpath("board.md").write_text("")
    return None, place / "board.html"


def test_costs_are_the_runs_that_were_spent(tmp_path):
    suite, folder = tiny_suite(), tmp_path / "asha"
    folder.mkdir()
    for instance, runs in zip(suite.test, (15.5, 15.75), strict=True):
        found = {"digest": instance.digest, "point": dict(FIELD["asha"].start), "runs": runs}
        (folder / f"{instance.name}.json").write_text(json.dumps(found))
    assert method("asha", suite.test, tmp_path).costs["tuning"] == 15.625
    assert method("asha", suite.test[:1], tmp_path).costs["tuning"] == 15.5
    assert method("pbt", suite.test, tmp_path).costs["tuning"] == 16.0


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    folders = ["--folder", str(tmp_path / "rows"), "--tuned", str(tmp_path / "tuned")]
    with pytest.raises(SystemExit):
        field.main(["--suite", "smoke", *folders, "--baselines", "asha"])
    assert "needs the package ray; install it with: pip install 'hpenv[ray]'" in (
        capsys.readouterr().err
    )
    assert {"asha", "pbt"} == set(FIELD) - set(FieldConfig().baselines)
