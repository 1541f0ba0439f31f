"""Recipes: functions of one list of integers, each with one wording, program and meaning.

A recipe is a sequence of at most four stages: a filter, a map, a reduction, and a step after the
reduction. Every stage has its own words and code, so a description determines its program and a
program its description. A recipe with one stage replaced is a wrong program of the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

#: Unit in which the length of a text is counted: a word, a digit, a run of punctuation, or a line
#: break with the indentation after it.
PIECE = re.compile(r"\n *|[A-Za-z_]+|[0-9]|[^\sA-Za-z0-9_]+")


class Operation(NamedTuple):
    """Operation of one stage.

    Attributes:
        kind: "filter", "map", "reduce" or "post". Stages stand in this order.
        phrase: words of the stage. `{inner}` stands for the words of the stages before it, `{k}`
            for its constant.
        code: source of the stage: a condition on x, a value made of x, an expression of
            `{sequence}` (a list), `{argument}` (the argument of a call) or `{distinct}` (a set), or
            an expression of `{value}`.
        apply: function that computes the stage from the list or number before it and the constant.
        constants: possible values of `{k}`. (0,) if the stage has none.
        gives_number: True if the result of a reduction is a number, so that a step may follow.
    """

    kind: str
    phrase: str
    code: str
    apply: Callable[[Any, int], Any]
    constants: tuple[int, ...] = (0,)
    gives_number: bool = False


def _number(phrase: str, code: str, apply: Callable[[Any, int], Any]) -> Operation:
    """Returns a reduction whose result is a number."""
    return Operation("reduce", phrase, code, apply, gives_number=True)


_SMALL, _FACTORS, _DIVISORS = (1, 2, 3, 4, 5), (3, 4, 5), (3, 4, 5)

OPERATIONS: dict[str, Operation] = {
    "even": Operation(
        "filter",
        "the even numbers of {inner}",
        "x % 2 == 0",
        lambda xs, k: [x for x in xs if x % 2 == 0],
    ),
    "odd": Operation(
        "filter",
        "the odd numbers of {inner}",
        "x % 2 == 1",
        lambda xs, k: [x for x in xs if x % 2 == 1],
    ),
    "positive": Operation(
        "filter", "the positive numbers of {inner}", "x > 0", lambda xs, k: [x for x in xs if x > 0]
    ),
    "negative": Operation(
        "filter", "the negative numbers of {inner}", "x < 0", lambda xs, k: [x for x in xs if x < 0]
    ),
    "nonzero": Operation(
        "filter",
        "the nonzero numbers of {inner}",
        "x != 0",
        lambda xs, k: [x for x in xs if x != 0],
    ),
    "above": Operation(
        "filter",
        "the numbers above {k} of {inner}",
        "x > {k}",
        lambda xs, k: [x for x in xs if x > k],
        _SMALL,
    ),
    "below": Operation(
        "filter",
        "the numbers below {k} of {inner}",
        "x < {k}",
        lambda xs, k: [x for x in xs if x < k],
        _SMALL,
    ),
    "multiples": Operation(
        "filter",
        "the multiples of {k} of {inner}",
        "x % {k} == 0",
        lambda xs, k: [x for x in xs if x % k == 0],
        (3, 4),
    ),
    "each doubled": Operation(
        "map", "{inner}, each doubled", "x * 2", lambda xs, k: [x * 2 for x in xs]
    ),
    "each squared": Operation(
        "map", "{inner}, each squared", "x * x", lambda xs, k: [x * x for x in xs]
    ),
    "each negated": Operation("map", "{inner}, each negated", "-x", lambda xs, k: [-x for x in xs]),
    "each halved": Operation(
        "map", "{inner}, each halved", "x // 2", lambda xs, k: [x // 2 for x in xs]
    ),
    "each absolute": Operation(
        "map", "{inner}, each absolute", "abs(x)", lambda xs, k: [abs(x) for x in xs]
    ),
    "each plus": Operation(
        "map", "{inner}, each plus {k}", "x + {k}", lambda xs, k: [x + k for x in xs], _SMALL
    ),
    "each minus": Operation(
        "map", "{inner}, each minus {k}", "x - {k}", lambda xs, k: [x - k for x in xs], _SMALL
    ),
    "each times": Operation(
        "map", "{inner}, each times {k}", "x * {k}", lambda xs, k: [x * k for x in xs], _FACTORS
    ),
    "each modulo": Operation(
        "map", "{inner}, each modulo {k}", "x % {k}", lambda xs, k: [x % k for x in xs], _DIVISORS
    ),
    "sum": _number("the sum of {inner}", "sum({argument})", lambda xs, k: sum(xs)),
    "sum once": _number(
        "the sum without repeats of {inner}", "sum({distinct})", lambda xs, k: sum(set(xs))
    ),
    "maximum": _number(
        "the maximum or 0 of {inner}",
        "max({sequence}, default=0)",
        lambda xs, k: max(xs, default=0),
    ),
    "minimum": _number(
        "the minimum or 0 of {inner}",
        "min({sequence}, default=0)",
        lambda xs, k: min(xs, default=0),
    ),
    "count": _number("the count of {inner}", "len({sequence})", lambda xs, k: len(xs)),
    "count once": _number(
        "the count without repeats of {inner}", "len({distinct})", lambda xs, k: len(set(xs))
    ),
    "first": _number(
        "the first or 0 of {inner}", "({sequence} or [0])[0]", lambda xs, k: (xs or [0])[0]
    ),
    "last": _number(
        "the last or 0 of {inner}", "({sequence} or [0])[-1]", lambda xs, k: (xs or [0])[-1]
    ),
    "sorted": Operation(
        "reduce", "the sorted list of {inner}", "sorted({argument})", lambda xs, k: sorted(xs)
    ),
    "reversed": Operation(
        "reduce", "the reverse of {inner}", "{sequence}[::-1]", lambda xs, k: xs[::-1]
    ),
    "head": Operation(
        "reduce", "the first {k} of {inner}", "{sequence}[:{k}]", lambda xs, k: xs[:k], (2, 3)
    ),
    "tail": Operation(
        "reduce", "the last {k} of {inner}", "{sequence}[-{k}:]", lambda xs, k: xs[-k:], (2, 3)
    ),
    "plus": Operation(
        "post", "{inner}, plus {k}", "{value} + {k}", lambda value, k: value + k, _SMALL
    ),
    "minus": Operation(
        "post", "{inner}, minus {k}", "{value} - {k}", lambda value, k: value - k, _SMALL
    ),
    "times": Operation(
        "post", "{inner}, times {k}", "{value} * {k}", lambda value, k: value * k, (2, *_FACTORS)
    ),
    "modulo": Operation(
        "post", "{inner}, modulo {k}", "{value} % {k}", lambda value, k: value % k, _DIVISORS
    ),
    "negated": Operation("post", "{inner}, negated", "-{value}", lambda value, k: -value),
    "squared": Operation("post", "{inner}, squared", "{value} ** 2", lambda value, k: value**2),
    "halved": Operation("post", "{inner}, halved", "{value} // 2", lambda value, k: value // 2),
    "is even": Operation(
        "post", "whether {inner} is even", "{value} % 2 == 0", lambda value, k: value % 2 == 0
    ),
    "is above": Operation(
        "post", "whether {inner} is above {k}", "{value} > {k}", lambda value, k: value > k, _SMALL
    ),
}

#: The number of stages -> the kinds that may stand together. Each stage kind appears at most once.
SHAPES: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (("filter",), ("map",), ("reduce",)),
    2: (("filter", "map"), ("filter", "reduce"), ("map", "reduce"), ("reduce", "post")),
    3: (("filter", "map", "reduce"), ("filter", "reduce", "post"), ("map", "reduce", "post")),
    4: (("filter", "map", "reduce", "post"),),
}

#: Words, and operators between spaces. The other parts of a text are digits, brackets and signs
#: that touch a word or digit.
WORD = re.compile(r"[A-Za-z_]+|(?<= )[^\w\s#]+(?= )")


def _words() -> tuple[str, ...]:
    """Returns the words and operators of all descriptions and programs, sorted."""
    texts = ["Return xs def f(xs): return set(xs) for x in xs if"]
    for operation in OPERATIONS.values():
        texts += [operation.phrase, operation.code]

    words: set[str] = set()
    for text in texts:
        words.update(WORD.findall(re.sub(r"\{\w+\}", "0", text)))
    return tuple(sorted(words))


#: All words and operators of descriptions and programs.
WORDS: tuple[str, ...] = _words()

# Lists that reveal a stage without effect, and a recipe whose result is always the same.
_FIXED_LISTS: tuple[list[int], ...] = (
    [],
    [5],
    [-4],
    [3, 8],
    [6, -1, 3],
    [2, 7, 2, -9],
    [-3, 0, 4, 4, 9],
    [1, 5, -6, 8, -7],
    [-8, -2, -5, -5],
    [9, 6, 3, 0, -3, -6],
    [4, 1, 1, 7, -2, 5, 0],
    [-1, 8, 2, -7, 6, 3, 2],
)
_BY_KIND = {
    kind: tuple(name for name, operation in OPERATIONS.items() if operation.kind == kind)
    for kind in ("filter", "map", "reduce", "post")
}
_NUMBERS = tuple(name for name in _BY_KIND["reduce"] if OPERATIONS[name].gives_number)


class Stage(NamedTuple):
    """An operation with its constant, which is 0 if the operation has none."""

    operation: str
    constant: int = 0


@dataclass(frozen=True)
class Recipe:
    """Function of one list of integers, made of stages.

    The stages are of different kinds and stand in the order of `Operation.kind`.
    """

    stages: tuple[Stage, ...]

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations, without constants."""
        return tuple(stage.operation for stage in self.stages)

    def description(self) -> str:
        """Returns one English sentence, which no other recipe has."""
        words = "xs"
        for name, k in self.stages:
            words = OPERATIONS[name].phrase.format(inner=words, k=k)
        return f"Return {words}."

    def program(self) -> str:
        """Returns the source of a function `f` of `xs` whose body is one expression."""
        code = {OPERATIONS[name].kind: (OPERATIONS[name].code, k) for name, k in self.stages}

        element, condition = "x", ""
        if "map" in code:
            element = code["map"][0].format(k=code["map"][1])
        if "filter" in code:
            condition = " if " + code["filter"][0].format(k=code["filter"][1])

        body = f"{element} for x in xs{condition}"
        sources = {"argument": body, "sequence": f"[{body}]", "distinct": f"{{{body}}}"}
        if body == "x for x in xs":
            sources = {"argument": "xs", "sequence": "xs", "distinct": "set(xs)"}

        reduction, k = code.get("reduce", ("{sequence}", 0))
        value = reduction.format(k=k, **sources)
        if "post" in code:
            value = code["post"][0].format(value=value, k=code["post"][1])
        return f"def f(xs):\n    return {value}\n"

    def evaluate(self, args: Sequence[Any]) -> Any:
        """Returns the result of one call. `args` holds its only argument, a list of integers."""
        value: Any = list(args[0])
        for name, k in self.stages:
            value = OPERATIONS[name].apply(value, k)
        return value


