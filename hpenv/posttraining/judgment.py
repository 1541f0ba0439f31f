"""Compares the answers of a program with the results of its problem's tests, and says in words what is wrong."""

from __future__ import annotations

from typing import Any

from hpenv.posttraining.jsonl import shown
from hpenv.posttraining.sandbox import UNSERIALIZABLE, Limits, Outcome
from hpenv.posttraining.tasks import Problem


def equal_exactly(left: Any, right: Any) -> bool:
    """Returns whether two JSON values have the same types and equal values throughout.

    Numbers of one type are compared as Python does: -0.0 equals 0.0, and NaN equals nothing.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal_exactly, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            equal_exactly(left[name], right[name]) for name in left
        )
    return left == right


def is_right(problem: Problem, outcome: Outcome) -> bool:
    """Returns the true verdict: an answer to every test, each of them right."""
    answers = outcome.returned[: len(problem.tests)]
    return len(answers) == len(problem.tests) and all(
        not answer.error and equal_exactly(answer.value, result)
        for answer, (_, result) in zip(answers, problem.tests, strict=True)
    )


def reason(problem: Problem, outcome: Outcome, limits: Limits) -> str:
    """Returns why a run of a program does not solve its problem; empty if it does.

    Args:
        problem: what was asked for.
        outcome: of a run in which the program was called on the hidden inputs first.
        limits: of that run.
    """
    if is_right(problem, outcome):
        return ""
    last_line = outcome.stderr.strip().rpartition("\n")[2] or "it said nothing"
    if not outcome.compiled and not outcome.killed_by:
        return f"no Python: {last_line}"
    num_tests = len(problem.tests)
    for number, ((arguments, result), answer) in enumerate(
        zip(problem.tests, outcome.returned, strict=False), start=1
    ):
        call = f"test {number} of {num_tests}: {problem.entry_point}({', '.join(map(shown, arguments))})"
        if answer.error == UNSERIALIZABLE:
            return f"{call} must be {shown(result)}; got no JSON value, as a tuple or a set is none"
        if answer.error:
            return f"{call} raised {answer.error}"
        if not equal_exactly(answer.value, result):
            return f"{call} must be {shown(result)}; got {shown(answer.value)}"
    num_answers = len(outcome.returned)
    where = f"in test {num_answers + 1} of {num_tests}" if num_answers else "before an answer"
    if outcome.killed_by:
        return f"ended {where} by {_limit(outcome.killed_by, limits)}"
    return f"ended {where} with exit code {outcome.exit_code}: {last_line}"


def _limit(killed_by: str, limits: Limits) -> str:
    """Says what ended a program, with the limit's value."""
    cpu = f"{limits.cpu_seconds} s of processor time"
    return {
        "cpu": f"the limit of {cpu} for all its tests together; see cpu_seconds",
        "wall": f"the clock, after {limits.wall_seconds} s in which it did not use its {cpu}",
        "memory": f"the limit of {limits.memory_bytes} bytes of memory",
        "output": f"the limit of output, {limits.output_bytes} bytes to a stream, {limits.returned_bytes} of answers",
    }.get(killed_by, killed_by)
