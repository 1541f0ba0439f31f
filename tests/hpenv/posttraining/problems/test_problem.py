"""Generated problems: pure functions of their arguments, in splits with separate operations.

Their tests tell right programs from wrong ones.
"""

import json

import numpy as np
import pytest

from hpenv.posttraining.problems.generator import (
    Recipe,
    Stage,
    neighbors,
    random_wrong_recipe,
    same,
)
from hpenv.posttraining.problems.problem import (
    MAX_DISCLOSURE_PIECES,
    MAX_PROMPT_PIECES,
    NUM_EXAMPLES,
    NUM_TESTS,
    SPLITS,
    Problem,
    generated_problem,
    split_of,
)

DIFFICULTIES = (1, 2, 3, 4)
PROBLEMS = {
    (split, difficulty): [generated_problem(split, i, difficulty) for i in range(40)]
    for split in SPLITS
    for difficulty in DIFFICULTIES
}
EVERY = [problem for group in PROBLEMS.values() for problem in group]


def test_a_problem_is_a_function_of_its_arguments():
    for split, difficulty in PROBLEMS:
        again = generated_problem.__wrapped__(split, 7, difficulty)
        assert again == PROBLEMS[split, difficulty][7]
    assert len({problem.name for problem in EVERY}) == len(EVERY)
    assert len({problem.description for problem in PROBLEMS["train", 3]}) > 35


def test_splits_share_no_row_of_operations():
    seen = {
        split: {p.operations for (own, _), group in PROBLEMS.items() if own == split for p in group}
        for split in SPLITS
    }
    assert not seen["train"] & seen["held_out"] and not seen["train"] & seen["probe"]
    assert not seen["held_out"] & seen["probe"]
    assert all(
        split_of(p.operations) == split for (split, _), group in PROBLEMS.items() for p in group
    )
    assert split_of(("even", "sum")) == split_of(["even", "sum"])


def test_the_difficulty_is_the_number_of_stages():
    for (_, difficulty), group in PROBLEMS.items():
        assert {len(problem.recipe.stages) for problem in group} == {difficulty}


def test_a_statement_by_hand():
    recipe = Recipe((Stage("even"), Stage("sum"), Stage("plus", 3)))
    cases = ((([1, 2, 4],), 9), (([7, -2],), 1))
    problem = Problem("p", "f", recipe.description(), cases, (), recipe.program())
    assert problem.statement == (
        "# Return the sum of the even numbers of xs, plus 3.\n# f([1, 2, 4]) == 9\n"
        "# f([7, -2]) == 1\n"
    )
    assert problem.num_pieces == 14 + 12 + 12


def test_examples_are_short_and_right_and_leave_room_for_a_disclosure():
    for problem in EVERY:
        assert len(problem.examples) == NUM_EXAMPLES
        assert problem.num_pieces <= MAX_PROMPT_PIECES - MAX_DISCLOSURE_PIECES
        for args, result in problem.examples:
            assert same(problem.recipe.evaluate(args), result) and result != []
            assert len(args[0]) <= 4 and all(abs(x) <= 9 for x in args[0])
            assert all(abs(x) <= 99 for x in (result if isinstance(result, list) else [result]))
    differing = [not same(p.examples[0][1], p.examples[1][1]) for p in EVERY]
    assert np.mean(differing) > 0.97


def test_hidden_tests_are_json_that_the_solution_passes():
    for problem in EVERY:
        namespace = {}
        exec(problem.solution, namespace)
        assert len(problem.tests) == NUM_TESTS and problem.tests[0][0] == ([],)
        for args, result in problem.tests:
            assert same(namespace["f"](*args), result)
            decoded = json.loads(json.dumps([list(args), result]))
            assert decoded == [list(args), result] and type(decoded[1]) is type(result)


def test_arguments_are_one_list_of_small_numbers():
    """Strings and pairs of numbers belong to the contrastive pairs."""
    for problem in EVERY:
        for args, result in (*problem.examples, *problem.tests):
            (xs,) = args
            assert type(xs) is list and all(type(x) is int and abs(x) <= 9 for x in xs)
            assert type(result) in (int, bool, list)


def passes(recipe, problem):
    return all(same(recipe.evaluate(args), result) for args, result in problem.tests)


def test_hidden_tests_fail_nearly_every_wrong_recipe():
    random = np.random.default_rng(0)
    near = [passes(wrong, problem) for problem in EVERY[::5] for wrong in neighbors(problem.recipe)]
    assert (
        len(near) > 3000 and np.mean(near) < 0.02
    )  # some neighbors are the same function in other words
    drawn = [passes(random_wrong_recipe(problem.recipe, random), problem) for problem in EVERY]
    assert np.mean(drawn) < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 0, 2), r"unknown split 'test'; expected one of \['held_out', 'probe', 'train'\]"),
        (("train", -1, 2), "index must be at least 0; got -1"),
        (("train", 0, 5), r"num_stages must be one of \[1, 2, 3, 4\]; got 5"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generated_problem(*arguments)
