"""The memorizing baseline: the nearest wording's solution.

It says little about held-out problems.
"""

import dataclasses

import pytest

from hpenv.posttraining.problems.generator import same
from hpenv.posttraining.problems.problem import Problem, generated_problem
from train_agents.experiments.measures.memorizer import memorized_solution

TRAINING = [generated_problem("train", i, 2) for i in range(80)]


def described(description, entry_point="f", solution=""):
    return Problem("p", entry_point, description, (), (), solution)


def passes(source, problem):
    namespace = {}
    exec(source, namespace)
    return all(
        same(namespace[problem.entry_point](*args), result) for args, result in problem.tests
    )


def test_the_nearest_wording_by_hand():
    training = [
        described("Return the sum of xs.", solution="def f(xs):\n    return sum(xs)\n"),
        described(
            "Return the sum of the even numbers of xs.", solution="def f(xs):\n    return 2\n"
        ),
        described("Return the odd and even numbers of xs."),  # nearest of all, but nobody solved it
    ]
    asked = described("Return the even numbers of xs.", entry_point="evens")
    # 7 of 9 words are shared with the second, 5 of 9 with the first.
    assert memorized_solution(asked, training) == "def evens(xs):\n    return 2\n"
    assert memorized_solution(asked, training[:1]) == "def evens(xs):\n    return sum(xs)\n"


def test_what_was_seen_is_passed_and_what_is_held_out_hardly():
    assert all(passes(memorized_solution(problem, TRAINING), problem) for problem in TRAINING)
    held_out = [generated_problem("held_out", i, 2) for i in range(60)]
    assert sum(passes(memorized_solution(problem, TRAINING), problem) for problem in held_out) <= 6


def test_nothing_to_learn_by_heart_is_an_error():
    with pytest.raises(ValueError, match="no training problem has a solution"):
        memorized_solution(TRAINING[0], [dataclasses.replace(TRAINING[1], solution="")])
