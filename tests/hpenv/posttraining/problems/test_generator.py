"""Recipes: wording, program and meaning determine each other.

A corrupted recipe is a wrong one.
"""

import functools
import itertools
import re

import numpy as np
import pytest

from hpenv.posttraining.problems.generator import (
    OPERATIONS,
    SHAPES,
    WORD,
    WORDS,
    Recipe,
    Stage,
    differ,
    neighbors,
    random_recipe,
    random_wrong_recipe,
    same,
)

LISTS = ([], [4], [-3], [7, 2, 2, -5], [0, 1, -8, 9, 3, 6], [5, 5, -5, 4, -1, 2, 8])
KINDS = ("filter", "map", "reduce", "post")


@functools.cache
def every_recipe():
    return tuple(_every_recipe())


def _every_recipe():
    by_kind = {
        kind: [
            Stage(name, k)
            for name, op in OPERATIONS.items()
            if op.kind == kind
            for k in op.constants
        ]
        for kind in KINDS
    }
    for shape in itertools.chain.from_iterable(SHAPES.values()):
        for stages in itertools.product(*(by_kind[kind] for kind in shape)):
            number = all(
                OPERATIONS[s.operation].gives_number
                for s in stages
                if OPERATIONS[s.operation].kind == "reduce"
            )
            if "post" not in shape or number:
                yield Recipe(stages)


@functools.cache
def recipes_with():
    """Operation -> 40 recipes that have it, at most, from all over `every_recipe`."""
    found = {name: [] for name in OPERATIONS}
    for recipe in every_recipe():
        for name in recipe.operations:
            found[name].append(recipe)
    return {name: recipes[::97][:40] for name, recipes in found.items()}


def function(source):
    namespace = {}
    exec(source, namespace)
    return namespace["f"]


def test_description_program_and_recipe_determine_each_other():
    count, descriptions, programs = 0, set(), set()
    for recipe in every_recipe():
        count += 1
        descriptions.add(recipe.description())
        programs.add(recipe.program())
    assert count == len(descriptions) == len(programs) > 50_000


def test_a_recipe_by_hand():
    recipe = Recipe((Stage("even"), Stage("each squared"), Stage("sum"), Stage("plus", 3)))
    assert recipe.description() == "Return the sum of the even numbers of xs, each squared, plus 3."
    assert recipe.program() == "def f(xs):\n    return sum(x * x for x in xs if x % 2 == 0) + 3\n"
    assert recipe.evaluate(([1, 2, -4],)) == 4 + 16 + 3
    assert recipe.operations == ("even", "each squared", "sum", "plus")


@pytest.mark.parametrize(
    ("stages", "program"),
    [
        ((Stage("sorted"),), "sorted(xs)"),
        ((Stage("above", 4), Stage("reversed")), "[x for x in xs if x > 4][::-1]"),
        ((Stage("each halved"), Stage("count once")), "len({x // 2 for x in xs})"),
        ((Stage("sum once"), Stage("is even")), "sum(set(xs)) % 2 == 0"),
        (
            (Stage("odd"), Stage("last"), Stage("negated")),
            "-([x for x in xs if x % 2 == 1] or [0])[-1]",
        ),
    ],
)
def test_programs_are_written_as_a_person_would(stages, program):
    assert Recipe(stages).program() == f"def f(xs):\n    return {program}\n"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_program_does_what_the_recipe_means(name):
    for recipe in recipes_with()[name]:
        program = function(recipe.program())
        assert all(same(program(list(xs)), recipe.evaluate((xs,))) for xs in LISTS), recipe
    single = Recipe((Stage(name, OPERATIONS[name].constants[-1]),))
    if OPERATIONS[name].kind != "post":
        assert all(
            same(function(single.program())(list(xs)), single.evaluate((xs,))) for xs in LISTS
        )
    assert recipes_with()[name]


@pytest.mark.parametrize("num_stages", SHAPES)
def test_drawn_recipes_have_the_stages_asked_for_and_all_of_them_matter(num_stages):
    random = np.random.default_rng(3)
    for _ in range(100):
        recipe = random_recipe(random, num_stages)
        kinds = [OPERATIONS[name].kind for name in recipe.operations]
        assert tuple(kinds) in SHAPES[num_stages]
        lists = [xs[: i % 7] for i, xs in enumerate(random.integers(-9, 10, (40, 6)).tolist())]
        assert len({str(recipe.evaluate((xs,))) for xs in lists}) > 1
        for place, kind in enumerate(kinds):
            if kind != "reduce":
                assert differ(recipe, Recipe((*recipe.stages[:place], *recipe.stages[place + 1 :])))


def test_every_operation_is_drawn_and_the_draws_repeat():
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    recipes = [random_recipe(first, 1 + i % 4) for i in range(1200)]
    assert {name for recipe in recipes for name in recipe.operations} == set(OPERATIONS)
    assert recipes == [random_recipe(second, 1 + i % 4) for i in range(1200)]


def test_a_corrupted_recipe_is_a_wrong_program_of_the_same_shape():
    random = np.random.default_rng(0)
    num_replaced = set()
    for i in range(200):
        recipe = random_recipe(random, 1 + i % 4)
        wrong = random_wrong_recipe(recipe, random)
        kinds = [[OPERATIONS[name].kind for name in each.operations] for each in (recipe, wrong)]
        assert kinds[0] == kinds[1] and differ(recipe, wrong)
        num_replaced.add(sum(a != b for a, b in zip(recipe.stages, wrong.stages, strict=True)))
        function(wrong.program())([3, -1, 4])  # it runs: it is wrong, not broken
    assert num_replaced == {1, 2, 3, 4}


def test_neighbors_are_all_recipes_with_one_other_stage():
    recipe = Recipe((Stage("even"), Stage("sum")))
    found = list(neighbors(recipe))
    assert len(found) == len(set(found)) == (17 - 1) + (14 - 1)
    assert all(
        sum(a != b for a, b in zip(n.stages, recipe.stages, strict=True)) == 1 for n in found
    )
    followed = Recipe(
        (Stage("sum"), Stage("plus", 2))
    )  # what is followed by a step has to stay a number
    assert all(OPERATIONS[n.stages[0].operation].gives_number for n in neighbors(followed))


def test_true_is_not_one():
    assert same(True, True) and same([1, 2], [1, 2])
    assert not same(True, 1) and not same(0, False) and not same([0], 0)


def test_words_hold_every_word_and_operator_of_the_recipes():
    short = (recipe for recipe in every_recipe() if len(recipe.stages) < 3)
    recipes = (*short, *itertools.islice(every_recipe(), 0, None, 29))
    texts = (text for recipe in recipes for text in (recipe.description(), recipe.program()))
    assert {word for text in texts for word in WORD.findall(text)} == set(WORDS)
    assert all(re.fullmatch(r"[A-Za-z_]+|[^\w\s]+", word) for word in WORDS)


@pytest.mark.parametrize("num_stages", [0, 5])
def test_an_unknown_number_of_stages_is_refused(num_stages):
    with pytest.raises(
        ValueError, match=rf"num_stages must be one of \[1, 2, 3, 4\]; got {num_stages}"
    ):
        random_recipe(np.random.default_rng(0), num_stages)
