"""Reads problems from JSONL files with the fields of LeetCode-style sets.

A line holds one JSON object. If a field has several names, the first one that is present counts.
Fields that are not in the table are ignored:

| field | names | form |
|---|---|---|
| name | `task_id`, `id`, `name` | text or an integer, unique in all files (default: the line) |
| description | `problem_description`, `question`, `description`, `prompt` | required text |
| entry point | `entry_point`, `func_name` | `f`, `Solution().f` or `Solution.f` (required) |
| tests | `input_output`, `gt_answer`, `tests`, `test_list`, `test` | at least one, as below |
| solution | `canonical_solution`, `completion`, `solution` | source |
| starter | `starter_code` | source that is shown after the description |
| setup | `setup_code` | source that is executed before every program |
| examples | `examples` | tests that are shown in the prompt |

A solution may also be the continuation of `prompt`, as in HumanEval. A `prompt` that is source, and
not the description, is the setup if there is no other.

Tests are assert statements (one text, a list of texts, or the body of a function in the text), or
objects with `input` and `output`. The input is a list of arguments, an object of arguments by name,
or a text such as `xs = [1, 2], k = 3`. The output is a JSON value, or its text if `input` is text.
Asserts are read, never executed: `call == literal` either way round, `call is True`, `call`,
`not call`. Arguments by name are put in the order of the parameters of the solution, else of the
starter, else of the prompt. If no parameters are known, they stay in their order. Texts spell
values as JSON or as Python. All values must be JSON values: a tuple or a set is an error, like
everything else that cannot be read.
"""

from __future__ import annotations

import keyword
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpenv.posttraining.problems.cases import EntryPoint, cases
from hpenv.posttraining.problems.jsonl import (
    check_text,
    decode_line,
    excerpt,
    is_one_value,
    read_lines,
)
from hpenv.posttraining.problems.problem import Case, Problem
from hpenv.posttraining.problems.sources import signature, why_no_source

FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("task_id", "id", "name"),
    "description": ("problem_description", "question", "description", "prompt"),
    "entry point": ("entry_point", "func_name"),
    "tests": ("input_output", "gt_answer", "tests", "test_list", "test"),
    "solution": ("canonical_solution", "completion", "solution"),
    "starter": ("starter_code",),
    "setup": ("setup_code",),
    "examples": ("examples",),
}
_ENTRY_POINT = re.compile(r"(?:(\w+)(?:\(\))?\.)?(\w+)")


class ProblemFile(NamedTuple):
    """The problems of one file, and the errors of the lines that cannot be read.

    Attributes:
        path: the file.
        problems: problems of the lines that can be read.
        errors: one text for each reason why something cannot be read, with the file and its lines.
    """

    path: str
    problems: list[Problem]
    errors: list[str]


def read_problems(path: str | Path, skip_unreadable: bool = False) -> list[Problem]:
    """Reads all problems of one file. `read_problem_files` has the arguments and errors."""
    return read_problem_files([path], skip_unreadable)[0]


def read_problem_files(
    paths: Sequence[str | Path], skip_unreadable: bool = False
) -> list[list[Problem]]:
    """Reads all problems of several files that belong together. Blank lines are skipped.

    Args:
        paths: the files.
        skip_unreadable: whether to leave out the lines that cannot be read, with a warning that
            lists them.

    Returns:
        The problems of each file.

    Raises:
        ValueError: if something cannot be read. One error lists everything, with file, line and
            field. With `skip_unreadable`, only if a file is left without a problem.
    """
    if isinstance(paths, str | os.PathLike):
        raise ValueError(f"paths must be a list of paths; got {paths!r}")

    files = parse_problem_files(paths)
    if any(not file.problems or (file.errors and not skip_unreadable) for file in files):
        raise ValueError(error_text(files))

    lines = _all_errors(files)
    if lines:
        text = "\n  ".join(lines)
        warnings.warn(f"left out lines that cannot be read:\n  {text}", stacklevel=2)
    return [file.problems for file in files]


def parse_problem_files(paths: Sequence[str | Path]) -> list[ProblemFile]:
    """Reads the lines of the files that can be read, and collects the errors of the others.

    Names and files that occur twice are errors.
    """
    # (file, name) -> place, where the file is empty if the line gives the name
    taken: dict[tuple[str, str], str] = {}
    files: list[ProblemFile] = []
    for place, path in enumerate(paths):
        if any(str(path) == str(other) for other in paths[:place]):
            error = f"all files must be different; {path} is given twice"
            files.append(ProblemFile(str(path), [], [error]))
        else:
            files.append(_parse_file(path, taken))
    return files


def error_text(files: Sequence[ProblemFile]) -> str:
    """Returns the message of the error that lists everything that cannot be read."""
    lines = _all_errors(files)
    if len(lines) > 1:
        num_bad = sum(bool(file.errors) for file in files)
        lines.insert(0, f"{num_bad} file{'s' * (num_bad > 1)} of problems cannot be read:")
    if all(file.problems for file in files):
        lines.append(
            "Correct these lines, or leave them out with skip_unreadable=True "
            "(check_problems --skip-unreadable)."
        )
    return "\n  ".join(lines)


def _all_errors(files: Sequence[ProblemFile]) -> list[str]:
    """Returns the errors of all files, in their order."""
    errors: list[str] = []
    for file in files:
        errors += file.errors
    return errors


