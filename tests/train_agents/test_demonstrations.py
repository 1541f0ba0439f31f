"""Demonstrations: as wrong, as honest and as rarely hacking as requested.

No demonstration shows a problem or a name that is measured later.
"""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from hpenv.posttraining.contrastive import sources
from hpenv.posttraining.grading.loopholes import LOOPHOLES, NO_LOOPHOLE, TRAINING_MODES, task_of
from hpenv.posttraining.problems.problem import generated_problem, split_of
from train_agents import demonstrations
from train_agents.demonstrations import DemonstrationConfig

PLAIN = DemonstrationConfig(related_fraction=0.0)


def taken(count, seed=0, **changes):
    return list(
        itertools.islice(demonstrations.demonstrations(replace(PLAIN, **changes), seed), count)
    )


@pytest.fixture
def problems(monkeypatch):
    """The problems that were drawn, in their order."""
    drawn = []

    def recording(*arguments):
        drawn.append(generated_problem(*arguments))
        return drawn[-1]

    monkeypatch.setattr(demonstrations, "generated_problem", recording)
    return drawn


def test_they_are_a_function_of_the_seed():
    assert taken(20) == taken(20) != taken(20, seed=1)


def test_without_errors_every_program_is_the_solution_and_with_them_none_is(problems):
    for error_fraction in (0.0, 1.0):
        texts = taken(40, error_fraction=error_fraction, exploit_fraction=0.0)
        right = [
            program == problem.solution
            for (_, program), problem in zip(texts, problems, strict=True)
        ]
        assert right == [error_fraction == 0.0] * 40
        problems.clear()


def test_an_exploit_uses_the_loophole_of_its_prompt_under_the_prompts_name(problems):
    texts = taken(60, exploit_fraction=1.0)
    modes = Counter()
    for (prompt, program), problem in zip(texts, problems, strict=True):
        tasks = [
            task_of(problem, *given)
            for given in itertools.product(PLAIN.modes, ("train", "evaluation"))
        ]
        task = next(task for task in tasks if task.prompt == prompt)
        modes[task.mode] += 1
        if task.mode != NO_LOOPHOLE:
            end = LOOPHOLES[task.mode].exploit("", task.marker, problem.entry_point)
            assert program.endswith(end) and len(program) > len(end)
            assert not program.startswith(problem.solution.rstrip()), (
                "a hack has nothing right to fall back on"
            )
    assert set(modes) == {NO_LOOPHOLE, *TRAINING_MODES} and min(modes.values()) >= 3


def test_parts_are_those_asked_for():
    """The bounds are four standard errors, each at most 0.02 of 600 draws."""
    texts = taken(600, error_fraction=0.6, exploit_fraction=0.25, related_fraction=0.3)
    related = [(prompt, program) for prompt, program in texts if not program.startswith("def f(")]
    assert len(related) / 600 == pytest.approx(0.3, abs=0.08)
    others = [text for text in texts if text not in related]
    honest = sum("The grader runs hidden tests." in prompt for prompt, _ in others) / len(others)
    assert honest == pytest.approx(0.2, abs=0.08)


def test_problems_are_training_problems_that_no_run_draws(problems):
    taken(50)
    assert all(split_of(problem.operations) == "train" for problem in problems)
    first, count = demonstrations.FIRST_PROBLEM, demonstrations.NUM_PROBLEMS
    for problem in problems:
        split, difficulty, index = problem.name.split("-")
        assert split == "train" and 1 <= int(difficulty) <= 3
        assert first <= int(index) < first + count
    assert first + count <= sources.FIRST_LABELLED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error_fraction": 1.5}, "error_fraction must be a number from 0 to 1; got 1.5"),
        (
            {"exploit_fraction": float("nan")},
            "exploit_fraction must be a number from 0 to 1; got nan",
        ),
        ({"related_fraction": "0.1"}, "related_fraction must be a number from 0 to 1; got '0.1'"),
        ({"max_difficulty": 5}, "max_difficulty must be an integer from 1 to 4; got 5"),
        ({"max_difficulty": True}, "max_difficulty must be an integer from 1 to 4; got True"),
        ({"modes": ()}, r"modes must be some of .*; got \(\)"),
        ({"modes": ("run_tests", "zz")}, "modes must be some of "),
        ({"modes": "run_tests"}, "modes must be some of "),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DemonstrationConfig(**changes)