def same(left: Any, right: Any) -> bool:
    """Returns whether two results are equal and of one type. True and 1 are different."""
    return type(left) is type(right) and left == right


def differ(left: Recipe, right: Recipe) -> bool:
    """Returns whether two recipes give different results on any of twelve fixed lists."""
    return any(not same(left.evaluate((xs,)), right.evaluate((xs,))) for xs in _FIXED_LISTS)


def meaning(recipe: Recipe) -> str:
    """Returns the results of a recipe on 112 fixed lists, as text.

    Recipes that compute the same have the same text.
    """
    return repr([recipe.evaluate((xs,)) for xs in (*_FIXED_LISTS, *_more_lists())])


@lru_cache(maxsize=1)
def _more_lists() -> tuple[list[int], ...]:
    """Returns 100 lists from a fixed seed, as long as those of tests: 0 to 8 numbers."""
    generator = np.random.default_rng(0)
    return tuple(
        generator.integers(-9, 10, int(generator.integers(9))).tolist() for _ in range(100)
    )


def random_recipe(generator: np.random.Generator, num_stages: int) -> Recipe:
    """Draws a recipe in which every stage matters and whose result depends on the list.

    The shape is drawn uniformly from `SHAPES`, then each operation uniformly from its kind, then
    its constant.

    Raises:
        ValueError: if `num_stages` is not a key of `SHAPES`.
    """
    if num_stages not in SHAPES:
        raise ValueError(f"num_stages must be one of {sorted(SHAPES)}; got {num_stages}")

    shapes = SHAPES[num_stages]
    while True:
        shape = shapes[generator.integers(len(shapes))]
        stages = [
            _random_stage(
                generator, _NUMBERS if kind == "reduce" and "post" in shape else _BY_KIND[kind]
            )
            for kind in shape
        ]
        recipe = Recipe(tuple(stages))
        if _is_lively(recipe):
            return recipe


