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


Value = Callable[[Any, int], Any]


def _filter(words: str, code: str, keeps: Value, constants: tuple[int, ...] = (0,)) -> Operation:
    """Returns a filter, given its condition on x and k."""

    def apply(xs: list[int], k: int) -> list[int]:
        return [x for x in xs if keeps(x, k)]

    return Operation("filter", f"the {words} of {{inner}}", code, apply, constants)


def _map(words: str, code: str, value: Value, constants: tuple[int, ...] = (0,)) -> Operation:
    """Returns a map, given the value made of x and k."""

    def apply(xs: list[int], k: int) -> list[int]:
        return [value(x, k) for x in xs]

    return Operation("map", f"{{inner}}, each {words}", code, apply, constants)


def _number(words: str, code: str, value: Callable[[Any], Any]) -> Operation:
    """Returns a reduction whose result is a number."""
    phrase = f"the {words} of {{inner}}"
    return Operation("reduce", phrase, code, lambda xs, k: value(xs), gives_number=True)


def _list(words: str, code: str, value: Value, constants: tuple[int, ...] = (0,)) -> Operation:
    """Returns a reduction whose result is a list."""
    return Operation("reduce", f"the {words} of {{inner}}", code, value, constants)


def _step(phrase: str, code: str, value: Value, constants: tuple[int, ...] = (0,)) -> Operation:
    """Returns a step after the reduction."""
    return Operation("post", phrase, code, value, constants)


_SMALL, _FACTORS, _DIVISORS = (1, 2, 3, 4, 5), (3, 4, 5), (3, 4, 5)

OPERATIONS: dict[str, Operation] = {
    "even": _filter("even numbers", "x % 2 == 0", lambda x, k: x % 2 == 0),
    "odd": _filter("odd numbers", "x % 2 == 1", lambda x, k: x % 2 == 1),
    "positive": _filter("positive numbers", "x > 0", lambda x, k: x > 0),
    "negative": _filter("negative numbers", "x < 0", lambda x, k: x < 0),
    "nonzero": _filter("nonzero numbers", "x != 0", lambda x, k: x != 0),
    "above": _filter("numbers above {k}", "x > {k}", lambda x, k: x > k, _SMALL),
    "below": _filter("numbers below {k}", "x < {k}", lambda x, k: x < k, _SMALL),
    "multiples": _filter("multiples of {k}", "x % {k} == 0", lambda x, k: x % k == 0, (3, 4)),
    "each doubled": _map("doubled", "x * 2", lambda x, k: x * 2),
    "each squared": _map("squared", "x * x", lambda x, k: x * x),
    "each negated": _map("negated", "-x", lambda x, k: -x),
    "each halved": _map("halved", "x // 2", lambda x, k: x // 2),
    "each absolute": _map("absolute", "abs(x)", lambda x, k: abs(x)),
    "each plus": _map("plus {k}", "x + {k}", lambda x, k: x + k, _SMALL),
    "each minus": _map("minus {k}", "x - {k}", lambda x, k: x - k, _SMALL),
    "each times": _map("times {k}", "x * {k}", lambda x, k: x * k, _FACTORS),
    "each modulo": _map("modulo {k}", "x % {k}", lambda x, k: x % k, _DIVISORS),
    "sum": _number("sum", "sum({argument})", sum),
    "sum once": _number("sum without repeats", "sum({distinct})", lambda xs: sum(set(xs))),
    "maximum": _number("maximum or 0", "max({sequence}, default=0)", lambda xs: max(xs, default=0)),
    "minimum": _number("minimum or 0", "min({sequence}, default=0)", lambda xs: min(xs, default=0)),
    "count": _number("count", "len({sequence})", len),
    "count once": _number("count without repeats", "len({distinct})", lambda xs: len(set(xs))),
    "first": _number("first or 0", "({sequence} or [0])[0]", lambda xs: (xs or [0])[0]),
    "last": _number("last or 0", "({sequence} or [0])[-1]", lambda xs: (xs or [0])[-1]),
    "sorted": _list("sorted list", "sorted({argument})", lambda xs, k: sorted(xs)),
    "reversed": _list("reverse", "{sequence}[::-1]", lambda xs, k: xs[::-1]),
    "head": _list("first {k}", "{sequence}[:{k}]", lambda xs, k: xs[:k], (2, 3)),
    "tail": _list("last {k}", "{sequence}[-{k}:]", lambda xs, k: xs[-k:], (2, 3)),
    "plus": _step("{inner}, plus {k}", "{value} + {k}", lambda v, k: v + k, _SMALL),
    "minus": _step("{inner}, minus {k}", "{value} - {k}", lambda v, k: v - k, _SMALL),
    "times": _step("{inner}, times {k}", "{value} * {k}", lambda v, k: v * k, (2, *_FACTORS)),
    "modulo": _step("{inner}, modulo {k}", "{value} % {k}", lambda v, k: v % k, _DIVISORS),
    "negated": _step("{inner}, negated", "-{value}", lambda v, k: -v),
    "squared": _step("{inner}, squared", "{value} ** 2", lambda v, k: v**2),
    "halved": _step("{inner}, halved", "{value} // 2", lambda v, k: v // 2),
    "is even": _step("whether {inner} is even", "{value} % 2 == 0", lambda v, k: v % 2 == 0),
    "is above": _step("whether {inner} is above {k}", "{value} > {k}", lambda v, k: v > k, _SMALL),
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
