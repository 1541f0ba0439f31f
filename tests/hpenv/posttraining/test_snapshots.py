"""A restored plant continues bitwise, and another one is refused."""

import copy
import pickle

import pytest
import torch

from hpenv.optim.adamw import AdamW
from hpenv.optim.schedules import Cosine
from hpenv.plant import snapshots
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.splits import SPLITS
from tests import tiny_student
from tests.hpenv.posttraining.small_plants import (
    EVERY_CHANNEL,
    STRENGTH,
    assert_same,
    assert_same_window,
    moved,
    problem_file,
)
from tests.tiny_student import FINEST, TINY, FakeGrader, advance, few_pairs, make, state_of, student

# Snapshots


@pytest.mark.parametrize(
    "changes",
    [{"rule": "drift", "route": True}, {"target": "update", "direction": "random"}],
    ids=["route", "update"],
)
def test_a_restored_plant_continues_bitwise_in_another_object_too(changes, tmp_path):
    plant, other = (moved(make(2, EVERY_CHANNEL, **changes)) for _ in range(2))
    advance(plant, 2, 3)
    snapshot = plant.snapshot()
    kept = {name: value.clone() for name, value in snapshot.tensors.items()}
    snapshots.save(tmp_path / "one", snapshot)
    expected = advance(plant, 2)
    state = state_of(plant)
    assert not expected.divergence.any()
    other.reset([1, 2])
    other.restore(snapshots.load(tmp_path / "one"))
    assert_same(
        state_of(other), {name: value for name, value in kept.items() if name != "rows/panel"}
    )
    assert torch.equal(other.snapshot().tensors["rows/panel"], kept["rows/panel"])
    assert_same_window(advance(other, 2), expected)
    assert_same(state_of(other), state)
    plant.restore(snapshot)
    assert_same_window(advance(plant, 2), expected)
    assert_same(snapshot.tensors, kept)


def test_a_snapshot_holds_direction_spread_quarantine_and_moments():
    plant = moved(make(2, EVERY_CHANNEL, rule="drift", route=True))
    advance(plant, 2)
    tensors = plant.snapshot().tensors
    for prefix in (
        "trained/layer.1.up",
        "trained/quarantine/layer.1.up",
        "direction/layer.1.up",
        "mean/layer.1.up",
    ):
        assert tensors[prefix].any() and len(tensors[prefix]) == 2, prefix
    assert tensors["spread"].all() and tensors["optimizer/quarantine/layer.1.up/momentum"].any()
    before = {name: value.clone() for name, value in tensors.items()}
    advance(plant, 1)
    assert_same(tensors, before)


def test_a_snapshot_can_be_restored_under_the_present_panel():
    plant = make(1)
    advance(plant, 1)
    snapshot = plant.snapshot()
    plant.panel.positions[:] = 1.0
    counterfactual = advance(plant, 1)
    plant.restore(snapshot, keep_panel=True)
    assert plant.panel.positions.tolist() == [[1.0]]
    assert_same_window(advance(plant, 1), counterfactual)
    plant.restore(snapshot)
    assert plant.panel.positions.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rule": "two_sided"}, "rule"),
        ({"route": True}, "route"),
        ({"base_lr": 0.2}, "base_lr"),
        ({"modes": ("run_tests", "stdout")}, "modes"),
        ({"lr_schedule": Cosine(10)}, "lr_schedule"),
        ({"num_samples": 4}, "num_samples"),
        ({"channels": FINEST}, "channels"),
    ],
)
def test_a_snapshot_of_another_configuration_is_refused_and_changes_nothing(changes, key):
    source, other = make(2), make(2, changes.pop("channels", STRENGTH), **changes)
    advance(source, 1)
    before = state_of(other)
    with pytest.raises(ValueError, match=f"configuration differs.*'{key}'"):
        other.restore(source.snapshot())
    assert_same(state_of(other), before)


