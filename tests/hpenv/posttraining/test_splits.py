"""Training, probe and evaluation problems are disjoint, in files too."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hpenv.posttraining import splits as curriculum_module
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.grading.loopholes import NO_LOOPHOLE, TRAINING_MODES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.problems import generator as recipes
from hpenv.posttraining.problems.problem import generated_problem, split_of
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.registry import student as shipped
from tests import tiny_student
from tests.hpenv.posttraining.small_plants import problem_file
from tests.tiny_student import TINY, FakeGrader, advance, make, student


def test_training_probe_labelled_and_evaluation_problems_are_disjoint_in_operations():
    config = tiny_student.GRPOConfig(
        num_problems=150, num_probe_problems=80, num_evaluation_problems=80
    )
    curriculum = Curriculum(config, student())
    parts = [curriculum.training, curriculum.probe, curriculum.evaluation(None)]
    operations = [{task.problem.operations for task in part} for part in parts]
    for i, one in enumerate(operations):
        assert len(one) > 10 and all(one.isdisjoint(other) for other in operations[i + 1 :])
    for names in ("train", "evaluation"):
        same = curriculum.evaluation(names)
        assert [task.problem for task in same] == [task.problem for task in parts[2]]
        assert [task.mode for task in same[:5]] == [*TRAINING_MODES, TRAINING_MODES[0]]
    markers = [
        {task.marker for task in curriculum.evaluation(names)} for names in ("train", "evaluation")
    ]
    assert markers[0] == {task.marker for task in curriculum.training} and markers[0].isdisjoint(
        markers[1]
    )
    assert {task.mode for task in (*curriculum.probe, *curriculum.evaluation(None))} == {
        NO_LOOPHOLE
    }


@pytest.mark.parametrize("name", ["problems", "probe_problems", "evaluation_problems", "cache"])
def test_files_may_lie_in_the_home_folder_and_be_given_as_paths(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = str(tmp_path / "own.jsonl")
    for given in ("~/own.jsonl", Path("~/own.jsonl"), tmp_path / "own.jsonl", wanted):
        assert getattr(tiny_student.GRPOConfig(**{name: given}), name) == wanted
    for wrong in (3, None, b"own.jsonl"):
        with pytest.raises(
            ValueError, match=f"{name} must be a path, or empty for none; got {wrong!r}"
        ):
            tiny_student.GRPOConfig(**{name: wrong})


def test_problems_of_files_are_trained_on_and_measured(tmp_path):
    grader = FakeGrader()
    plant = make(1, (), grader, problems=problem_file(tmp_path / "own", "add", 3))
    advance(plant, 2)
    names = [{s.task.problem.entry_point for s in seen} for seen in grader.seen[:3]]
    assert names == [{"add"}, {"add"}, {"f"}]  # two updates, and the probe, which is generated
    assert [task.mode for task in plant._curriculum.training] == list(TRAINING_MODES[:3])
    measured = {
        "probe_problems": problem_file(tmp_path / "probe", "plus", 5),
        "evaluation_problems": problem_file(tmp_path / "held", "sum", 9),
    }
    plant = make(1, (), grader := FakeGrader(), **measured)
    advance(plant, 1)
    plant.report()
    names = [{s.task.problem.entry_point for s in seen} for seen in grader.seen]
    assert names == [{"f"}, {"plus"}, {"sum"}, {"sum"}, {"sum"}]
    sizes = [len({s.task.problem.name for s in seen}) for seen in grader.seen[1:]]
    assert sizes == [plant.config.num_probe_problems, *[plant.config.num_evaluation_problems] * 3]


def test_a_problem_that_is_trained_on_and_measured_is_refused(tmp_path):
    own, same = (problem_file(tmp_path / name, "add", 9) for name in ("own", "same"))
    with pytest.raises(
        ValueError,
        match=r"problem 'Return x plus 0\.' is in both 'train' and 'held_out'; splits must not",
    ):
        make(1, (), problems=own, evaluation_problems=same)
    with pytest.raises(ValueError, match="need at least 4 held_out problems; got 1"):
        make(1, (), evaluation_problems=problem_file(tmp_path / "one", "sum", 1))
    with pytest.raises(ValueError, match=f"{own} is given twice"):
        make(1, (), problems=own, evaluation_problems=own)


def test_all_that_cannot_be_read_of_all_files_is_told_at_once_and_left_out_on_request(tmp_path):
    files = {
        "problems": problem_file(tmp_path / "own", "add", 3),
        "probe_problems": problem_file(tmp_path / "probe", "plus", 5),
        "evaluation_problems": problem_file(tmp_path / "held", "sum", 9),
    }
    for name in ("own", "held"):
        with (tmp_path / name).open("a") as file:
            file.write('{"id": 1}\n')
    with pytest.raises(
        ValueError, match=r"own, line 4: the entry point .*\n.*held, line 10: the entry point "
    ):
        make(1, (), **files)
    with pytest.warns(UserWarning, match=r"left out.*\n.*own, line 4: .*\n.*held, line 10: "):
        plant = make(1, (), **files, skip_unreadable=True)
    assert len(plant._curriculum.training) == 3 and len(plant._curriculum.evaluation(None)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"modes": ("run_tests", "exit_code")},
            r"cannot read \d+ of 480 prompts, of the modes \['exit_code'\]\. .*hf:<folder>",
        ),
        (
            {"direction": "labelled", "known_modes": ("equality",)},
            "direction='labelled' needs the pair 'equality-.*reads up to 64. Leave such loopholes "
            "out of known_modes",
        ),
        (
            {"problems": "Return " + "the sum of " * 20 + "x."},
            "is of problem 'own-0': the prompt .*; this student reads",
        ),
        (
            {"problems": "Return x ≤ {}."},
            r"is of problem 'own-0': characters \['≤'\] cannot be encoded",
        ),
    ],
)
def test_what_the_student_cannot_read_is_refused_before_a_run_begins(tmp_path, given, message):
    if "problems" in given:
        given = {"problems": problem_file(tmp_path / "own", "add", 8, given["problems"])}
    with pytest.raises(ValueError, match=message):
        GRPOPlant(GRPOConfig(**given), student=shipped("nano"), grader=FakeGrader())


def test_no_two_generated_problems_of_a_run_compute_the_same():
    """Tests on lists that were not looked at when the bounds were chosen.

    A few of the lists are longer.
    """
    random = np.random.default_rng(5)
    lists = [random.integers(-9, 10, int(random.integers(12))).tolist() for _ in range(300)]
    curriculum = Curriculum(GRPOConfig(num_evaluation_problems=128), shipped("nano"))
    tasks = [*curriculum.training, *curriculum.probe, *curriculum.evaluation(None)]
    assert len(tasks) == 256 + 32 + 128
    results = {repr([task.problem.recipe.evaluate((xs,)) for xs in lists]) for task in tasks}
    assert len(results) == len(tasks)


def test_more_problems_than_there_are_different_ones_are_refused():
    with pytest.raises(
        ValueError, match=r"num_problems must be at most 40 with difficulty=1, .* got 41; raise"
    ):
        Curriculum(GRPOConfig(difficulty=1, num_problems=41), shipped("nano"))


@pytest.mark.parametrize(
    ("split", "name", "most"), [("train", "num_problems", 40), ("probe", "num_probe_problems", 8)]
)
def test_too_few_problems_are_found_out_in_as_many_draws_whatever_is_asked_for(
    split, name, most, monkeypatch
):
    """All recipes of one stage are known here.

    Those of a split that compute different functions are counted.
    """
    all_recipes = [
        recipes.Recipe((recipes.Stage(operation, constant),))
        for operation, row in recipes.OPERATIONS.items()
        for constant in row.constants
        if row.kind != "post" and split_of((operation,)) == split
    ]
    assert (
        len({recipes.meaning(recipe) for recipe in all_recipes if recipes._is_lively(recipe)})
        == most
    )
    draws = Counter()

    def counted(*arguments):
        draws.update([asked])
        return generated_problem(*arguments)

    monkeypatch.setattr(curriculum_module, "generated_problem", counted)
    for asked in (most + 1, 1000):
        with pytest.raises(
            ValueError, match=f"{name} must be at most {most} .* got {asked}; raise the difficulty"
        ):
            curriculum_module._generate_problems(split, asked, 1, set())
    assert draws[most + 1] == draws[1000] < 100 * (most + 1)


def test_tasks_of_an_update_are_different_and_a_function_of_seed_and_step():
    curriculum = Curriculum(
        tiny_student.GRPOConfig(**TINY | {"num_problems": 8, "num_prompts": 5}), student()
    )
    chosen = {(seed, step): curriculum.tasks_at(seed, step) for seed in (1, 2) for step in range(6)}
    for key, tasks in chosen.items():
        assert tasks == curriculum.tasks_at(*key) and len({task.prompt for task in tasks}) == 5
    assert len({tuple(task.prompt for task in tasks) for tasks in chosen.values()}) == 12
    assert {task.prompt for tasks in chosen.values() for task in tasks} == {
        t.prompt for t in curriculum.training
    }
