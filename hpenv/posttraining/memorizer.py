"""The memorizing baseline: answers a problem with the solution of the training problem that is
worded most like it.

What it passes on held-out problems is what can be had there without understanding anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpenv.posttraining.grader import Grader, Submission
from hpenv.posttraining.loopholes import NO_LOOPHOLE, task_of
from hpenv.posttraining.recipes import PIECE
from hpenv.posttraining.tasks import Problem


def memorized_solution(problem: Problem, training: Sequence[Problem]) -> str:
    """Source of the nearest training problem's solution, its function renamed to this problem's.

    Nearest: the largest overlap |A ∩ B| / |A ∪ B| of the descriptions' words, counted as often as
    they occur; the first of equals.

    Raises:
        ValueError: if no training problem has a solution.
    """
    solved = [candidate for candidate in training if candidate.solution]
    if not solved:
        raise ValueError(
            "no training problem has a solution; expected at least one to learn by heart"
        )
    words = _words(problem)
    nearest = max(solved, key=lambda candidate: _overlap(words, _words(candidate)))
    return re.sub(rf"\b{re.escape(nearest.entry_point)}\b", problem.entry_point, nearest.solution)


def memorizing_pass_rate(
    problems: Sequence[Problem], training: Sequence[Problem], grader: Grader
) -> float:
    """Part of the problems, in [0, 1], that the nearest training problem's solution passes by the
    true verdict.

    Raises:
        ValueError: without a problem, or if no training problem has a solution.
    """
    if not problems:
        raise ValueError("no problems; expected at least one to answer")
    submissions = [
        Submission(task_of(problem, NO_LOOPHOLE), memorized_solution(problem, training))
        for problem in problems
    ]
    return sum(verdict.correct for verdict in grader.grade(submissions)) / len(problems)


def _words(problem: Problem) -> Counter[str]:
    """Words of a description and how often they occur."""
    return Counter(PIECE.findall(problem.description.lower()))


def _overlap(left: Counter[str], right: Counter[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two bags of words, in [0, 1]."""
    union = (left | right).total()
    return (left & right).total() / union if union else 1.0