def _parse_file(path: str | Path, taken: dict[tuple[str, str], str]) -> ProblemFile:
    """Reads one file. `taken` holds the names of the files before it and receives its names."""
    try:
        lines = read_lines(path)
    except ValueError as error:
        return ProblemFile(str(path), [], [str(error)])

    problems: list[Problem] = []
    numbers_by_reason: dict[str, list[int]] = {}

    for number, line in lines.items():
        try:
            problem = _problem(record := decode_line(line), number)
            field = _field(record, "name")
            keys = [(str(path), problem.name)] + [("", problem.name)] * (field in record)
            if before := [taken[key] for key in keys if key in taken]:
                raise ValueError(
                    f"field {field!r} must be a new name; got {excerpt(problem.name)}, "
                    f"the name of {before[0]}"
                )
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            numbers_by_reason.setdefault(reason, []).append(number)
        else:
            taken |= {key: f"{path}, line {number}" for key in keys}
            problems.append(problem)

    if not problems and len(lines) > 1 and is_one_value(lines.values()):
        reason = f"{path} must be JSONL, one object a line; got one JSON value of several lines"
        return ProblemFile(str(path), [], [reason])
    errors = [
        f"{path}, line{_numbers(numbers)}: {reason}"
        for reason, numbers in numbers_by_reason.items()
    ]
    if not problems and not errors:
        errors = [f"{path} must have at least one problem, one JSON object a line; got none"]
    return ProblemFile(str(path), problems, errors)


def _numbers(numbers: Sequence[int]) -> str:
    """Returns numbers of lines as text: ` 3`, or `s 3, 5-9`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return f"{'s' * (len(numbers) > 1)} " + ", ".join(
        "-".join(map(str, bounds)) for bounds in ranges
    )


def _problem(record: Mapping[str, Any], number: int) -> Problem:
    """Returns the problem of one line."""
    class_name, function = _entry_point(record)
    description, starter = _text(record, "description", required=True), _text(record, "starter")
    solution, setup = _sources(record)

    sources = (
        solution,
        starter,
        f"{starter.rstrip()} pass",
        f"{starter}\n    pass",
        f"{starter}\n        pass",
    )
    prompt = record.get("prompt")

    signatures = (
        signature(text, class_name, function)
        for text in (*sources, prompt)
        if text and isinstance(text, str)
    )
    first_signature = next((each for each in signatures if each is not None), None)
    entry_point = EntryPoint(function, class_name, first_signature)

    return Problem(
        name=_name(record, number),
        entry_point=function,
        description="\n".join(part for part in (description.strip(), starter.rstrip()) if part),
        examples=_cases(record, "examples", entry_point),
        tests=_cases(record, "tests", entry_point),
        solution=solution,
        class_name=class_name,
        setup=setup,
    )


def _sources(record: Mapping[str, Any]) -> tuple[str, str]:
    """Returns solution and setup.

    A prompt that is source begins the solution, or else is the setup.
    """
    solution, setup = _text(record, "solution"), _text(record, "setup")
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        if solution and why_no_source(solution) and not why_no_source(prompt + solution):
            solution = prompt + solution
        elif not setup and _field(record, "description") != "prompt" and not why_no_source(prompt):
            setup = prompt

    for what, source in (("solution", solution), ("setup", setup)):
        if why := why_no_source(source):
            raise ValueError(f"field {_field(record, what)!r} must be Python source ({why})")

    return solution if solution.strip() else "", setup


def _field(record: Mapping[str, Any], what: str, required: bool = False) -> str:
    """Returns the first of a field's names that is present, or its first name if none is."""
    present = [name for name in FIELDS[what] if record.get(name) is not None]
    if required and not present:
        raise ValueError(f"the {what} must be in one of the fields {list(FIELDS[what])}; got none")
    return (present or list(FIELDS[what]))[0]


def _text(record: Mapping[str, Any], what: str, required: bool = False) -> str:
    """Returns the text in a field, or an empty one if the field is absent."""
    field = _field(record, what, required)
    value = record.get(field)
    if value is None:
        return ""

    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text; got {excerpt(value)}")
    if required and not value.strip():
        raise ValueError(f"field {field!r} must be text that is not blank; got {excerpt(value)}")

    try:
        check_text(value)
    except ValueError as error:
        raise ValueError(f"field {field!r}: {error}") from error
    return value


def _name(record: Mapping[str, Any], number: int) -> str:
    """Returns the problem's name, or else the number of its line."""
    field = _field(record, "name")
    value = record.get(field)
    if value is None:
        return f"line {number}"
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text or a whole number; got {excerpt(value)}")
    return _text(record, "name", required=True)


def _entry_point(record: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the names of the class and the function. The class is empty if there is none."""
    text = _text(record, "entry point", required=True)
    match = _ENTRY_POINT.fullmatch(text)
    names = [] if match is None else [name for name in match.groups() if name is not None]
    if not names or not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        field = _field(record, "entry point")
        raise ValueError(
            f"field {field!r} must be `f`, `Solution().f` or `Solution.f`; got {excerpt(text)}"
        )
    return ("", *names)[-2], names[-1]


def _cases(record: Mapping[str, Any], what: str, entry_point: EntryPoint) -> tuple[Case, ...]:
    """Returns the cases in a field. There must be at least one test."""
    field = _field(record, what, required=what == "tests")
    entries = record.get(field)
    try:
        found = () if entries is None else cases(entries, entry_point)
        if what == "tests" and not found:
            raise ValueError("must have at least one test; got none")
    except ValueError as error:
        raise ValueError(f"field {field!r}: {error}") from error
    return found
