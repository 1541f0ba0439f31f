"""Checks files of problems before anything is trained on them: `python -m hpenv.posttraining.check_problems FILE ...`.

Every problem's own solution is run in the sandbox and judged by the true verdict, as a student's program would be. One
that fails has a wrong test or solution, lacks its imports, or asks for more than the sandbox allows: whoever is trained
on such a problem cannot solve it either. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hpenv.posttraining.grader import Grader, Submission
from hpenv.posttraining.loopholes import NO_LOOPHOLE, task_of
from hpenv.posttraining.problem_files import read_problems
from hpenv.posttraining.sandbox import SandboxUnavailable
from hpenv.posttraining.shared_sandbox import SharedSandbox
from hpenv.posttraining.tasks import Problem


def failing_solutions(problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """The problems that have a solution and are not solved by it; in their order."""
    solved = [problem for problem in problems if problem.solution]
    verdicts = grader.grade([Submission(task_of(problem, NO_LOOPHOLE), problem.solution) for problem in solved])
    return [problem for problem, verdict in zip(solved, verdicts, strict=True) if not verdict.correct]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints one line a file, and one a problem whose solution fails; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpenv.posttraining.check_problems", description=__doc__)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="JSONL, in the form of hpenv.posttraining.problem_files"
    )
    files, grader, num_failing = parser.parse_args(arguments).files, Grader(SharedSandbox()), 0
    try:
        for file in files:
            problems = read_problems(file)
            failing = failing_solutions(problems, grader)
            num_failing += len(failing)
            num_solved = sum(bool(problem.solution) for problem in problems) - len(failing)
            sys.stdout.write(
                f"{file}: {len(problems)} problems, {num_solved} solved by their own solution, "
                f"{len(failing)} not, {len(problems) - num_solved - len(failing)} without one\n"
            )
            sys.stdout.writelines(f"  not solved by its own solution: {problem.name}\n" for problem in failing)
    except (SandboxUnavailable, ValueError) as error:
        sys.stdout.write(f"error: {error}\n")
        return 1
    return min(num_failing, 1)


if __name__ == "__main__":
    sys.exit(main())
