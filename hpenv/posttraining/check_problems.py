"""Checks files of problems before anything is trained on them: `python -m
hpenv.posttraining.check_problems FILE ...`.

Every problem's own solution is run in the sandbox and judged by the true verdict, as a student's
program would be. One that fails has a wrong test or solution, lacks its imports, or asks for more
than the sandbox allows: whoever is trained on such a problem cannot solve it either. The exit code
is 1 if there is one, or if a line cannot be read, unless it is left out on request. It is 2, with
one line on stderr, if a file is missing, an argument is wrong or programs cannot be executed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpenv.posttraining.grader import Grader, Submission
from hpenv.posttraining.loopholes import NO_LOOPHOLE, task_of
from hpenv.posttraining.problem_files import readings, refusal
from hpenv.posttraining.sandbox import SandboxUnavailable
from hpenv.posttraining.shared_sandbox import SharedSandbox
from hpenv.posttraining.tasks import Problem


def failing_solutions(problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """The problems that have a solution and are not solved by it; in their order."""
    solved = [problem for problem in problems if problem.solution]
    verdicts = grader.grade([_submission(problem) for problem in solved])
    return [
        problem for problem, verdict in zip(solved, verdicts, strict=True) if not verdict.correct
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line; prints one line a file, and one a solution that fails or a line that
    cannot be read.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hpenv.posttraining.check_problems", description=__doc__
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSONL, in the form of hpenv.posttraining.problem_files",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="check the other lines if some cannot be read",
    )
    parser.add_argument(
        "--cpu-seconds", type=int, default=1, metavar="S",
        help="processor time of one program, for all its tests together; train with the same [s, default 1]",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    missing = [file for file in given.files if not Path(file).is_file()]
    if missing:
        return _refused(f"{', '.join(missing)} cannot be read (no such file); expected JSONL files")
    try:
        grader = Grader(SharedSandbox(cpu_seconds=given.cpu_seconds))
    except (SandboxUnavailable, ValueError) as error:
        return _refused(error)
    found, num_failing = readings(given.files), 0
    if any(
        not reading.problems or (reading.refusals and not given.skip_unreadable)
        for reading in found
    ):
        sys.stdout.write(f"error: {refusal(found)}\n")
        return 1
    try:
        for path, problems, refusals in found:
            failing = failing_solutions(problems, grader)
            num_failing += len(failing)
            num_solved = sum(bool(problem.solution) for problem in problems) - len(failing)
            sys.stdout.write(
                f"{path}: {len(problems)} problems, {num_solved} solved by their own solution, "
                f"{len(failing)} not, {len(problems) - num_solved - len(failing)} without one\n"
            )
            sys.stdout.writelines(f"  left out: {line}\n" for line in refusals)
            for problem in failing:
                why = (
                    grader.reason(_submission(problem))
                    or "but when run again it is: a matter of chance"
                )
                sys.stdout.write(f"  not solved by its own solution: {problem.name}: {why}\n")
    except SandboxUnavailable as error:
        return _refused(error)
    return min(num_failing, 1)


def _refused(error: object) -> int:
    """Tells on stderr what cannot be done, and returns the exit code for it."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return 2


def _submission(problem: Problem) -> Submission:
    return Submission(task_of(problem, NO_LOOPHOLE), problem.solution)


if __name__ == "__main__":
    sys.exit(main())
