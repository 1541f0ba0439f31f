"""Problems: a description, visible examples and hidden tests, generated from recipes without end.

Problems on strings and on two numbers are never generated: those kinds are reserved for the
contrastive pairs. Held-out and probe problems combine operations in ways that no training problem
does, so a memorized program fails there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hpenv.posttraining.problems.generator import PIECE, Recipe, neighbors, random_recipe, same

#: Split -> fraction of all sequences of operations. The hash of a sequence assigns it to one split,
#: whatever its constants are.
SPLITS: dict[str, float] = {"train": 0.7, "held_out": 0.15, "probe": 0.15}

NUM_EXAMPLES = 2
NUM_TESTS = 8
#: Pieces of a prompt, for a model with 64 tokens of context for it, and how many of these pieces
#: are reserved for the disclosure.
MAX_PROMPT_PIECES, MAX_DISCLOSURE_PIECES = 64, 16
_LARGEST_ITEM = 9
_LARGEST_SHOWN = 99
_LONGEST_EXAMPLE = 4
_LONGEST_TEST = 8
_NUM_CANDIDATES = 6
_NUM_ATTEMPTS = 300

#: Arguments and result of one call. All are JSON values, in lists that are never modified.
Case = tuple[tuple[Any, ...], Any]


@dataclass(frozen=True)
class Problem:
    """A programming problem: a function that has to be written.

    Attributes:
        name: unique among the problems of one source.
        entry_point: name of the function, or of the method if `class_name` is given.
        description: the result of the function, in words.
        examples: cases shown in the prompt.
        tests: cases that only the grader has.
        solution: source of a right program. Empty if there is none.
        operations: operations of its recipe, without constants.
        recipe: the recipe that the problem was generated from, if any.
        class_name: the class that has `entry_point` as a method. Empty for a function.
        setup: source executed before every program, such as imports.
    """

    name: str
    entry_point: str
    description: str
    examples: tuple[Case, ...]
    tests: tuple[Case, ...]
    solution: str
    operations: tuple[str, ...] = ()
    recipe: Recipe | None = None
    class_name: str = ""
    setup: str = ""

    @property
    def statement(self) -> str:
        """Description and examples, each line a comment."""
        lines = self.description.splitlines()
        lines += [
            f"{self.entry_point}({', '.join(map(repr, args))}) == {result!r}"
            for args, result in self.examples
        ]
        return "".join(f"# {line}".rstrip() + "\n" for line in lines)

    @property
    def num_pieces(self) -> int:
        """Number of words, digits, runs of punctuation and line breaks in the statement."""
        return len(PIECE.findall(self.statement))


def split_of(operations: Sequence[str]) -> str:
    """Returns the split of the problems with these operations, whatever their constants."""
    digest = hashlib.sha256(" | ".join(operations).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, fraction in SPLITS.items():
        place -= fraction
        if place < 0:
            return split
    return split


@lru_cache(maxsize=16384)
def generated_problem(split: str, index: int, difficulty: int = 2) -> Problem:
    """Generates one of endlessly many problems, as a pure function of its arguments.

    Args:
        split: split of the problem. No other split has a problem with the same operations.
        index: number of the problem, from 0. Different numbers may give the same recipe.
        difficulty: number of stages of the recipe, 1 to 4.

    Raises:
        ValueError: for an unknown split, a negative index or another difficulty.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {sorted(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must be at least 0; got {index}")

    seed = np.random.SeedSequence(
        [sorted(SPLITS).index(split), index, difficulty if difficulty > 0 else 0]
    )
    generator = np.random.default_rng(seed)

    recipe = random_recipe(generator, difficulty)
    while split_of(recipe.operations) != split:
        recipe = random_recipe(generator, difficulty)

    return Problem(
        name=f"{split}-{difficulty}-{index}",
        entry_point="f",
        description=recipe.description(),
        examples=_examples(recipe, generator),
        tests=_tests(recipe, generator),
        solution=recipe.program(),
        operations=recipe.operations,
        recipe=recipe,
    )


def _numbers(generator: np.random.Generator, shortest: int, longest: int) -> list[int]:
    """Draws a list of `shortest` to `longest` numbers within ±_LARGEST_ITEM, all uniform."""
    length = int(generator.integers(shortest, longest + 1))
    return generator.integers(-_LARGEST_ITEM, _LARGEST_ITEM + 1, length).tolist()


def _examples(recipe: Recipe, generator: np.random.Generator) -> tuple[Case, ...]:
    """Draws short, informative cases that leave room for the disclosure in the prompt.

    A result is informative if it is not an empty list and its numbers have at most two digits. Two
    cases are informative if their results differ. If no such lists turn up, three requirements are
    dropped one after the other: at least two numbers in a list, different results, two digits.
    """
    for attempt in range(_NUM_ATTEMPTS):
        shortest = 2 if attempt < _NUM_ATTEMPTS // 3 else 1
        largest = _LARGEST_SHOWN if attempt < 5 * _NUM_ATTEMPTS // 6 else math.inf

        lists = [_numbers(generator, shortest, _LONGEST_EXAMPLE) for _ in range(NUM_EXAMPLES)]
        cases = tuple(((xs,), recipe.evaluate((xs,))) for xs in lists)
        results = [result for _, result in cases]

        is_clear = all(
            result != [] and all(abs(number) <= largest for number in _as_list(result))
            for result in results
        ) and (attempt > 2 * _NUM_ATTEMPTS // 3 or not same(results[0], results[1]))
        if is_clear and _fits(recipe, cases):
            return cases

    raise AssertionError(f"no examples for {recipe.description()!r}")


def _as_list(result: Any) -> list[Any]:
    """Returns the numbers of a result as a list."""
    return result if isinstance(result, list) else [result]


def _fits(recipe: Recipe, cases: tuple[Case, ...]) -> bool:
    """Returns whether a prompt with these examples leaves room for the longest disclosure."""
    problem = Problem("", "f", recipe.description(), cases, (), "")
    return problem.num_pieces <= MAX_PROMPT_PIECES - MAX_DISCLOSURE_PIECES


def _tests(recipe: Recipe, generator: np.random.Generator) -> tuple[Case, ...]:
    """Draws hidden cases: the empty list, and random lists that most wrong recipes fail.

    Wrong recipes are all recipes that differ in one stage. Lists are chosen one at a time. Each is
    the best of a few candidates: the one passed by the fewest wrong recipes that passed all lists
    before it.
    """
    tests: list[Case] = [(([],), recipe.evaluate(([],)))]
    passing = [wrong for wrong in neighbors(recipe) if same(wrong.evaluate(([],)), tests[0][1])]

    while len(tests) < NUM_TESTS:
        # Any first list finds most of them.
        num_candidates = 1 if len(tests) == 1 or not passing else _NUM_CANDIDATES

        best: tuple[list[Recipe], Case] | None = None
        for _ in range(num_candidates):
            args = (_numbers(generator, 1, _LONGEST_TEST),)
            result = recipe.evaluate(args)
            still_passing = [wrong for wrong in passing if same(wrong.evaluate(args), result)]
            if best is None or len(still_passing) < len(best[0]):
                best = (still_passing, (args, result))

        assert best is not None
        passing = best[0]
        tests.append(best[1])

    return tuple(tests)