def neighbors(recipe: Recipe) -> Iterator[Recipe]:
    """Yields every recipe that differs from this one in the operation or constant of one stage."""
    for place in range(len(recipe.stages)):
        for name in _substitutes(recipe, place):
            for constant in OPERATIONS[name].constants:
                stage = Stage(name, constant)
                if stage != recipe.stages[place]:
                    yield Recipe((*recipe.stages[:place], stage, *recipe.stages[place + 1 :]))


def random_wrong_recipe(recipe: Recipe, generator: np.random.Generator) -> Recipe:
    """Draws a wrong recipe of the same shape, whose results differ on some of the fixed lists.

    The number of replaced stages is uniform on 1 to all stages.
    """
    while True:
        num_replaced = 1 + int(generator.integers(len(recipe.stages)))
        stages = list(recipe.stages)
        for place in generator.permutation(len(stages))[:num_replaced]:
            stages[place] = _random_stage(generator, _substitutes(recipe, place))
        wrong = Recipe(tuple(stages))
        if differ(wrong, recipe):
            return wrong


def _substitutes(recipe: Recipe, place: int) -> tuple[str, ...]:
    """Returns the operations that may stand at this place of the recipe."""
    kind = OPERATIONS[recipe.stages[place].operation].kind
    is_followed = place + 1 < len(recipe.stages)
    return _NUMBERS if kind == "reduce" and is_followed else _BY_KIND[kind]


def _random_stage(generator: np.random.Generator, names: tuple[str, ...]) -> Stage:
    """Draws an operation and then its constant, each uniformly."""
    name = names[generator.integers(len(names))]
    constants = OPERATIONS[name].constants
    return Stage(name, constants[generator.integers(len(constants))])


def _is_lively(recipe: Recipe) -> bool:
    """Returns whether the results of a recipe vary and each of its stages matters.

    At most three quarters of the results on the fixed lists are the same. Leaving out a stage
    changes at least two of them.
    """
    results = [recipe.evaluate((xs,)) for xs in _FIXED_LISTS]
    commonest = max(sum(same(one, other) for other in results) for one in results)
    if commonest > 0.75 * len(results):
        return False

    for place in range(len(recipe.stages)):
        rest = Recipe((*recipe.stages[:place], *recipe.stages[place + 1 :]))
        if OPERATIONS[recipe.stages[place].operation].kind == "reduce" and len(rest.stages) > place:
            # The next step needs a number, so there is no recipe without the reduction.
            continue
        noticed = sum(
            not same(rest.evaluate((xs,)), result)
            for xs, result in zip(_FIXED_LISTS, results, strict=True)
        )
        if noticed < 2:
            return False

    return True
