"""Memorizing baseline: answers a problem with the solution of the most similar training problem.

Its pass rate on held-out problems is the part that needs no understanding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpenv.posttraining.grading.grader import Grader, Submission
from hpenv.posttraining.grading.loopholes import NO_LOOPHOLE, task_of
from hpenv.posttraining.problems.generator import PIECE
from hpenv.posttraining.problems.problem import Problem


def memorized_solution(problem: Problem, training: Sequence[Problem]) -> str:
    """Returns the nearest training problem's solution, with its function renamed to this problem's.

    The nearest problem has the largest overlap |A ∩ B| / |A ∪ B| of the bags of words of the
    descriptions. The first one wins ties.

    Raises:
        ValueError: if no training problem has a solution.
    """
    candidates = [candidate for candidate in training if candidate.solution]
    if not candidates:
        raise ValueError("no training problem has a solution")

    words = _words(problem)
    nearest = max(candidates, key=lambda candidate: _overlap(words, _words(candidate)))
    return re.sub(rf"\b{re.escape(nearest.entry_point)}\b", problem.entry_point, nearest.solution)


def memorizing_pass_rate(
    problems: Sequence[Problem], training: Sequence[Problem], grader: Grader
) -> float:
    """Returns the fraction of problems that the nearest training problem's solution solves.

    The true verdict decides.

    Raises:
        ValueError: without a problem, or if no training problem has a solution.
    """
    if not problems:
        raise ValueError("problems must have at least one problem; got none")
    submissions = [
        Submission(task_of(problem, NO_LOOPHOLE), memorized_solution(problem, training))
        for problem in problems
    ]
    return sum(verdict.correct for verdict in grader.grade(submissions)) / len(problems)


def _words(problem: Problem) -> Counter[str]:
    """Returns the words of a description and how often they occur."""
    return Counter(PIECE.findall(problem.description.lower()))


def _overlap(left: Counter[str], right: Counter[str]) -> float:
    """Returns |A ∩ B| / |A ∪ B| of two bags of words, in [0, 1]."""
    union = (left | right).total()
    return (left & right).total() / union if union else 1.0