def test_a_snapshot_of_another_student_or_number_of_rows_is_refused():
    with few_pairs():
        config = tiny_student.GRPOConfig(**TINY)
        plants = [
            GRPOPlant(config, 2, student=student(seed=seed), grader=FakeGrader()) for seed in (0, 1)
        ]
    with pytest.raises(ValueError, match=r"configuration differs.*'student_digest'"):
        plants[1].restore(plants[0].snapshot())
    with pytest.raises(ValueError, match="the snapshot must have 2 rows; got 3"):
        make(2).restore(make(3).snapshot())


@pytest.mark.parametrize(("key", "split"), [(key, split) for key, (split, _) in SPLITS.items()])
def test_a_snapshot_over_other_problems_is_refused_wherever_they_lie(key, split, tmp_path):
    """The same file under another name is the same.

    The same name with one more test in it is not.
    """
    source = make(1, **{split: problem_file(tmp_path / "one", "add", 8)})
    snapshot = source.snapshot()
    make(1, **{split: problem_file(tmp_path / "two", "add", 8)}).restore(snapshot)
    text = (
        (tmp_path / "one")
        .read_text()
        .replace("assert candidate(1) == 2", "assert candidate(1) == 3")
    )
    (tmp_path / "one").write_text(text)
    other = make(1, **{split: str(tmp_path / "one")})
    with pytest.raises(
        ValueError, match=rf"configuration differs.*'{key}_problems': \('\d+ of sha256 "
    ):
        other.restore(snapshot)


def test_a_snapshot_over_another_number_of_generated_problems_is_refused():
    with pytest.raises(
        ValueError, match=r"configuration differs.*'train_problems': \('8 of sha256 .*'9 of sha256 "
    ):
        make(1, num_problems=9).restore(make(1).snapshot())


def test_a_snapshot_under_other_settings_of_the_student_or_of_its_optimizer_is_refused_by_name():
    plant = make(1)
    snapshot, settings = plant.snapshot(), plant.student.settings
    plant.student = copy.copy(plant.student)
    for name in settings:
        plant.student.settings = settings | {name: "another"}
        with pytest.raises(
            ValueError, match=rf"configuration differs, as .*: {{'student_{name}': \("
        ):
            plant.restore(snapshot)
    plant.student.settings, plant._rule = settings, AdamW(beta2=0.9)
    with pytest.raises(
        ValueError,
        match=r"configuration differs, as .*: {'rule_coefficients': .*beta2=0.99, .*beta2=0.9, ",
    ):
        plant.restore(snapshot)


def test_modes_in_a_list_are_those_in_a_tuple(tmp_path):
    """JSON and YAML have lists alone."""
    listed = make(1, modes=list(TRAINING_MODES), known_modes=["run_tests", "sentinel"])
    snapshots.save(tmp_path / "s", listed.snapshot())
    make(1).restore(snapshots.load(tmp_path / "s"))


def test_speed_is_no_part_of_what_a_run_is(tmp_path):
    plant, other = make(2), make(2, num_workers=3, cache=str(tmp_path / "verdicts.sqlite"))
    advance(plant, 1)
    other.restore(plant.snapshot())
    assert_same(state_of(other), state_of(plant))


def test_a_plant_can_be_pickled_in_the_middle_of_a_run_and_needs_no_sandbox_for_it():
    with few_pairs():
        plant = GRPOPlant(tiny_student.GRPOConfig(**TINY), 2, student=student())
    assert isinstance(plant._grader, Grader)
    copied = pickle.loads(pickle.dumps(plant))
    for each in (plant, copied):
        each._grader = FakeGrader()
        advance(each, 2)
    assert_same(state_of(copied), state_of(plant))
    again = pickle.loads(pickle.dumps(plant))
    assert_same_window(advance(again, 1), advance(plant, 1))


def test_a_spawned_plant_shares_nothing_that_moves():
    plant = moved(make(2, EVERY_CHANNEL))
    plant.set_measured_groups(())
    before = state_of(plant)
    with few_pairs():
        spawned = plant.spawn(3)
    assert (spawned.num_rows, spawned.measured_groups, spawned.student) == (
        3,
        frozenset(),
        plant.student,
    )
    advance(spawned, 1)
    assert_same(state_of(plant), before)
