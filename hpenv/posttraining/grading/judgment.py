"""Compares a program's answers with the results of the tests, and explains failures."""

from __future__ import annotations

from typing import Any

from hpenv.posttraining.problems.jsonl import excerpt
from hpenv.posttraining.problems.problem import Problem
from hpenv.posttraining.sandbox import UNSERIALIZABLE, Limits, Outcome


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
    """Returns the true verdict: whether every test has an answer and every answer is right."""
    answers = outcome.returned[: len(problem.tests)]
    return len(answers) == len(problem.tests) and all(
        not answer.error and equal_exactly(answer.value, result)
        for answer, (_, result) in zip(answers, problem.tests, strict=True)
    )


def reason(problem: Problem, outcome: Outcome, limits: Limits) -> str:
    """Returns why a run of a program does not solve its problem. Empty if it does.

    Args:
        problem: the problem.
        outcome: outcome of a run that called the program on the hidden inputs first.
        limits: limits of that run.
    """
    if is_right(problem, outcome):
        return ""

    last_line = outcome.stderr.strip().rpartition("\n")[2] or "nothing on stderr"
    if not outcome.compiled and not outcome.killed_by:
        return f"not a Python program: {last_line}"

    num_tests = len(problem.tests)
    for number, ((arguments, result), answer) in enumerate(
        zip(problem.tests, outcome.returned, strict=False), start=1
    ):
        given = ", ".join(map(excerpt, arguments))
        call = f"test {number} of {num_tests}: {problem.entry_point}({given})"
        if answer.error == UNSERIALIZABLE:
            return (
                f"{call} must be {excerpt(result)}; "
                "got a value that is not JSON, such as a tuple or a set"
            )
        if answer.error:
            return f"{call} raised {answer.error}"
        if not equal_exactly(answer.value, result):
            return f"{call} must be {excerpt(result)}; got {excerpt(answer.value)}"

    num_answers = len(outcome.returned)
    where = f"in test {num_answers + 1} of {num_tests}" if num_answers else "before any answer"
    if outcome.killed_by:
        return f"ended {where} by {_limit(outcome.killed_by, limits)}"
    return f"ended {where} with exit code {outcome.exit_code}: {last_line}"


def _limit(killed_by: str, limits: Limits) -> str:
    """Returns what ended a program, with the value of the limit."""
    cpu = f"{limits.cpu_seconds} s of processor time"
    outputs = f"{limits.output_bytes} bytes per stream, {limits.returned_bytes} of answers"
    return {
        "cpu": f"the limit of {cpu} for all its tests together; see cpu_seconds",
        "wall": f"the clock, after {limits.wall_seconds} s without using its {cpu}",
        "memory": f"the limit of {limits.memory_bytes} bytes of memory",
        "output": f"the limit of output: {outputs}",
    }.get(killed_by, killed_by)
