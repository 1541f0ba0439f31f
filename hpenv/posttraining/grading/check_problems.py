"""Checks problem files: `python -m hpenv.posttraining.grading.check_problems FILE ...`.

The sandbox runs every problem's own solution, and the true verdict judges it like a student's
program. If a solution fails, its tests or the solution are wrong, imports are missing, or it needs
more than the sandbox allows. A student cannot solve such a problem either. The exit code is 1 if a
solution fails, or if a line cannot be read and is not left out on request. It is 2, with one line
on stderr, if a file is missing, an argument is wrong or programs cannot be executed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpenv.posttraining.grading.grader import Grader, Submission
from hpenv.posttraining.grading.loopholes import NO_LOOPHOLE, task_of
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.problems.files import error_text, parse_problem_files
from hpenv.posttraining.problems.problem import Problem
from hpenv.posttraining.sandbox import SandboxUnavailable


def failing_solutions(problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """Returns the problems, in their order, whose solution does not solve them."""
    candidates = [problem for problem in problems if problem.solution]
    verdicts = grader.grade([_submission(problem) for problem in candidates])
    return [
        problem
        for problem, verdict in zip(candidates, verdicts, strict=True)
        if not verdict.correct
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints one line for each file, failing solution and bad line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hpenv.posttraining.grading.check_problems", description=__doc__
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSONL file with the fields described in hpenv.posttraining.problems.files",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out lines that cannot be read, and check the others",
    )
    parser.add_argument(
        "--cpu-seconds",
        type=int,
        default=1,
        metavar="S",
        help="processor time of one program, for all its tests together. "
        "Train with the same value [s, default 1]",
    )
    given = parser.parse_args(arguments)

    missing = [file for file in given.files if not Path(file).is_file()]
    if missing:
        return _report_error(
            f"files must be JSONL files; {', '.join(missing)} cannot be read (no such file)"
        )
    try:
        grader = Grader(SharedSandbox(cpu_seconds=given.cpu_seconds))
    except (SandboxUnavailable, ValueError) as error:
        return _report_error(error)

    files = parse_problem_files(given.files)
    if any(not file.problems or (file.errors and not given.skip_unreadable) for file in files):
        sys.stdout.write(f"error: {error_text(files)}\n")
        return 1

    num_failing = 0
    try:
        for path, problems, errors in files:
            failing = failing_solutions(problems, grader)
            num_failing += len(failing)
            num_solved = sum(bool(problem.solution) for problem in problems) - len(failing)
            sys.stdout.write(
                f"{path}: {len(problems)} problems, {num_solved} solved by their own solution, "
                f"{len(failing)} not, {len(problems) - num_solved - len(failing)} without one\n"
            )
            sys.stdout.writelines(f"  left out: {line}\n" for line in errors)
            for problem in failing:
                why = grader.reason(_submission(problem)) or "a second run solved it, by chance"
                sys.stdout.write(f"  not solved by its own solution: {problem.name}: {why}\n")
    except SandboxUnavailable as error:
        return _report_error(error)

    return min(num_failing, 1)


def _report_error(error: object) -> int:
    """Writes an error to stderr as one line, and returns its exit code."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return 2


def _submission(problem: Problem) -> Submission:
    return Submission(task_of(problem, NO_LOOPHOLE), problem.solution)


if __name__ == "__main__":
    sys.exit(main())
